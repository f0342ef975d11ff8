"""Contact sheets: many pictures in one image."""

from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont


def contact_sheet(
    pictures: Sequence[Image.Image], names: Sequence[str], *, columns: int = 5, side: int = 192
) -> Image.Image:
    """Pictures in rows, each with its name centred below, as large as fits."""
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
        for size in (16, 14, 12, 10, 8):
            font = ImageFont.load_default(size)
            if pen.textlength(name, font=font) <= side:
                break
        pen.text((left + side // 2, top + side + 4), name, fill="black", font=font, anchor="ma")
    return sheet


def grid(pictures: np.ndarray, *, columns: int) -> Image.Image:
    """Tile uint8 [B, H, W, 3] row by row, on white."""
    count, height, width, _ = pictures.shape
    rows = -(-count // columns)
    sheet = np.full((rows * height, columns * width, 3), 255, dtype=np.uint8)
    for index, picture in enumerate(pictures):
        top, left = index // columns * height, index % columns * width
        sheet[top : top + height, left : left + width] = picture
    return Image.fromarray(sheet)
