"""Device, dtype and free memory, by name.

On a CPU the default is float32, or bfloat16 if stored so and multiplied natively: without native
support half precision is hundreds of times slower there. On a CUDA GPU it is the stored dtype, and
bfloat16 for float32: products of float32 are ten times slower, and the weights may not fit.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from opensana.errors import ConfigError, near

if TYPE_CHECKING:
    import torch

DTYPE_NAMES = {
    "float32": "float32",
    "fp32": "float32",
    "bfloat16": "bfloat16",
    "bf16": "bfloat16",
    "float16": "float16",
    "fp16": "float16",
}
_UNITS = {"B": 1} | {
    f"{letter}{kind}": base**power
    for power, letter in enumerate("KMGT", start=1)
    for kind, base in (("B", 1000), ("iB", 1024))
}
_NATIVE_BFLOAT16 = ("amx_bf16", "avx512_bf16", "bf16", "sve_bf16")
_CGROUPS = (
    (Path("/sys/fs/cgroup"), "memory.max", "memory.current", "inactive_file"),
    (
        Path("/sys/fs/cgroup/memory"),
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
        "total_inactive_file",
    ),
)
"""A folder, its files with limit and usage, and the line of memory.stat with the page cache, which
counts as used but is freed on demand."""


def resolve_device(name: str = "auto") -> torch.device:
    """`auto` is the first available of cuda, mps, cpu; any other name must exist."""
    import torch

    if name == "auto":
        cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
        return torch.device("cuda" if cuda else "mps" if mps else "cpu")
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda", "mps") or (index and not index.isdecimal()):
        hint = near(kind, ("auto", "cpu", "cuda", "mps"))
        raise ConfigError(f"unknown device '{name}'{hint}; try auto, cpu, cuda, cuda:1 or mps")
    if kind == "cuda" and int(index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise ConfigError(
            f"device '{name}' is not there: torch finds {count} CUDA devices; try auto"
        )
    if kind == "mps" and not torch.backends.mps.is_available():
        raise ConfigError("device 'mps' is not there: torch finds no Apple GPU; try auto")
    return torch.device(name)


def resolve_dtype(
    device: torch.device, requested: str | None = None, stored: torch.dtype | None = None
) -> torch.dtype:
    """The dtype to compute in: the requested one if it can work, else the device's default."""
    import torch

    if requested not in (None, "auto"):
        dtype = parse_dtype(requested)
        if device.type == "cpu" and dtype == torch.float16:
            raise ConfigError(
                "float16 does not work on a CPU: it overflows and is hundreds of times slower; "
                "try --dtype float32 (float16 weights are converted)"
            )
        if device.type == "cuda" and dtype == torch.bfloat16 and not has_bfloat16(device):
            raise ConfigError(
                "this GPU has no bfloat16 products, it would emulate them, slowly; "
                "try --dtype float32 or float16"
            )
        return dtype
    wish = stored or torch.bfloat16
    if device.type == "cuda":
        half = torch.bfloat16 if has_bfloat16(device) else torch.float32
        return torch.float16 if wish == torch.float16 else half
    if device.type == "mps":
        return torch.bfloat16 if stored == torch.bfloat16 else torch.float32
    native = stored == torch.bfloat16 and has_bfloat16(device)
    return torch.bfloat16 if native else torch.float32


def faithful_dtype(
    device: torch.device, requested: str | None = None, stored: torch.dtype | None = None
) -> torch.dtype:
    """As `resolve_dtype`, but float32 stays float32: for features, and for what is measured."""
    import torch

    if requested is None and stored == torch.float32:
        return torch.float32
    return resolve_dtype(device, requested, stored)


def parse_dtype(name: str) -> torch.dtype:
    """`float32`, `bfloat16`, `float16` or their short names."""
    import torch

    if name not in DTYPE_NAMES:
        hint = near(name, DTYPE_NAMES)
        raise ConfigError(f"unknown dtype '{name}'{hint}; try float32, bfloat16 or float16")
    return getattr(torch, DTYPE_NAMES[name])


