"""What a PNG records of the picture in it, and whether the files given again are the same."""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opensana.errors import RequestError
from opensana.models.options import DEFAULT_MODEL

if TYPE_CHECKING:
    from PIL import Image

DIGEST = "_sha256"
FILES = ("image", "mask", "control_image", "lora")
"""Flags whose files a picture records by their digest."""


def digest(image: "Image.Image") -> str:
    """SHA-256 of the size and the pixels, by which a PNG remembers what it was drawn from."""
    size = f"{image.mode} {image.width} {image.height} ".encode()
    return hashlib.sha256(size + image.tobytes()).hexdigest()


def recorded(path: Path) -> dict[str, Any]:
    """Model, request and control scale that a PNG drawn by opensana records."""
    from opensana.drawing.picture import read_note, read_request

    note = read_note(path)
    scale = note.get("control_scale")
    own = {
        "model": note.get("model") or DEFAULT_MODEL,
        "control_scale": scale if isinstance(scale, float) else 1.0,
    }
    return asdict(read_request(path)) | own


def recorded_files(path: Path) -> dict[str, list[Any]]:
    """The digests of the files that a picture was drawn with, by their flags."""
    from opensana.drawing.picture import read_note

    note = read_note(path)
    return {name: each(note[name + DIGEST]) for name in FILES if name + DIGEST in note}


def recorded_scales(path: Path) -> list[float]:
    """How much of each LoRA."""
    from opensana.drawing.picture import read_note

    scales = each(read_note(path).get("lora_scale"))
    return [scale for scale in scales if isinstance(scale, float)]


def check_same(
    png: str, name: str, given: Sequence[tuple[Any, str]], wanted: Sequence[Any]
) -> None:
    """RequestError unless the files given with a flag, and their digests, are those of a PNG."""
    if len(given) != len(wanted):
        raise RequestError(f"{png} was drawn with {len(wanted)} {flag(name)}, got {len(given)}")
    for (path, digest), known in zip(given, wanted, strict=True):
        if digest != known:
            order = "; give them in its order" if digest in wanted else ""
            raise RequestError(f"{path} is not the {flag(name)} that {png} was drawn with{order}")


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def each(value: Any) -> list[Any]:
    """One thing, or all of several."""
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]
