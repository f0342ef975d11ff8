"""Safetensors in the published layout: one file or shards with an index, fp16/bf16 variants.

Reading is strict and never unpickles; writing is atomic (temporary file, fsync, rename).
"""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from opensana.errors import WeightsError, near
from opensana.files.writing import read_json, write_atomic, write_json
from opensana.weights.formats import WHOLE, check_formats, format_of, widened

VARIANTS = ("fp16", "bf16")
BASE_NAMES = ("diffusion_pytorch_model", "model")
PICKLED = (".bin", ".ckpt", ".pt", ".pth")
KEYS_SHOWN = 3
Read = TypeVar("Read")
CPU = torch.device("cpu")


@dataclass(frozen=True)
class TensorInfo:
    """What a file's header says of one tensor."""

    shape: tuple[int, ...]
    dtype: str

    @property
    def size(self) -> int:
        return prod(self.shape)

    @property
    def bytes(self) -> int:
        bits = re.search(r"\d+", self.dtype)  # BOOL has none, and takes a byte
        return self.size * int(bits[0] if bits else 8) // 8


# ------------------------------------------------------------------ finding the files


def available_variants(folder: str | Path) -> list[str | None]:
    """The variants whose weights are in `folder`; None stands for the plain, full files."""
    return [v for v in (None, *VARIANTS) if _find(Path(folder), v) is not None]


def weight_files(folder_or_file: str | Path, *, variant: str | None = None) -> list[Path]:
    """The safetensors files of one model part, in the order of the index.

    Without `variant` the plain files are meant; where a folder holds one variant only, that one.
    """
    path = Path(folder_or_file)
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise WeightsError(f"weights: no file or folder {path}")
    found = _find(path, variant)
    if found is None and variant is None:
        others = available_variants(path)
        if len(others) == 1:
            return weight_files(path, variant=others[0])
        if others:
            names = " and ".join(str(v) for v in others)
            raise WeightsError(f"{path} holds the variants {names}: choose one with `variant`")
    if found is None:
        wanted = f" of variant {variant!r}" if variant else ""
        raise WeightsError(
            f"{path} holds no safetensors weights{wanted} (looked for {', '.join(BASE_NAMES)})"
            f"{pickle_note(path)}"
        )
    return _shards(found) if found.suffix == ".json" else [found]


def pickle_note(folder: Path) -> str:
    """`; x.bin may hold code ...` where a folder has pickles instead, or nothing."""
    found = sorted(p.name for p in folder.iterdir() if p.suffix.lower() in PICKLED)
    if not found:
        return ""
    return f"; {found[0]} may hold code and is never opened: get the safetensors files"


def _find(folder: Path, variant: str | None) -> Path | None:
    for base in BASE_NAMES:
        for name in _candidate_names(base, variant):
            if (folder / name).is_file():
                return folder / name
    return None


def _candidate_names(base: str, variant: str | None) -> list[str]:
    if variant is None:
        return [f"{base}.safetensors", f"{base}.safetensors.index.json"]
    return [
        f"{base}.{variant}.safetensors",
        f"{base}.safetensors.index.{variant}.json",
        f"{base}.{variant}.safetensors.index.json",
    ]


def _shards(index: Path) -> list[Path]:
    weight_map = _weight_map(index)
    shards = []
    for name in dict.fromkeys(weight_map.values()):
        if Path(name).name != name or not name.endswith(".safetensors"):
            raise WeightsError(f"{index}: {name!r} is not the name of a safetensors file")
        if not (index.parent / name).is_file():
            raise WeightsError(f"{index} names the shard {name}, which is missing: fetch it again")
        shards.append(index.parent / name)
    return shards


def _weight_map(index: Path) -> dict[str, str]:
    mapping = read_json(index).get("weight_map")
    if not isinstance(mapping, dict) or not mapping:
        raise WeightsError(f"{index}: `weight_map` is missing or empty")
    if not all(isinstance(name, str) for name in mapping.values()):
        raise WeightsError(f"{index}: `weight_map` must map tensor names to file names")
    return mapping


# ------------------------------------------------------------------ reading


def read_safetensors(
    folder_or_file: str | Path, *, variant: str | None = None
) -> dict[str, Tensor]:
    """Every tensor of one model part, on the CPU, in the stored dtype; float8 as bfloat16.

    WeightsError for a number format that is not read (`weights/formats.py`).
    """
    check_headers(read_headers(folder_or_file, variant=variant), where=folder_or_file)
    return _gather(folder_or_file, variant, lambda handle, key: widened(handle.get_tensor(key)))


