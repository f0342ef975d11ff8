"""Prints docs/cli.md: the help of every command, as a terminal of 100 columns shows it.

Run by `make docs`; tests/cli/test_app.py fails when the page and the help differ.
"""

import contextlib
import io
import os

os.environ["COLUMNS"] = "100"
os.environ["NO_COLOR"] = "1"

from opensana.cli.app import main, names

HEAD = """\
# The command line

Written by `make docs` from `--help`; do not edit.

Results go to stdout, everything said along the way to stderr. Exit codes: 0 done, 1 failed,
2 asked for wrongly, 130 interrupted. `opensana --version` prints the version.
"""


def help_of(*words: str) -> str:
    """What `opensana WORDS --help` prints."""
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        main([*words, "--help"])
    return "\n".join(line.rstrip() for line in text.getvalue().strip().splitlines())


def page() -> str:
    """The whole page."""
    sections = [f"\n```text\n{help_of()}\n```\n"]
    for name in names():
        sections.append(f"\n## opensana {name}\n\n```text\n{help_of(*name.split())}\n```\n")
    return HEAD + "".join(sections)


if __name__ == "__main__":
    print(page(), end="")
