"""Winograd's 3x3 convolution in C++ (winograd.cpp): faster than winograd.py, the same numbers.

Compiled on request, once per processor and compiler, and cached in a folder. For inference only, in
float32 on a CPU. `compile_convolutions` is applied from outside; the state-dict keys do not change.

B batch, C channels in, O out, H W size.
"""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import MutableMapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from opensana.errors import ConfigError
from opensana.layers.convolution import Conv3x3

SOURCES = Path(__file__).parent
SHARED = "lanes.h"
COMPILERS = ("c++", "g++", "clang++")
FLAGS = ("-std=c++17", "-O3", "-fopenmp", "-fPIC", "-shared")
ARM = ("aarch64", "arm64")
TAPS = 9


class Kernel:
    """The compiled functions of winograd.cpp."""

    def __init__(self, library: Path) -> None:
        loaded = ctypes.CDLL(str(library))
        loaded.winograd_panel.restype = ctypes.c_int64
        self.panel: int = loaded.winograd_panel()
        self._run = loaded.winograd_conv3x3
        self._run.argtypes = 4 * [ctypes.c_void_p] + 5 * [ctypes.c_int64] + 2 * [ctypes.c_int]

    def pack(self, weight: Tensor) -> Tensor:
        """Weight [O, C, 3, 3] to [panels, C, 9, panel], the order in which the kernel reads it."""
        missing = -len(weight) % self.panel
        padded = F.pad(weight.flatten(1), (0, 0, 0, missing))
        return padded.view(-1, self.panel, weight.shape[1], TAPS).permute(0, 2, 3, 1).contiguous()

    def convolve(
        self, x: Tensor, packed: Tensor, out: int, bias: Tensor | None, *, doubled: bool
    ) -> Tensor:
        """[B, C, H, W] to [B, out, H, W], or to twice the size if `doubled`; channels last."""
        if {x.dtype, packed.dtype} != {torch.float32} or x.device.type != "cpu":
            raise RuntimeError(f"compiled layers take float32 on a CPU, got {x.dtype} {x.device}")
        batch, channels, *size = x.shape
        height, width = (side * (2 if doubled else 1) for side in size)
        x = x.permute(0, 2, 3, 1).contiguous()
        made = x.new_empty(batch, height, width, out)
        pointers = [None if t is None else t.data_ptr() for t in (x, packed, bias, made)]
        sizes = (batch, height, width, channels, out)
        if self._run(*pointers, *sizes, doubled, torch.get_num_threads()):
            raise MemoryError(f"a convolution of {channels} channels at {width} x {height}")
        return made.permute(0, 3, 1, 2)


class CompiledConv3x3(nn.Module):
    """Conv3x3 for inference in float32 on a CPU."""

    packed: Tensor
    bias: Tensor | None

    def __init__(self, plain: Conv3x3, kernel: Kernel) -> None:
        super().__init__()
        self.kernel = kernel
        self.in_channels, self.out_channels = plain.in_channels, plain.out_channels
        packed = kernel.pack(plain.weight.detach())
        self.register_buffer("packed", packed, persistent=False)
        self.register_buffer("bias", None if plain.bias is None else plain.bias.detach())

    @property
    def weight(self) -> Tensor:
        """A plain copy of the weight, [O, C, 3, 3]."""
        plain = self.packed.permute(0, 3, 1, 2).flatten(0, 1)[: self.out_channels]
        return plain.reshape(-1, self.in_channels, 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to [B, O, H, W]."""
        return self._convolve(x, doubled=False)

    def doubled(self, x: Tensor) -> Tensor:
        """Nearest upsampling by 2, then the convolution: [B, C, H, W] to [B, O, 2H, 2W]."""
        return self._convolve(x, doubled=True)

    def _convolve(self, x: Tensor, *, doubled: bool) -> Tensor:
        if x.requires_grad:
            raise RuntimeError("a compiled layer has no gradient; train the plain model")
        return self.kernel.convolve(x, self.packed, self.out_channels, self.bias, doubled=doubled)

    def _save_to_state_dict(
        self, destination: MutableMapping[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        destination[prefix + "weight"] = self.weight
        super()._save_to_state_dict(destination, prefix, keep_vars)


def compile_convolutions(module: nn.Module, folder: Path) -> None:
    """Replace every Conv3x3 in `module` by its compiled form; the kernel is cached in `folder`.

    ConfigError if the module is not in float32 on a CPU, or if the kernel cannot be compiled.
    """
    first = next(module.parameters())
    if first.dtype != torch.float32 or first.device.type != "cpu":
        dtype = str(first.dtype).removeprefix("torch.")
        raise ConfigError(
            f"kernels are for float32 on a CPU, got {dtype} on {first.device}; leave kernels out"
        )
    _replace(module, build(folder))


def _replace(module: nn.Module, kernel: Kernel) -> None:
    for name, child in module.named_children():
        if isinstance(child, Conv3x3):
            setattr(module, name, CompiledConv3x3(child, kernel))
        else:
            _replace(child, kernel)


# ------------------------------------------------------------------ building


def build(folder: Path) -> Kernel:
    """The convolution for this processor; ConfigError if it cannot be compiled."""
    return Kernel(compiled("winograd", folder))


def compiled(name: str, folder: Path) -> Path:
    """name.cpp for this processor, compiled if not in `folder` yet; ConfigError on failure."""
    asked = os.environ.get("CXX")
    compiler = next(filter(None, map(shutil.which, [asked] if asked else COMPILERS)), None)
    if compiler is None:
        raise ConfigError(
            f"kernels need a C++ compiler, got none ({asked or ', '.join(COMPILERS)}); "
            "install g++, name another in CXX, or leave kernels out"
        )
    native = "-mcpu=native" if platform.machine().lower() in ARM else "-march=native"
    command = [compiler, *FLAGS, native]
    # The predefined macros identify the compiler and the processor's instruction sets.
    macros = _output([*command, "-dM", "-E", "-x", "c++", os.devnull])
    source = SOURCES / f"{name}.cpp"
    texts = [file.read_text() for file in (source, SOURCES / SHARED)]
    known = "\n".join([*texts, *command, macros])
    library = folder / f"{name}-{hashlib.sha256(known.encode()).hexdigest()[:16]}.so"
    if not library.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".kernel-") as scratch:
            made = Path(scratch) / library.name
            _output([*command, str(source), "-o", str(made)])
            os.replace(made, library)
    return library


def _output(command: Sequence[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        fault = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr)
        raise ConfigError(
            f"{command[0]} cannot compile the kernels: {fault.strip()}; "
            "name another compiler in CXX, or leave kernels out"
        )
    return done.stdout
