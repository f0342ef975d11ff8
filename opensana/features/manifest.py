"""A cache's manifest: the keys of what it was made with, and the check of them."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from opensana.errors import DataError, near

VERSION = 2
MANIFEST = "manifest.json"
Keys = Mapping[str, Any]


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read the manifest of a cache; DataError if it is missing, damaged or of another version."""
    path = folder / MANIFEST
    if not path.exists():
        raise DataError(f"{folder} is not a feature cache; make one with `opensana encode`")
    try:
        manifest = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise DataError(f"{path} is damaged ({error}); encode it again") from error
    if manifest.get("version") != VERSION:
        found = manifest.get("version")
        raise DataError(
            f"{folder} is stale: its version is {found}, expected {VERSION}; encode it again"
        )
    return manifest


def write_manifest(folder: Path, values: Mapping[str, Any]) -> None:
    text = json.dumps({"version": VERSION, **values}, indent=2) + "\n"
    (folder / MANIFEST).write_text(text, "utf-8")


def check_keys(folder: Path, keys: Keys, expect: Keys) -> None:
    """DataError for the first key whose value is not the expected one."""
    for name, wanted in expect.items():
        if name not in keys:
            raise DataError(f"{folder} has no key {name!r}{near(name, keys)}")
        if keys[name] != wanted:
            raise DataError(
                f"{folder} is stale: its {name} is {keys[name]!r}, expected {wanted!r}; "
                "encode it again"
            )


def tensor_hash(tensors: Mapping[str, Tensor], *, prefix: str = "") -> str:
    """SHA-256 over names, dtypes, shapes and bytes of the tensors whose names start with `prefix`.

    With "encoder." cached latents stay valid when the decoder changes.
    """
    digest = hashlib.sha256()
    for name in sorted(name for name in tensors if name.startswith(prefix)):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
