"""torch.compile for drawing: block by block, since one compiled block serves all of them."""

import os
import shutil
import sys

from opensana.errors import ConfigError
from opensana.transformer.model import Stack


def compile_blocks(transformer: Stack) -> None:
    """Have the blocks compiled, in place, when they first run (a minute or more on a CPU).

    ConfigError where the compiler that torch needs is missing.
    """
    if transformer.patch_embed.proj.weight.device.type == "cpu":
        _check_compiler()
    for block in transformer.transformer_blocks:
        block.compile()


def _check_compiler() -> None:
    """What torch would say after the text was encoded, and in many lines."""
    usual = {"win32": "cl", "darwin": "clang++"}.get(sys.platform, "g++")
    name = os.environ.get("CXX", usual)
    if shutil.which(name) is None:
        raise ConfigError(
            f"compiling needs a C++ compiler, and there is no {name!r}: install one, name yours in "
            "CXX, or leave compile out"
        )
