"""Small emoji packages: the same members as the real ones, with painted pictures."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from opensana.datasets.emoji.compose import SIZE

COOK = "1F9D1-200D-1F373"
WOMAN = "1F469-200D-1F373"
WOMAN_DARK = "1F469-1F3FF-200D-1F373"
# hexcode, label, tags, group, subgroup
EMOJI = [
    ("1F34E", "red apple", ["apple", "fruit", "diet"], 4, 42),
    ("1F431", "cat face", ["cat", "pet"], 3, 34),
    ("1F408", "cat", ["pet"], 3, 34),
    ("2764", "red heart", ["love"], 0, 14),
    (COOK, "cook", ["chef"], 1, 25),
]
SHORTCODES = {
    "github": {"1F34E": "apple", "1F431": "cat", "2764": ["heart", "+1"]},
    "joypixels": {"1F34E": ["apple", "rosy_fruit"], "1F431": "kitty_face"},
}
KEYWORDS = {
    "\N{RED APPLE}": ["red_apple", "mac", "pet", "cat face", "rosy", ":)"],
    "\N{CAT FACE}": ["cat_face", "meow", "pet"],
    "\N{HEAVY BLACK HEART}\ufe0f": ["red_heart", "valentine"],
}
GROUPS = {
    "groups": {"0": "smileys", "1": "people", "3": "animals", "4": "food"},
    "subgroups": {"42": "food-fruit", "34": "animal-mammal", "14": "heart", "25": "person-role"},
}


def painted(colour: tuple[int, int, int], *, height: int = SIZE) -> bytes:
    """A square of one colour on transparent ground, as a picture file."""
    picture = np.zeros((height, SIZE, 4), dtype=np.uint8)
    picture[64:192, 64:192] = (*colour, 255)
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, format="WEBP", lossless=True)
    return buffer.getvalue()


@pytest.fixture(scope="session")
def picture_members() -> dict[str, bytes]:
    names = [
        "1f34e",
        "1f431",
        "1f408",
        "2764-fe0f",
        *(c.lower() for c in (COOK, WOMAN, WOMAN_DARK)),
    ]
    files = {
        f"package/assets/{name}.webp": painted((20 * index, 200 - 20 * index, 90))
        for index, name in enumerate(names)
    }
    files["package/assets/0031.webp"] = painted((1, 2, 3))  # no label: left out
    files["package/assets/1f408.webp"] = painted((250, 0, 0), height=264)
    return files


@pytest.fixture(scope="session")
def caption_members() -> dict[str, bytes]:
    names = ("hexcode", "label", "tags", "group", "subgroup")
    data: list[dict[str, object]] = [dict(zip(names, values, strict=True)) for values in EMOJI]
    dark = {"hexcode": WOMAN_DARK, "label": "woman cook: dark skin tone"}
    data.append({"hexcode": WOMAN, "label": "woman cook", "skins": [dark], "group": 1})
    members = {"package/en/data.json": data, "package/meta/groups.json": GROUPS}
    members |= {f"package/en/shortcodes/{name}.json": codes for name, codes in SHORTCODES.items()}
    members["package/dist/emoji-en-US.json"] = KEYWORDS
    return {name: json.dumps(value).encode() for name, value in members.items()}
