"""Where the network runs and in which number format.

Also tests `runtime/placing.py`.
"""

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from opensana import device as device_module
from opensana.device import (
    format_bytes,
    free_memory,
    has_bfloat16,
    parse_bytes,
    parse_dtype,
    resolve_device,
    resolve_dtype,
)
from opensana.errors import ConfigError
from opensana.runtime.placing import part_dtype

REAL_SUPPORT = torch.cuda.is_bf16_supported
CPU, CUDA, MPS = (torch.device(name) for name in ("cpu", "cuda", "mps"))


@pytest.fixture(autouse=True)
def no_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.cuda, "device", lambda place: nullcontext())
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(device_module, "cpu_has_bfloat16", lambda: False)


def test_auto_takes_what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_device() == CPU
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert resolve_device() == MPS
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve_device() == CUDA


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cuda", "torch finds 0 CUDA devices; try auto"),
        ("cuda:3", "'cuda:3' is not there"),
        ("mps", "torch finds no Apple GPU"),
        ("cpuu", "did you mean 'cpu'"),
        ("cuda:x", "unknown device 'cuda:x'"),
        ("", "unknown device ''"),
    ],
)
def test_a_device_that_is_not_there_is_an_error(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        resolve_device(name)


@pytest.mark.parametrize("stored", [None, torch.float16, torch.bfloat16, torch.float32])
def test_a_plain_cpu_computes_in_float32(stored: torch.dtype | None) -> None:
    assert resolve_dtype(CPU, None, stored) == torch.float32
    assert resolve_dtype(CPU, "auto", stored) == torch.float32


def test_a_cpu_with_bfloat16_keeps_bfloat16_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device_module, "cpu_has_bfloat16", lambda: True)
    assert resolve_dtype(CPU, None, torch.bfloat16) == torch.bfloat16
    assert resolve_dtype(CPU, None, torch.float16) == torch.float32
    assert resolve_dtype(CPU, None, None) == torch.float32


def test_float16_on_a_cpu_is_refused() -> None:
    with pytest.raises(ConfigError, match="--dtype float32"):
        resolve_dtype(CPU, "fp16", torch.float16)
    assert resolve_dtype(CPU, "bfloat16", torch.float32) == torch.bfloat16


def test_a_gpu_computes_in_half_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    for stored in (torch.float16, torch.bfloat16):
        assert resolve_dtype(CUDA, None, stored) == stored
    assert resolve_dtype(CUDA) == resolve_dtype(CUDA, None, torch.float32) == torch.bfloat16
    assert resolve_dtype(CUDA, "float32", torch.float32) == torch.float32
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: False)
    for stored in (torch.bfloat16, torch.float32):
        assert resolve_dtype(CUDA, None, stored) == torch.float32
    assert resolve_dtype(CUDA, None, torch.float16) == torch.float16
    with pytest.raises(ConfigError, match="no bfloat16"):
        resolve_dtype(CUDA, "bf16")


def test_an_apple_gpu_computes_in_bfloat16_or_float32() -> None:
    assert resolve_dtype(MPS, None, torch.bfloat16) == torch.bfloat16
    assert resolve_dtype(MPS, None, torch.float16) == torch.float32
    assert resolve_dtype(MPS) == torch.float32


