"""A1111's text of a picture's settings, read back: what `drawing/picture.py` and others write.

The prompt, perhaps `Negative prompt: ...`, and a line of at least three `Name: value`, where a
value with a comma, a colon or a line break is quoted as JSON. A size WxH becomes two, as there.
"""

import json
import re

NEGATIVE = "Negative prompt:"
LEAST = 3
"""Fewer pairs than that on the last line, and it belongs to the prompt."""
PAIR = re.compile(r'\s*(\w[\w \-/]*):\s*("(?:\\.|[^\\"])*"|[^,]*)(?:,|$)')
SIZE = re.compile(r"(\d+)x(\d+)")


def parse(text: str) -> dict[str, str]:
    """The settings by A1111's names, with `Prompt` and `Negative prompt`; never an error."""
    *lines, last = text.strip().split("\n")
    pairs = PAIR.findall(last)
    if len(pairs) < LEAST:
        lines, pairs = [*lines, last], []
    prompt, negative = _prompts(lines)
    found = {"Prompt": prompt, "Negative prompt": negative}
    for name, value in pairs:
        value = _unquoted(value.strip())
        size = SIZE.fullmatch(value)
        found |= {f"{name}-1": size[1], f"{name}-2": size[2]} if size else {name: value}
    return found


def _prompts(lines: list[str]) -> tuple[str, str]:
    for index, line in enumerate(lines):
        if line.strip().startswith(NEGATIVE):
            first = line.strip().removeprefix(NEGATIVE)
            negative = [first, *lines[index + 1 :]]
            return _joined(lines[:index]), _joined(negative)
    return _joined(lines), ""


def _joined(lines: list[str]) -> str:
    return "\n".join(line.strip() for line in lines)


def _unquoted(value: str) -> str:
    if not value.startswith('"'):
        return value
    try:
        return str(json.loads(value))
    except ValueError:
        return value
