"""Which part of a mask is drawn anew: white, or what was painted, whichever channel carries it."""

import io
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from opensana.drawing.init_image import InitImage, read_init_image
from opensana.errors import RequestError

SIZE = (96, 64)
BOX = (20, 10, 59, 39)
DRAWN = np.zeros(SIZE[::-1], bool)
DRAWN[10:40, 20:60] = True
PHOTO = np.random.default_rng(3).integers(256, size=(*SIZE[::-1], 3), dtype=np.uint8)


def painted(mode: str, ground: object, paint: object, box: tuple[int, ...] = BOX) -> Image.Image:
    """A ground with a rectangle of paint on it."""
    image = Image.new(mode, SIZE, ground)  # pyright: ignore[reportArgumentType]
    ImageDraw.Draw(image).rectangle(box, fill=paint)  # pyright: ignore[reportArgumentType]
    return image


def file(image: Image.Image, form: str = "PNG", **options: object) -> bytes:
    content = io.BytesIO()
    image.save(content, form, **options)
    return content.getvalue()


def palette(transparency: int | bytes, *colours: int) -> bytes:
    """The rectangle is entry 1, the ground entry 0."""
    image = painted("P", 0, 1)
    image.putpalette(list(colours))
    return file(image, transparency=transparency)


def with_alpha(colour: np.ndarray, alpha: np.ndarray) -> Image.Image:
    return Image.fromarray(np.dstack([colour, alpha]).astype(np.uint8))


def soft() -> np.ndarray:
    """The rectangle with an edge of 5 pixels or so, its half where the hard edge was."""
    return np.asarray(painted("L", 0, 255).filter(ImageFilter.GaussianBlur(2)))


def read(mask: bytes | Image.Image) -> tuple[np.ndarray, list[str]]:
    heard: list[str] = []
    found = read_init_image(Image.new("RGB", SIZE), mask, heard.append)
    assert found is not None and found.mask is not None
    return np.asarray(found.mask) == 255, heard


CLEAR, WHITE = (0, 0, 0, 0), (255, 255, 255, 255)
LEVELS = 255 * DRAWN
PLAIN = np.full((*SIZE[::-1], 3), 255)


def painted_masks() -> Iterator[tuple[str, bytes]]:
    """Every one of them means the rectangle."""
    yield "white on black", file(painted("L", 0, 255))
    yield "one bit", file(painted("1", 0, 1))
    yield "RGB", file(painted("RGB", "black", "white"))
    yield "JPEG", file(painted("L", 0, 255), "JPEG")
    yield "RGBA, clear black ground (GIMP, canvas)", file(painted("RGBA", CLEAR, WHITE))
    yield "RGBA, clear white ground (Photoshop)", file(painted("RGBA", (255, 255, 255, 0), WHITE))
    yield "grey and alpha", file(painted("LA", (0, 0), (255, 255)))
    yield "grey and alpha, white beneath", file(painted("LA", (255, 0), (255, 255)))
    yield "palette with one clear entry", palette(0, 0, 0, 0, 255, 255, 255)
    yield "palette, white beneath", palette(0, 255, 255, 255, 255, 255, 255)
    yield "palette with alphas", palette(bytes((3, 255)), 9, 9, 9, 255, 255, 255)
    yield "grey with a clear level", file(painted("L", 0, 255), transparency=0)
    yield "grey of another clear level", file(painted("L", 7, 255), transparency=7)
    yield (
        "RGB with a clear colour",
        file(painted("RGB", (1, 2, 3), "white"), transparency=(1, 2, 3)),
    )
    sixteen = Image.fromarray((DRAWN * 65535).astype(np.uint16))
    yield "16-bit grey with a clear level", file(sixteen, transparency=0)
    yield "soft brush", file(with_alpha(PLAIN, soft()))
    yield "soft brush on a black matte", file(with_alpha(np.dstack([soft()] * 3), soft()))
    yield "brush of half opacity", file(painted("RGBA", CLEAR, (255, 255, 255, 120)))
    yield "a red brush", file(painted("RGBA", CLEAR, (255, 0, 0, 255)))
    yield "a red brush of half opacity", file(painted("RGBA", CLEAR, (255, 0, 0, 127)))
    yield (
        "photo beneath clear ground",
        file(with_alpha(np.where(DRAWN[..., None], 255, PHOTO), LEVELS)),
    )
    white = painted("RGBA", CLEAR, WHITE)
    yield "WebP, lossy", file(white, "WEBP", quality=50)
    yield "WebP, lossless", file(white, "WEBP", lossless=True)
    yield "opaque RGBA", file(painted("RGBA", (0, 0, 0, 255), WHITE))
    yield "evenly faint", file(painted("RGBA", (0, 0, 0, 90), (255, 255, 255, 90)))
    yield "nearly opaque", file(painted("RGBA", (0, 0, 0, 254), (255, 255, 255, 251)))
    turned = painted("RGBA", CLEAR, WHITE).transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6
    yield "turned", file(turned, exif=exif)


