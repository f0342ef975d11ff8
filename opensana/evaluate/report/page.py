"""The page: tables and sheets in one HTML file that refers to nothing outside and runs nothing.

Its own content security policy allows this style sheet and the embedded pictures only.
"""

import base64
import hashlib
from collections.abc import Sequence
from html import escape
from importlib.resources import files

from opensana import __version__
from opensana.evaluate.report.runs import Column, Report
from opensana.evaluate.report.sheets import sheet_section
from opensana.evaluate.report.tables import category_tables, fact_table, figure_table, swatch


def render(report: Report, *, side: int) -> str:
    """The whole page; pictures are scaled to `side` pixels at most."""
    style = files("opensana.evaluate.report").joinpath("style.css").read_text("utf-8")
    # The hash is of what stands between the tags, to the byte.
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'sha256-{digest}'"
    policy += "; base-uri 'none'; form-action 'none'"
    kinds = dict(report.kinds())
    sections = [
        f"<header><h1>{escape(report.title)}</h1>{_legend(report.columns)}</header>",
        *(figure_table(kind, columns) for kind, columns in kinds.items()),
        *(category_tables(columns) for columns in kinds.values()),
        *(sheet_section(sheet, report.columns, side) for sheet in report.sheets),
        *(fact_table(kind, columns) for kind, columns in kinds.items()),
        f"<footer>opensana {escape(__version__)}. The figures are in the JSON file beside this"
        " page.</footer>",
    ]
    body = "\n".join(filter(None, sections))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f"<title>{escape(report.title)}</title>\n<style>{style}</style>\n</head>\n"
        f"<body>\n<main>\n{body}\n</main>\n</body>\n</html>\n"
    )


def _legend(columns: Sequence[Column]) -> str:
    items = "".join(f"<li>{swatch(i)}{escape(c.name)}</li>" for i, c in enumerate(columns))
    return f'<ul class="legend">{items}</ul>'