def read_onto(
    device: torch.device,
    dtype: torch.dtype,
    folder_or_file: str | Path,
    *,
    variant: str | None = None,
) -> dict[str, Tensor]:
    """As `read_safetensors`, but straight onto a device, with all but whole numbers in `dtype`.

    There each tensor is looked at as it is stored, and the host waits once, for all: WeightsError
    for NaN and infinite values. No more is on the device than the result and one stored tensor.
    """
    check_headers(read_headers(folder_or_file, variant=variant), where=folder_or_file)
    largest: dict[str, Tensor] = {}

    def pick(handle: Any, key: str) -> Tensor:
        stored = widened(handle.get_tensor(key))
        if not stored.is_floating_point():
            return stored
        if stored.numel():
            largest[key] = _largest(stored)
        return stored.to(dtype)

    state = _gather(folder_or_file, variant, pick, device=device)
    _check_largest(largest, folder_or_file)
    return state


def read_headers(
    folder_or_file: str | Path, *, variant: str | None = None
) -> dict[str, TensorInfo]:
    """Shapes and dtypes of one model part, without reading its weights."""
    return _gather(folder_or_file, variant, _tensor_info)


def check_headers(headers: Mapping[str, TensorInfo], *, where: str | Path) -> None:
    """WeightsError for a tensor in a number format that is not read."""
    check_formats({key: info.dtype for key, info in headers.items()}, where=where)


def read_metadata(file: Path) -> dict[str, str]:
    """The texts in the header of one safetensors file."""
    try:
        with safe_open(file, framework="pt", device="cpu") as handle:
            return dict(handle.metadata() or {})
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightsError(f"{file} is damaged or incomplete ({error}): fetch it again") from error


def _gather(
    folder_or_file: str | Path,
    variant: str | None,
    pick: Callable[..., Read],
    *,
    device: torch.device = CPU,
) -> dict[str, Read]:
    state: dict[str, Read] = {}
    for file in weight_files(folder_or_file, variant=variant):
        for key, value in _read_one(file, pick, device):
            if key in state:
                raise WeightsError(f"{file}: the tensor {key!r} is also in another shard")
            state[key] = value
    _check_index(Path(folder_or_file), variant, state)
    return state


def _read_one(
    file: Path, pick: Callable[..., Read], device: torch.device
) -> Iterator[tuple[str, Read]]:
    try:
        with safe_open(file, framework="pt", device=str(device)) as handle:
            for key in handle.keys():  # noqa: SIM118 (the handle is no mapping)
                yield key, pick(handle, key)
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightsError(
            f"{file} is damaged or incomplete ({error}): fetch or export it again"
        ) from error


def _tensor_info(handle: object, key: str) -> TensorInfo:
    part = handle.get_slice(key)  # pyright: ignore[reportAttributeAccessIssue]
    return TensorInfo(tuple(part.get_shape()), str(part.get_dtype()))


def _check_index(path: Path, variant: str | None, state: Mapping[str, object]) -> None:
    """A shard without a tensor that the index promises is a damaged download."""
    found = _find(path, variant) if path.is_dir() else None
    if found is None or found.suffix != ".json":
        return
    lost = [key for key in _weight_map(found) if key not in state]
    if lost:
        raise WeightsError(f"{found}: {_some(lost)} named in the index, in none of the shards")


# ------------------------------------------------------------------ into a module


def load_into(
    module: nn.Module, state: Mapping[str, Tensor], *, where: str | Path, finite: bool = True
) -> None:
    """Strict load; the module may be on `meta`. Each problem names the file and the tensor.

    Without `finite` no value is looked at, so that mapped tensors are not read yet.
    """
    found = {k: TensorInfo(tuple(v.shape), format_of(v)) for k, v in state.items()}
    check_fit(module, found, where=where)
    if finite:
        check_finite(state, where=where)
    module.load_state_dict(dict(state), strict=True, assign=True)


def check_fit(module: nn.Module, headers: Mapping[str, TensorInfo], *, where: str | Path) -> None:
    """WeightsError for a name, shape or number format with which `load_into` would not work."""
    check_headers(headers, where=where)
    expected = module.state_dict()
    _check_keys(expected, headers, where)
    for key, found in headers.items():
        _check_tensor(key, found, expected[key], where)


def _check_keys(
    expected: Mapping[str, Tensor], state: Mapping[str, TensorInfo], where: str | Path
) -> None:
    missing = [key for key in expected if key not in state]
    unexpected = [key for key in state if key not in expected]
    problems = []
    if missing:
        problems.append(f"missing {_some(missing)}{near(missing[0], unexpected)}")
    if unexpected:
        problems.append(f"unexpected {_some(unexpected)}{near(unexpected[0], list(expected))}")
    if problems:
        raise WeightsError(f"{where}: the weights do not fit the model: {'; '.join(problems)}")


def _check_tensor(key: str, found: TensorInfo, expected: Tensor, where: str | Path) -> None:
    if found.shape != tuple(expected.shape):
        raise WeightsError(
            f"{where}: {key!r} has the shape {found.shape}, the model needs {tuple(expected.shape)}"
        )
    if expected.is_floating_point() and found.dtype in WHOLE:
        raise _whole(key, found, where)


