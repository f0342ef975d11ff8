"""The page's files: they fit together, reach nothing outside, and speak two languages."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from opensana.serve.page import page_files
from tests.serve.gradient import Server, serving

FILES = {name: data.decode() for name, data in page_files().items()}
HTML = FILES["index.html"]
SCRIPTS = {name: text for name, text in FILES.items() if name.endswith(".js")}
STYLES = {name: text for name, text in FILES.items() if name.endswith(".css")}
SVG_NAMESPACE = "http://www.w3.org/2000/svg"


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with serving(tmp_path) as found:
        yield found


def words(language: str) -> dict[str, str]:
    """Every key of a language's file with its words."""
    return dict(re.findall(r'^  (\w+): "(.*)",$', FILES[f"{language}.js"], re.MULTILINE))


def test_the_address_of_the_server_is_the_page(server: Server) -> None:
    page = server.client.get("/")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert page.text == HTML


def test_every_file_is_served_by_its_type(server: Server) -> None:
    types = {
        "js": "text/javascript",
        "css": "text/css",
        "svg": "image/svg+xml",
        "html": "text/html",
    }
    for name, text in FILES.items():
        answer = server.client.get(f"/page/{name}")
        assert answer.text == text
        kind = answer.headers["content-type"].partition(";")[0]
        assert kind == types[name.rpartition(".")[2]]


@pytest.mark.parametrize(
    "path", ["/page/none.js", "/page/../page.py", "/page/%2e%2e%2fpage.py", "/page/..%5cpage.py"]
)
def test_what_is_no_file_of_the_page_is_not_found(server: Server, path: str) -> None:
    answer = server.client.get(path)
    assert answer.status_code == 404
    assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


def test_the_policy_allows_only_files_of_the_server(server: Server) -> None:
    for path in ("/", "/page/main.js"):
        policy = server.client.get(path).headers["content-security-policy"]
        rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
        assert rules["default-src"] == "'none'"
        assert rules["script-src"] == rules["style-src"] == rules["connect-src"] == "'self'"
        assert rules["frame-ancestors"] == rules["base-uri"] == rules["form-action"] == "'none'"
        assert "unsafe" not in policy


def test_nothing_stands_in_the_page_that_its_policy_forbids() -> None:
    assert not re.search(r"<script(?![^>]*\bsrc=)|<style|\sstyle=|\son\w+=|javascript:", HTML)
    sinks = (
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function|DOMParser"
    )
    for name, text in SCRIPTS.items():
        assert not re.search(sinks, text), name


def test_no_file_names_another_host() -> None:
    for name, text in FILES.items():
        urls = re.findall(r"(?:https?:)?//[a-zA-Z][\w.-]+", text.replace(SVG_NAMESPACE, ""))
        assert not urls, f"{name}: {urls}"


def test_every_file_is_used_and_every_used_file_is_there() -> None:
    used = {"index.html", *re.findall(r'(?:src|href)="/page/([\w.]+)"', HTML)}
    for text in SCRIPTS.values():
        used |= set(re.findall(r'from "\./([\w.]+)"', text))
        used |= set(re.findall(r'"/page/([\w.]+)"', text))
    assert used == set(FILES)


def test_every_id_of_the_scripts_is_in_the_page() -> None:
    ids = re.findall(r'\sid="([\w-]+)"', HTML)
    assert len(ids) == len(set(ids))
    for name, text in SCRIPTS.items():
        for found in re.findall(r'\$\("([\w-]+)"\)', text):
            assert found in ids, f"{name}: {found}"
    icons = {one for text in SCRIPTS.values() for one in re.findall(r'icon(?:: |\()"(\w+)"', text)}
    assert {f"i-{one}" for one in icons} <= set(ids)


def test_labels_belong_to_controls() -> None:
    ids = set(re.findall(r'\sid="([\w-]+)"', HTML))
    for attribute in ("for", "aria-labelledby", "aria-describedby", "aria-controls"):
        named = {id for value in re.findall(f'{attribute}="([^"]+)"', HTML) for id in value.split()}
        assert named <= ids


def test_both_languages_have_the_same_words() -> None:
    english, chinese = words("en"), words("zh")
    assert list(english) == list(chinese) == sorted(english, key=str.lower)
    for key in english:
        names = [set(re.findall(r"\{(\w+)", one[key])) for one in (english, chinese)]
        assert names[0] == names[1], key


def test_every_word_is_known_and_used() -> None:
    asked = set(re.findall(r'data-t(?:-\w+)?="(\w+)"', HTML))
    for name, text in SCRIPTS.items():
        if name in ("en.js", "zh.js"):
            continue
        asked |= set(re.findall(r'\bt\(\s*"(\w+)"', text))
        # Keys that are chosen before they are looked up.
        asked |= {one for one in re.findall(r'"([a-z]\w*)"', text) if one in words("en")}
    asked |= {"note_image", "note_mask"}
    assert asked == set(words("en"))


def test_styles_have_a_dark_a_narrow_and_a_still_form() -> None:
    text = "".join(STYLES.values())
    for query in (
        "prefers-color-scheme: dark",
        "prefers-reduced-motion: reduce",
        "max-width: 56rem",
    ):
        assert query in text
    assert ":focus-visible" in text
