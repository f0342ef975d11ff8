"""`opensana report`: what was measured of several models, as one HTML file."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from opensana.cli.command import Command, emit
from opensana.cli.output import check_file
from opensana.errors import RequestError

SMALLEST, LARGEST = 16, 512


@dataclass(frozen=True)
class Report(Command):
    """Put finished evaluations side by side: one HTML file, and their figures as JSON."""

    runs: Annotated[Positional[tuple[Path, ...]], arg(metavar="FOLDER")]
    """The --to folders of `opensana evaluate --benchmark` and of `opensana reconstruct`."""
    to: Annotated[Path, arg(metavar="FILE")] = Path("report.html")
    """The page; the figures are written beside it, as report.json."""
    title: str | None = None
    """What stands above the page; left out, the names of the runs."""
    side: int = 256
    """The longer side of pictures in pixels, at most 512."""

    def run(self) -> None:
        if not self.runs:
            raise RequestError("name at least one folder of an evaluation")
        if self.to.suffix.lower() not in (".html", ".htm"):
            raise RequestError(f"the report is an HTML file, got {str(self.to)!r}; end it in .html")
        if not SMALLEST <= self.side <= LARGEST:
            raise RequestError(f"side must be from {SMALLEST} to {LARGEST}, got {self.side}")
        figures = self.to.with_suffix(".json")
        for file in (self.to, figures):
            check_file(file)
        from opensana.evaluate.report.page import render
        from opensana.evaluate.report.runs import read_report
        from opensana.files.writing import write_atomic, write_json

        report = read_report(self.runs, title=self.title)
        page = render(report, side=self.side)
        write_atomic(self.to, lambda temporary: temporary.write_text(page, "utf-8"))
        write_json(figures, report.plain())
        emit(str(self.to))