def check_weights(headers: Mapping[str, TensorInfo], *, where: str | Path) -> None:
    """WeightsError where the weights of a module that a library builds are no plain numbers."""
    check_headers(headers, where=where)
    for key, found in headers.items():
        if found.dtype in WHOLE and found.dtype != "I64" and len(found.shape) > 1:
            raise _whole(key, found, where)


def _whole(key: str, found: TensorInfo, where: str | Path) -> WeightsError:
    return WeightsError(
        f"{where}: {key!r} is stored as {found.dtype}, whole numbers where the model has weights; "
        "get the model in bfloat16, float16, float32 or float8"
    )


def check_finite(state: Mapping[str, Tensor], *, where: str | Path) -> None:
    """Raise WeightsError for a tensor with a NaN or an infinity; a GPU is waited for once."""
    largest: dict[str, Tensor] = {}
    for key, tensor in state.items():
        if tensor.device.type == "cuda" and tensor.is_floating_point() and tensor.numel():
            largest[key] = _largest(widened(tensor))
        elif not is_finite(tensor):
            raise _not_finite(key, where)
    _check_largest(largest, where)


def _largest(tensor: Tensor) -> Tensor:
    """The largest number without its sign, as float32; NaN if there is one. Nothing waits."""
    return torch.linalg.vector_norm(tensor, torch.inf).float()


def _check_largest(largest: Mapping[str, Tensor], where: str | Path) -> None:
    if largest:
        finite = torch.stack(list(largest.values())).isfinite().tolist()
        for key, good in zip(largest, finite, strict=True):
            if not good:
                raise _not_finite(key, where)


def _not_finite(key: str, where: str | Path) -> WeightsError:
    return WeightsError(f"{where}: {key!r} holds NaN or infinite values: the file is damaged")


def is_finite(tensor: Tensor) -> bool:
    """True if no value is NaN or infinite (one pass; only float8 is copied)."""
    if not tensor.is_floating_point() or tensor.numel() == 0 or tensor.is_meta:
        return True
    low, high = torch.aminmax(widened(tensor))
    return bool(torch.isfinite(low) and torch.isfinite(high))


def _some(keys: list[str]) -> str:
    shown = ", ".join(repr(key) for key in keys[:KEYS_SHOWN])
    rest = len(keys) - KEYS_SHOWN
    return f"{shown} and {rest} more" if rest > 0 else shown


# ------------------------------------------------------------------ writing


def write_safetensors(
    state: Mapping[str, Tensor],
    folder: str | Path,
    *,
    name: str = "diffusion_pytorch_model",
    variant: str | None = None,
    max_shard_bytes: float = 5e9,
    metadata: Mapping[str, str] | None = None,
) -> list[Path]:
    """Write the tensors to `folder` as one file, or as shards with an index if they are larger."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    header = {"format": "pt", **(metadata or {})}
    parts = _split(state, max_shard_bytes)
    stem = f"{name}.{variant}" if variant else name
    files = [folder / file for file in _part_names(stem, len(parts))]
    for file, part in zip(files, parts, strict=True):
        _write_part(part, file, header)
    index = folder / _candidate_names(name, variant)[1]
    if len(parts) > 1:
        write_json(index, _index(parts, files))
        files.append(index)
    _remove_stale(folder, stem, index, files)
    return files


def _part_names(stem: str, count: int) -> list[str]:
    if count == 1:
        return [f"{stem}.safetensors"]
    return [f"{stem}-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]


def _split(state: Mapping[str, Tensor], limit: float) -> list[dict[str, Tensor]]:
    parts: list[dict[str, Tensor]] = [{}]
    filled = 0
    for key, tensor in state.items():
        size = tensor.numel() * tensor.element_size()
        if parts[-1] and filled + size > limit:
            parts.append({})
            filled = 0
        parts[-1][key] = tensor
        filled += size
    return parts


def _index(parts: list[dict[str, Tensor]], files: list[Path]) -> dict:
    total = sum(t.numel() * t.element_size() for part in parts for t in part.values())
    names = {key: file.name for part, file in zip(parts, files, strict=True) for key in part}
    return {"metadata": {"total_size": total}, "weight_map": dict(sorted(names.items()))}


def _write_part(part: Mapping[str, Tensor], file: Path, metadata: Mapping[str, str]) -> None:
    tensors = {key: tensor.detach().cpu().contiguous() for key, tensor in part.items()}
    write_atomic(file, lambda temporary: save_file(tensors, temporary, metadata=dict(metadata)))


def _remove_stale(folder: Path, stem: str, index: Path, written: Iterable[Path]) -> None:
    """An older file or shard of the same name beside the new ones would be read instead of them."""
    shard = re.compile(re.escape(stem) + r"(-\d{5}-of-\d{5})?\.safetensors")
    keep = set(written)
    for file in folder.iterdir():
        if file not in keep and (file == index or shard.fullmatch(file.name)):
            file.unlink()