def has_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies bfloat16 natively; emulated products do not count."""
    import torch

    if device.type == "cuda":
        with torch.cuda.device(device):  # is_bf16_supported asks about the current device
            return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type != "cpu" or cpu_has_bfloat16()


def cpu_has_bfloat16() -> bool:
    """Whether this CPU has bfloat16 matrix instructions; emulated ones do not count."""
    import torch

    capabilities = getattr(torch.cpu, "get_capabilities", dict)()
    return any(capabilities.get(name, False) for name in _NATIVE_BFLOAT16)


def has_own_memory(device: torch.device) -> bool:
    """Whether the device computes in another memory than the host's."""
    return device.type not in ("cpu", "mps")


def sent(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Values on a device, in their own format; from the CPU to CUDA while the host goes on."""
    if device.type == "cuda" and values.device.type == "cpu":
        values = values.pin_memory()
    return values.to(device, non_blocking=has_own_memory(device))


def free_memory(device: torch.device) -> int:
    """Bytes that can still be allocated on the device, as reported by the system.

    GPU memory that torch has reserved but not allocated counts as free.
    """
    import torch

    if device.type == "cuda":
        held = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + held
    if device.type == "mps":
        used = torch.mps.current_allocated_memory()
        return max(0, torch.mps.recommended_max_memory() - used)
    return min([_free_system_memory(), *_free_in_cgroup()])


def to_host(*tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Tensors of one device on the CPU; from CUDA through pinned memory, with one wait for all."""
    import torch

    if tensors[0].device.type != "cuda":
        return tuple(x.cpu() for x in tensors)
    copied = tuple(x.to("cpu", non_blocking=True) for x in tensors)  # which is pinned
    torch.cuda.current_stream(tensors[0].device).synchronize()
    return copied


def parse_bytes(text: str) -> int:
    """Parse a size such as 4GiB, 1.5 GB or 800MB; the unit is required."""
    match = re.fullmatch(r"(\d{1,12}(?:\.\d{1,12})?)\s*([A-Za-z]+)", text.strip())
    units = {name.lower(): size for name, size in _UNITS.items()}
    if match is None or match[2].lower() not in units:
        hint = near(match[2], _UNITS) if match else ""
        raise ConfigError(f"{text!r} is no size of memory{hint}; write it as 4GiB or 800MB")
    size = int(float(match[1]) * units[match[2].lower()])
    if size < 1:
        raise ConfigError(f"a size of memory must be positive, got {text!r}")
    return size


def format_bytes(size: int) -> str:
    """A size for people, in binary units: 3.2 GiB."""
    for unit in ("GiB", "MiB"):
        if size >= _UNITS[unit]:
            return f"{size / _UNITS[unit]:.1f} {unit}"
    return f"{size / _UNITS['KiB']:.1f} KiB"


def _free_system_memory() -> int:
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    names = getattr(os, "sysconf_names", {})
    pages = next((n for n in ("SC_AVPHYS_PAGES", "SC_PHYS_PAGES") if n in names), None)
    if pages is None:
        raise ConfigError("this system does not tell how much memory is free")
    return os.sysconf(pages) * os.sysconf("SC_PAGE_SIZE")


def _free_in_cgroup() -> list[int]:
    """What a container's limit leaves; empty without a limit."""
    for folder, limit_file, used_file, cached in _CGROUPS:
        if (folder / limit_file).exists() and (folder / used_file).exists():
            limit = (folder / limit_file).read_text().strip()
            if limit.isdecimal():
                used = int((folder / used_file).read_text())
                stat = folder / "memory.stat"
                lines = stat.read_text().splitlines() if stat.exists() else []
                page_cache = dict(line.split()[:2] for line in lines).get(cached, 0)
                return [max(0, int(limit) - max(0, used - int(page_cache)))]
    return []
