"""Sheets of pictures: rows of one prompt or one original, models side by side."""

import base64
import io
from collections.abc import Iterator, Sequence
from html import escape

from PIL import Image

from opensana.evaluate.folder import Shown
from opensana.evaluate.report.runs import Column, Sheet
from opensana.evaluate.report.tables import swatch

QUALITY = 90


def sheet_section(sheet: Sheet, columns: Sequence[Column], side: int) -> str:
    number = {column.name: i for i, column in enumerate(columns)}
    heads = "".join(
        f'<th scope="col">{swatch(number[name]) if name in number else ""}{escape(name)}</th>'
        for name in sheet.columns
    )
    rows = "\n".join(_sheet_rows(sheet, side))
    note = f"From {escape(sheet.source)}."
    if sheet.equal_seeds:
        note += " Pictures of a row were drawn from the same seed."
    elif sheet.different_seeds:
        note += " Seeds differ within rows: compare the sets, not single pictures."
    return (
        f'<section><h2>{escape(sheet.title)}</h2><p class="note">{note}</p>\n'
        f'<div class="scroll"><table class="sheet"><thead><tr><th scope="col"></th>{heads}</tr>'
        f"</thead><tbody>\n{rows}\n</tbody></table></div></section>"
    )


def _sheet_rows(sheet: Sheet, side: int) -> Iterator[str]:
    for row in sheet.rows:
        text = escape(row.text or row.key)
        key = f"<small>{escape(row.key)}</small>" if row.text else ""
        cells = "".join(
            _picture(row.columns.get(name), f"{name}: {row.text or row.key}", side)
            for name in sheet.columns
        )
        yield f'<tr><th scope="row"><div>{text}</div>{key}</th>{cells}</tr>'


def _picture(shown: Shown | None, what: str, side: int) -> str:
    if shown is None:
        return '<td class="none">–</td>'
    picture = shown.picture.convert("RGB")
    picture.thumbnail((side, side), Image.Resampling.BICUBIC)
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", quality=QUALITY)
    data = base64.b64encode(buffer.getvalue()).decode()
    seed = "" if shown.seed is None else f"seed {shown.seed}"
    caption = ", ".join(filter(None, (seed, shown.caption)))
    return (
        f'<td><img src="data:image/webp;base64,{data}" width="{picture.width}" '
        f'height="{picture.height}" alt="{escape(what)}">'
        f"<small>{escape(caption)}</small></td>"
    )
