"""Many pictures on one sheet."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont


def contact_sheet(
    pictures: Sequence[Image.Image], names: Sequence[str], *, columns: int = 5, side: int = 192
) -> Image.Image:
    """Pictures in rows with their names underneath; 25 make a square of five by five."""
    assert len(pictures) == len(names) > 0
    strip, margin = 28, 8
    rows = -(-len(pictures) // columns)
    width = columns * (side + margin) + margin
    sheet = Image.new("RGB", (width, rows * (side + strip + margin) + margin), "white")
    pen = ImageDraw.Draw(sheet)
    cells = _cells(len(pictures), columns, (side + margin, side + strip + margin), margin)
    for (left, top), picture, name in zip(cells, pictures, names, strict=True):
        sheet.paste(picture.convert("RGB").resize((side, side)), (left, top))
        _write(pen, name, (left + side // 2, top + side + 4), side)
    return sheet


def _cells(count: int, columns: int, pitch: tuple[int, int], first: int) -> list[tuple[int, int]]:
    """The top left corners of the pictures, row by row."""
    right, down = pitch
    places = (divmod(index, columns) for index in range(count))
    return [(first + column * right, first + row * down) for row, column in places]


def _write(pen: ImageDraw.ImageDraw, text: str, place: tuple[int, int], width: int) -> None:
    """The text centred below its picture, as large as fits."""
    for size in (16, 14, 12, 10, 8):
        font = ImageFont.load_default(size)
        if pen.textlength(text, font=font) <= width:
            break
    pen.text(place, text, fill="black", font=font, anchor="ma")


def grid(pictures: np.ndarray, *, columns: int) -> Image.Image:
    """uint8 [B, H, W, 3] laid out row by row on white."""
    count, height, width, _ = pictures.shape
    rows = -(-count // columns)
    sheet = np.full((rows * height, columns * width, 3), 255, dtype=np.uint8)
    for index, picture in enumerate(pictures):
        top, left = index // columns * height, index % columns * width
        sheet[top : top + height, left : left + width] = picture
    return Image.fromarray(sheet)
