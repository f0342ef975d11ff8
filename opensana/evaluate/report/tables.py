"""Tables of figures: models side by side, each value with its interval on the row's own scale."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from opensana.evaluate.report.runs import QUESTIONS, Column

LOWER, HIGHER = "lower is better", "higher is better"
FIGURES = {
    "fid": ("FID", "Fréchet distance of Inception features", LOWER),
    "kid": ("KID", "kernel distance of Inception features", LOWER),
    "precision": ("Precision", "drawn pictures that look like real ones", HIGHER),
    "recall": ("Recall", "real pictures that are within reach", HIGHER),
    "density": ("Density", "as precision, how often", HIGHER),
    "coverage": ("Coverage", "real pictures with a drawn one near", HIGHER),
    "cmmd": ("CMMD", "kernel distance of CLIP embeddings", LOWER),
    "clip_score": ("CLIP score", "100 times the cosine of picture and prompt", HIGHER),
    "psnr": ("PSNR", "decibels, mean of the pictures", HIGHER),
    "psnr_of_mean_error": ("PSNR of the mean error", "decibels, hard pictures weigh more", HIGHER),
    "ssim": ("SSIM", "structural similarity", HIGHER),
    "lpips": ("LPIPS", "perceptual distance", LOWER),
    "rfid": ("rFID", "Fréchet distance of reconstructions", LOWER),
}
"""Name, meaning and direction; what is not listed is shown by its own name, without a direction."""
Columns = Mapping[int, Column]
"""Those of one table, by their number in the report."""
BIASED = {"fid", "rfid"}
PLOT_WIDTH, PLOT_HEIGHT, PLOT_EDGE = 120, 16, 6
COLOURS = 8


def figure_table(kind: str, columns: Columns) -> str:
    """A row for each figure and protocol: values of two protocols do not compare."""
    rows: dict[tuple[str, str], list[dict[str, Any] | None]] = {}
    for place, column in enumerate(columns.values()):
        for name, figure in column.figures.items():
            cells = rows.setdefault((name, figure["protocol"]), [None] * len(columns))
            cells[place] = figure
    body = "\n".join(
        _row(name, protocol, cells, columns) for (name, protocol), cells in rows.items()
    )
    notes = ["Intervals are of 95 %."]
    if len(columns) > 1:
        notes.append("A value is marked where its interval lies apart from all others.")
    biased = [column for column in columns.values() if column.figures.keys() & BIASED]
    counts = {column.facts.get("pictures") for column in biased}
    if len(counts) > 1:
        notes.append(
            "The runs have different numbers of pictures: FID is larger for fewer of them, so "
            "these FIDs do not compare."
        )
    lacking = {
        f"<li>{escape(names)}: {escape(reason)}</li>": None
        for column in columns.values()
        for names, reason in column.left_out.items()
    }
    left_out = ""
    if lacking:
        left_out = f"<details><summary>Left out</summary><ul>{''.join(lacking)}</ul></details>"
    return (
        f'<section><h2>{escape(kind)}</h2>\n<div class="scroll"><table>{_head(columns)}'
        f"<tbody>\n{body}\n</tbody></table></div>\n"
        f'<p class="note">{" ".join(notes)}</p>{left_out}</section>'
    )


def _head(columns: Columns) -> str:
    cells = "".join(f'<th scope="col">{swatch(i)}{escape(c.name)}</th>' for i, c in columns.items())
    return f'<thead><tr><th scope="col"></th>{cells}</tr></thead>'


def _row(name: str, protocol: str, cells: Sequence[dict[str, Any] | None], columns: Columns) -> str:
    share = {column.kind for column in columns.values()} <= {*QUESTIONS.values()}
    label, meaning, direction = FIGURES.get(name, (name, "", HIGHER if share else ""))
    small = ", ".join(filter(None, (meaning, direction)))
    small = f"<small>{escape(small)}</small>" if small else ""
    head = f'<th scope="row">{escape(label)}{small}<small>{escape(protocol)}</small></th>'
    best = _clearly_best(cells, direction)
    return f"<tr>{head}{_cells(cells, columns, best)}</tr>"


def _cells(
    cells: Sequence[dict[str, Any] | None], columns: Columns, best: int | None = None
) -> str:
    ends = _ends(cells)
    return "".join(
        _cell(cell, number, ends, place == best)
        for place, (cell, number) in enumerate(zip(cells, columns, strict=True))
    )


def _clearly_best(cells: Sequence[dict[str, Any] | None], direction: str) -> int | None:
    """The value whose interval lies apart from all others on the good side."""
    known = [(number, cell) for number, cell in enumerate(cells) if cell]
    if not direction or len(known) < 2 or any("low" not in cell for _, cell in known):
        return None
    sign = 1 if direction == HIGHER else -1
    known = [(number, sorted(sign * end for end in _interval(cell))) for number, cell in known]
    known.sort(key=lambda item: -item[1][0])
    (first, (low, _)), rest = known[0], known[1:]
    return first if all(low > high for _, (_, high) in rest) else None


def _interval(figure: Mapping[str, Any]) -> tuple[float, float]:
    return figure.get("low", figure["value"]), figure.get("high", figure["value"])


def _ends(cells: Sequence[dict[str, Any] | None]) -> tuple[float, float] | None:
    """What the plots of a row span; None if there is nothing to compare."""
    known = [_interval(cell) for cell in cells if cell]
    if len(known) < 2:
        return None
    low, high = min(low for low, _ in known), max(high for _, high in known)
    return (low, high) if high > low else None


def _cell(
    figure: dict[str, Any] | None, number: int, ends: tuple[float, float] | None, best: bool
) -> str:
    if figure is None:
        return '<td class="none">–</td>'
    value = f"<b>{number_text(figure['value'])}</b>"
    if best:
        value = f'<b class="best" title="apart from all others">{number_text(figure["value"])}</b>'
    between = ""
    if "low" in figure:
        low, high = (number_text(figure[end]) for end in ("low", "high"))
        between = f'<span class="between">{low} to {high}</span>'
    return f"<td>{value}{between}{_plot(figure, number, ends)}</td>"


def _plot(figure: Mapping[str, Any], number: int, ends: tuple[float, float] | None) -> str:
    """Value and interval on the scale that the row shares."""
    if ends is None:
        return ""
    scale = (PLOT_WIDTH - 2 * PLOT_EDGE) / (ends[1] - ends[0])

    def place(value: float) -> str:
        return f"{PLOT_EDGE + (value - ends[0]) * scale:.1f}"

    middle, (low, high) = PLOT_HEIGHT / 2, map(place, _interval(figure))
    return (
        f'<svg class="plot c{number % COLOURS}" viewBox="0 0 {PLOT_WIDTH} {PLOT_HEIGHT}" '
        f'width="{PLOT_WIDTH}" height="{PLOT_HEIGHT}" aria-hidden="true">'
        f'<line class="axis" x1="0" x2="{PLOT_WIDTH}" y1="{middle}" y2="{middle}"/>'
        f'<line class="reach" x1="{low}" x2="{high}" y1="{middle}" y2="{middle}"/>'
        f'<circle cx="{place(figure["value"])}" cy="{middle}" r="4"/></svg>'
    )


def number_text(value: float) -> str:
    """Four digits where they matter."""
    size = abs(value)
    digits = 1 if size >= 1000 else 2 if size >= 10 else 3 if size >= 1 else 4
    return f"{value:.{digits}f}"


def category_tables(columns: Columns) -> str:
    names = dict.fromkeys(name for column in columns.values() for name in column.categories)
    figures = dict.fromkeys(
        figure
        for column in columns.values()
        for found in column.categories.values()
        for figure in found
        if figure != "pictures"
    )
    if not names:
        return ""
    tables = "".join(_category_table(figure, list(names), columns) for figure in figures)
    return (
        f"<section><h2>Categories</h2>\n{tables}"
        '<p class="note">A category has few pictures: its FID is far too large in absolute terms.'
        "</p></section>"
    )


def _category_table(figure: str, names: Sequence[str], columns: Columns) -> str:
    label, _, direction = FIGURES.get(figure, (figure, "", ""))
    rows = []
    for name in names:
        cells = [c.categories.get(name, {}).get(figure) for c in columns.values()]
        rows.append(f'<tr><th scope="row">{escape(name)}</th>{_cells(cells, columns)}</tr>')
    known = [c.figures[figure] for c in columns.values() if figure in c.figures]
    protocols = dict.fromkeys(figure["protocol"] for figure in known)
    about = ", ".join(filter(None, (direction, *protocols)))
    return (
        f"<details><summary>{escape(label)}<small>{escape(about)}</small></summary>"
        f'<div class="scroll"><table>{_head(columns)}<tbody>{"".join(rows)}</tbody>'
        "</table></div></details>\n"
    )


def fact_table(kind: str, columns: Columns) -> str:
    names = dict.fromkeys(name for column in columns.values() for name in column.facts)
    rows = "".join(
        f'<tr><th scope="row">{escape(name)}</th>'
        + "".join(f"<td>{escape(column.facts.get(name, '–'))}</td>" for column in columns.values())
        + "</tr>"
        for name in names
    )
    return (
        f"<section><h2>{escape(kind)}: how they were measured</h2>"
        f'<div class="scroll"><table class="facts">'
        f"{_head(columns)}<tbody>{rows}</tbody></table></div></section>"
    )


def swatch(number: int) -> str:
    return f'<span class="swatch c{number % COLOURS}"></span>'
