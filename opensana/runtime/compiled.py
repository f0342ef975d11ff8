"""torch.compile for inference, block by block: the compiled code of one block serves all."""

import os
import shutil
import sys
from importlib.util import find_spec

import torch

from opensana.errors import ConfigError
from opensana.transformer.model import Stack


def compile_blocks(transformer: Stack, device: torch.device | None = None) -> None:
    """Mark the blocks for compilation, in place; it happens on their first run.

    `device` is where that will be, if they are not there yet. On a CPU it takes a minute or more.
    ConfigError if what torch compiles with is missing, a C++ compiler or for a GPU Triton: torch
    itself would fail only after the text was encoded.
    """
    kind = (device or transformer.patch_embed.proj.weight.device).type
    if kind == "cuda" and find_spec("triton") is None:
        raise ConfigError(
            "compiling for a GPU needs Triton, which this torch came without: install it, or leave "
            "compile out"
        )
    if kind == "cpu":
        usual = {"win32": "cl", "darwin": "clang++"}.get(sys.platform, "g++")
        name = os.environ.get("CXX", usual)
        if shutil.which(name) is None:
            raise ConfigError(
                f"compiling needs a C++ compiler, and there is no {name!r}: install one, name "
                "yours in CXX, or leave compile out"
            )
    for block in transformer.transformer_blocks:
        block.compile()