def test_dtype_names() -> None:
    assert parse_dtype("bf16") == parse_dtype("bfloat16") == torch.bfloat16
    with pytest.raises(ConfigError, match="did you mean 'float16'"):
        parse_dtype("flaot16")


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("4GiB", 4 * 2**30),
        ("800MB", 800_000_000),
        ("1.5 gib", 3 * 2**29),
        ("0.5TB", 500_000_000_000),
        ("2048KiB", 2**21),
        ("7B", 7),
    ],
)
def test_sizes_of_memory(text: str, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("4", "'4' is no size of memory; write it as 4GiB or 800MB"),
        ("4GBi", r"no size of memory \(did you mean '[GK]i?B'\?\); write"),
        ("GiB", "no size"),
        ("-4GiB", "no size"),
        ("1e9B", "no size"),
        ("", "no size"),
        ("9" * 40 + "GiB", "no size"),
        ("0GiB", "must be positive"),
        ("0.1B", "must be positive"),
    ],
)
def test_a_wrong_size_of_memory_says_how_to_write_it(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_bytes(text)


def test_sizes_are_shown_in_binary_units() -> None:
    assert [format_bytes(n) for n in (512, 3 * 2**20, 5 * 2**29)] == [
        "0.5 KiB",
        "3.0 MiB",
        "2.5 GiB",
    ]


def test_free_memory_is_a_positive_number_of_bytes() -> None:
    assert free_memory(CPU) > 2**20


def with_cards(monkeypatch: pytest.MonkeyPatch, *generations: int) -> None:
    """Let torch find CUDA cards of these generations (8 and newer multiply bfloat16)."""
    current = [0]

    class Chosen:
        def __init__(self, device: torch.device) -> None:
            self.index = current[0] if device.index is None else device.index

        def __enter__(self) -> None:
            self.before, current[0] = current[0], self.index

        def __exit__(self, *_: object) -> None:
            current[0] = self.before

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device", Chosen)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: current[0])
    monkeypatch.setattr(
        torch.cuda,
        "get_device_properties",
        lambda device: SimpleNamespace(major=generations[device]),
    )
    # An old card makes bfloat16 tensors all the same, and multiplies them by emulation.
    monkeypatch.setattr(torch.cuda, "_check_bf16_tensor_supported", lambda device: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", REAL_SUPPORT)


def test_emulated_bfloat16_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    with_cards(monkeypatch, 7)
    assert REAL_SUPPORT(), "torch says that a T4 has it"
    assert not has_bfloat16(CUDA)
    assert resolve_dtype(CUDA, None, torch.bfloat16) == torch.float32
    assert part_dtype(CUDA, torch.float16) == torch.float32
    with pytest.raises(ConfigError, match=r"no bfloat16 products.*emulate.*float32 or float16"):
        resolve_dtype(CUDA, "bfloat16")
    with_cards(monkeypatch, 9)
    assert resolve_dtype(CUDA, "bfloat16") == part_dtype(CUDA, torch.float16) == torch.bfloat16


@pytest.mark.parametrize(("first", "second"), [(7, 9), (9, 7)])
def test_the_card_asked_for_is_looked_at(
    monkeypatch: pytest.MonkeyPatch, first: int, second: int
) -> None:
    with_cards(monkeypatch, first, second)
    for index, generation in enumerate((first, second)):
        card = torch.device("cuda", index)
        assert has_bfloat16(card) == (generation >= 8)
        expected = torch.bfloat16 if generation >= 8 else torch.float32
        assert resolve_dtype(card, None, torch.bfloat16) == expected
    assert has_bfloat16(CUDA) == (first >= 8), "without an index it is the current one"
    assert torch.cuda.current_device() == 0


def test_cached_gpu_memory_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """After a picture torch holds most of a small card, and uses none of it."""
    card, asked = torch.device("cuda", 1), []

    def told(value: object) -> object:
        return lambda device: asked.append(device) or value

    monkeypatch.setattr(torch.cuda, "mem_get_info", told((100, 8000)))
    monkeypatch.setattr(torch.cuda, "memory_reserved", told(7000))
    monkeypatch.setattr(torch.cuda, "memory_allocated", told(3000))
    assert free_memory(card) == 4100
    assert asked == [card] * 3


def test_cached_memory_of_an_apple_gpu_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.mps, "recommended_max_memory", lambda: 8000)
    monkeypatch.setattr(torch.mps, "driver_allocated_memory", lambda: 7900)
    monkeypatch.setattr(torch.mps, "current_allocated_memory", lambda: 3000)
    assert free_memory(MPS) == 5000
    monkeypatch.setattr(torch.mps, "current_allocated_memory", lambda: 9000)
    assert free_memory(MPS) == 0


@pytest.mark.parametrize(
    ("statistics", "free"),
    [("anon 20\ninactive_file 60\nactive_file 7\n", 80), ("anon 20\n", 20), (None, 20)],
)
def test_files_once_read_are_free_memory_of_a_container(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, statistics: str | None, free: int
) -> None:
    (tmp_path / "max").write_text("100\n")
    (tmp_path / "current").write_text("80\n")
    if statistics is not None:
        (tmp_path / "memory.stat").write_text(statistics)
    groups = (
        (tmp_path / "none", "max", "current", "inactive_file"),
        (tmp_path, "max", "current", "inactive_file"),
    )
    monkeypatch.setattr(device_module, "_CGROUPS", groups)
    assert free_memory(CPU) == free
    (tmp_path / "max").write_text("max\n")
    assert free_memory(CPU) > 2**20, "no limit"
