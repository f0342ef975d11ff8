"""README.md and README.zh-CN.md say the same; files that the docs name are there."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ENGLISH, CHINESE = ROOT / "README.md", ROOT / "README.zh-CN.md"
PAGES = [ENGLISH, CHINESE, *sorted((ROOT / "docs").glob("*.md"))]


def text(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def code(page: Path) -> list[str]:
    """Every line of the page's code blocks, without the comment or the description behind it."""
    blocks = re.findall(r"^```(.*?)^```", text(page), re.DOTALL | re.MULTILINE)
    return [re.split(r"(?<=\S)  |\s# ", line)[0].rstrip() for line in "".join(blocks).splitlines()]


def prose(page: Path) -> str:
    return re.sub(r"^```.*?^```", "", text(page), flags=re.DOTALL | re.MULTILINE)


def figures(page: Path) -> list[list[str]]:
    """The numbers in each row of the page's tables, sorted, since word order differs."""
    rows = [line for line in text(page).splitlines() if line.startswith("|")]
    return [sorted(re.findall(r"\d+(?:[.,]\d+)*(?:e-\d+)?", row)) for row in rows]


def headings(page: Path) -> list[str]:
    return re.findall(r"^#+", prose(page), re.MULTILINE)


def links(page: Path) -> list[str]:
    """Where links and pictures lead, without the switch of language in the first line."""
    return sorted(re.findall(r"\]\((.*?)\)", prose(page).split("\n", 1)[1]))


@pytest.mark.parametrize("part", [code, figures, headings, links])
def test_both_languages_agree(part: Callable[[Path], list[object]]) -> None:
    assert part(ENGLISH) == part(CHINESE)


def test_the_first_line_leads_to_the_other_language() -> None:
    assert "(README.zh-CN.md)" in text(ENGLISH).splitlines()[0]
    assert "(README.md)" in text(CHINESE).splitlines()[0]


def anchors(page: Path) -> set[str]:
    """The names by which links reach the page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target, anchor in re.findall(r"\]\(([^)#\s]*)#?([^)\s]*)\)", prose(page)):
        if not target.startswith("http"):
            path = page.parent / target if target else page
            assert path.exists(), f"{page.name} links to {target}"
            assert not anchor or anchor in anchors(path), f"{page.name} links to {target}#{anchor}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_named_modules_exist(page: Path) -> None:
    """`flow/path.py` is opensana/flow/path.py; other paths begin at the repository's root."""
    for name in re.findall(r"(?<![\w/.~])\w[\w-]*/[\w/-]+\.(?:py|cpp)\b", text(page)):
        assert (ROOT / "opensana" / name).exists() or (ROOT / name).exists(), name
