"""Where the network runs and in which number format."""

import pytest
import torch

from opensana import device as device_module
from opensana.device import (
    format_bytes,
    free_memory,
    parse_bytes,
    parse_dtype,
    resolve_device,
    resolve_dtype,
)
from opensana.errors import ConfigError

CPU, CUDA, MPS = (torch.device(name) for name in ("cpu", "cuda", "mps"))


@pytest.fixture(autouse=True)
def no_accelerator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
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


def test_a_gpu_computes_in_the_stored_format(monkeypatch: pytest.MonkeyPatch) -> None:
    for stored in (torch.float16, torch.bfloat16, torch.float32):
        assert resolve_dtype(CUDA, None, stored) == stored
    assert resolve_dtype(CUDA) == torch.bfloat16
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: False)
    assert resolve_dtype(CUDA, None, torch.bfloat16) == torch.float32
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
