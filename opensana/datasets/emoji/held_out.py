"""What training never sees: combinations of things that it knows one by one, chosen by a hash."""

import hashlib
from itertools import combinations

from opensana.datasets.emoji.dataset import Record

ONE_IN = 10


def is_held_out_pair(one: Record, other: Record) -> bool:
    """Whether the two are never in one scene; the order does not matter."""
    first, second = sorted((one.hexcode, other.hexcode))
    return _one_in_ten(f"pair/{first}/{second}")


def is_held_out_colour(record: Record, colour: str) -> bool:
    """Whether a kind is never shown in a colour."""
    return _one_in_ten(f"colour/{record.hexcode}/{colour}")


def is_held_out_number(record: Record, number: int) -> bool:
    """Whether there are never so many of a kind; one alone is never held out."""
    return number > 1 and _one_in_ten(f"number/{record.hexcode}/{number}")


def is_held_out_language(record: Record, language: str) -> bool:
    """Whether a kind, known in English, is never named in another language."""
    return _one_in_ten(f"language/{record.hexcode}/{language}")


def held_out_parts(groups: list[tuple[Record, int, str | None]]) -> set[str]:
    """Which of pair, colour and number a scene of (kind, number, colour) holds out."""
    found = set[str]()
    for record, number, colour in groups:
        if is_held_out_number(record, number):
            found.add("number")
        if colour is not None and is_held_out_colour(record, colour):
            found.add("colour")
    if any(is_held_out_pair(a[0], b[0]) for a, b in combinations(groups, 2)):
        found.add("pair")
    return found


def _one_in_ten(text: str) -> bool:
    return hashlib.sha256(text.encode()).digest()[0] % ONE_IN == 0