@pytest.mark.parametrize(
    ("name", "mask"), [pytest.param(*one, id=one[0]) for one in painted_masks()]
)
def test_the_drawn_part_is_drawn_anew(name: str, mask: bytes) -> None:
    for source in (mask, Image.open(io.BytesIO(mask))):
        found, heard = read(source)
        wrong = np.count_nonzero(found != DRAWN)
        assert wrong <= (60 if "soft" in name else 4 if "lossy" in name else 0)
        assert heard == []


@pytest.mark.parametrize("mode", ["RGBa", "La", "PA"])
def test_modes_that_only_pillow_has(mode: str) -> None:
    between = {"RGBa": "RGBA", "La": "LA", "PA": "RGBA"}[mode]
    mask = painted("RGBA", CLEAR, WHITE).convert(between)
    mask = mask.convert("P").convert("PA") if mode == "PA" else mask.convert(mode)
    if mode == "PA":
        mask.putalpha(Image.fromarray(LEVELS.astype(np.uint8)))
    assert np.array_equal(read(mask)[0], DRAWN)


def test_a_hole_in_black_is_drawn_anew_and_told() -> None:
    """As OpenAI's edits and ComfyUI have it."""
    for hole in (CLEAR, (255, 255, 255, 0)):
        found, heard = read(file(painted("RGBA", (0, 0, 0, 255), hole)))
        assert np.array_equal(found, DRAWN)
        assert heard == ["the mask is black with a transparent hole: the hole is drawn anew"]


UNCLEAR = {
    "black paint on a transparent ground": painted("RGBA", CLEAR, (0, 0, 0, 255)),
    "dark grey paint": painted("LA", (0, 0), (60, 255)),
    "a half that is black": painted("RGBA", CLEAR, (0, 0, 0, 255), (0, 0, 47, 63)),
    "a photo with a hole": with_alpha(PHOTO, 255 - LEVELS),
    "a photo cut out": with_alpha(PHOTO, LEVELS),
    "black and white paint": painted("RGBA", CLEAR, WHITE).transpose(Image.Transpose.ROTATE_180),
    "colour and transparency that disagree": with_alpha(
        np.dstack([LEVELS] * 3), np.indices(DRAWN.shape)[1] * 255 // 95
    ),
    "noise in both": with_alpha(PHOTO, PHOTO[..., 0]),
}
ImageDraw.Draw(UNCLEAR["black and white paint"]).rectangle((2, 2, 30, 20), fill=(0, 0, 0, 255))


@pytest.mark.parametrize("name", UNCLEAR)
def test_what_may_mean_either_is_refused(name: str) -> None:
    with pytest.raises(RequestError, match=r"the mask is unclear: it is .*; paint white") as caught:
        read(file(UNCLEAR[name]))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("colour", [CLEAR, (255, 255, 255, 0)])
def test_a_mask_that_shows_nothing_is_refused(colour: tuple[int, ...]) -> None:
    with pytest.raises(RequestError, match="the mask is transparent on the whole picture; paint"):
        read(file(Image.new("RGBA", SIZE, colour)))
    with pytest.raises(RequestError, match="the mask is black on the whole picture; paint white"):
        read(file(Image.new("RGBA", SIZE, (0, 0, 0, 200))))


def of_mask(mask: Image.Image) -> InitImage:
    return read_init_image(Image.new("RGB", SIZE), mask, lambda _: None)


def test_a_mask_that_is_white_everywhere_is_told() -> None:
    for white in (Image.new("L", SIZE, 255), Image.new("RGBA", SIZE, (255, 255, 255, 90))):
        [note] = of_mask(white).resize_notes(*SIZE, native=64)
        assert note == "the mask is white on the whole picture: all of it is drawn anew"
    assert list(of_mask(painted("L", 0, 255)).resize_notes(*SIZE, native=64)) == []
