"""Contact sheets: many pictures in one image."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

SIZES = (16, 14, 12, 11, 10, 9)
TWO_LINES = 12
"""The largest size of letters of which two lines fit below a picture."""

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def contact_sheet(
    pictures: Sequence[Image.Image], names: Sequence[str], *, columns: int = 5, side: int = 192
) -> Image.Image:
    """Pictures in rows, each with its name centred below in one line or two, as large as fits."""
    assert len(pictures) == len(names) > 0
    strip, margin = 28, 8
    right, down = side + margin, side + strip + margin
    rows = -(-len(pictures) // columns)
    sheet = Image.new("RGB", (columns * right + margin, rows * down + margin), "white")
    pen = ImageDraw.Draw(sheet)
    for index, (picture, name) in enumerate(zip(pictures, names, strict=True)):
        row, column = divmod(index, columns)
        left, top = margin + column * right, margin + row * down
        sheet.paste(picture.convert("RGB").resize((side, side)), (left, top))
        text, font = _fitting(pen, name, side)
        place = (left + side // 2, top + side + (1 if "\n" in text else 4))
        pen.multiline_text(
            place, text, fill="black", font=font, anchor="ma", align="center", spacing=1
        )
    return sheet


def _fitting(pen: ImageDraw.ImageDraw, name: str, side: int) -> tuple[str, Font]:
    """A name in one line or two, in the largest size that fits, else the smallest."""
    for size in SIZES:
        for text in (name, _halved(name)) if size <= TWO_LINES else (name,):
            font = ImageFont.load_default(size)
            if pen.multiline_textbbox((0, 0), text, font=font)[2] <= side:
                return text, font
    return _halved(name), ImageFont.load_default(SIZES[-1])


def _halved(name: str) -> str:
    """In two lines, about equally long."""
    spaces = [index for index, letter in enumerate(name) if letter == " "]
    if not spaces:
        return name
    middle = min(spaces, key=lambda index: abs(index - len(name) / 2))
    return f"{name[:middle]}\n{name[middle + 1 :]}"


def grid(pictures: np.ndarray, *, columns: int) -> Image.Image:
    """Tile uint8 [B, H, W, 3] row by row, on white."""
    count, height, width, _ = pictures.shape
    rows = -(-count // columns)
    sheet = np.full((rows * height, columns * width, 3), 255, dtype=np.uint8)
    for index, picture in enumerate(pictures):
        top, left = index // columns * height, index % columns * width
        sheet[top : top + height, left : left + width] = picture
    return Image.fromarray(sheet)
