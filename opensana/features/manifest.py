"""What a cache says of how it was made, and the refusal of one that was made otherwise."""

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
    """The manifest of a complete cache of this version; DataError for anything else."""
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
    """DataError that names the first key with another value than expected."""
    for name, wanted in expect.items():
        if name not in keys:
            raise DataError(f"{folder} has no key {name!r}{near(name, keys)}")
        if keys[name] != wanted:
            raise DataError(
                f"{folder} is stale: its {name} is {keys[name]!r}, expected {wanted!r}; "
                "encode it again"
            )


def tensor_hash(tensors: Mapping[str, Tensor], *, prefix: str = "") -> str:
    """SHA-256 over the names, types, shapes and bytes of the tensors below a prefix.

    With the prefix "encoder." a better decoder leaves cached latents valid.
    """
    digest = hashlib.sha256()
    for name in sorted(name for name in tensors if name.startswith(prefix)):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
