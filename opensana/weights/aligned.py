"""Safetensors files whose data begin at an address that kernels want: mapped, not copied.

A mapped tensor at another address is copied when a model is placed, and what was read of the file
stays in memory beside the copy as long as any tensor is mapped.
"""

import shutil
from pathlib import Path

ALIGNMENT = 64
COPY_BYTES = 2**24


def align(source: Path, target: Path) -> None:
    """Copy a safetensors file and pad its header with spaces, so that the data are aligned.

    Every tensor is, if the bytes of each are a multiple of 64.
    """
    with source.open("rb") as old, target.open("wb") as new:
        header = old.read(int.from_bytes(old.read(8), "little"))
        spaces = -(8 + len(header)) % ALIGNMENT
        new.write((len(header) + spaces).to_bytes(8, "little") + header + b" " * spaces)
        shutil.copyfileobj(old, new, COPY_BYTES)
