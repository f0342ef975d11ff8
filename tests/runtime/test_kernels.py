"""The convolution in C++ is the convolution: any size, any channels, and plain words without it."""

import copy
import os
import shutil
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from opensana.errors import ConfigError
from opensana.layers import Conv3x3
from opensana.runtime.kernels import COMPILERS, CompiledConv3x3, Kernel, build, compile_convolutions
from tests import tiny

needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, COMPILERS)), reason="no C++ compiler here"
)
SIDES, CHANNELS = st.integers(1, 21), st.integers(1, 70)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kernels")


@pytest.fixture(scope="module")
def kernel(folder: Path) -> Kernel:
    return build(folder)


def numbers(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def check(kernel: Kernel, x: Tensor, weight: Tensor, bias: Tensor | None, *, doubled: bool) -> None:
    wide = F.interpolate(x, scale_factor=2, mode="nearest") if doubled else x
    plain = None if bias is None else bias.double()
    expected = F.conv2d(wide.double(), weight.double(), plain, padding=1)
    made = kernel.convolve(x, kernel.pack(weight), len(weight), bias, doubled=doubled)
    assert made.shape == expected.shape
    assert (made - expected).abs().max() <= 2e-5 * expected.abs().max()


@needs_compiler
@settings(max_examples=60, deadline=None)
@given(SIDES, SIDES, st.integers(1, 3), CHANNELS, CHANNELS, st.booleans(), st.booleans())
def test_it_is_the_convolution(
    kernel: Kernel,
    height: int,
    width: int,
    batch: int,
    channels: int,
    out: int,
    biased: bool,
    doubled: bool,
) -> None:
    x, weight = numbers(batch, channels, height, width), numbers(out, channels, 3, 3, seed=1)
    check(kernel, x, weight, numbers(out, seed=2) if biased else None, doubled=doubled)


@needs_compiler
@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("doubled", [False, True])
def test_several_bands_and_threads_are_the_convolution(
    kernel: Kernel, doubled: bool, threads: int
) -> None:
    x, weight = numbers(2, 200, 61, 75), numbers(40, 200, 3, 3, seed=1)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        check(kernel, x, weight, numbers(40, seed=2), doubled=doubled)
    finally:
        torch.set_num_threads(before)


@needs_compiler
def test_any_memory_order_is_read(kernel: Kernel) -> None:
    x, weight = numbers(2, 40, 9, 24), numbers(5, 20, 3, 3, seed=1)
    check(kernel, x[:, ::2, 1:, ::3], weight, None, doubled=False)
    check(kernel, x[:, 20:].transpose(2, 3), weight, None, doubled=True)


@needs_compiler
@torch.no_grad()
def test_a_compiled_autoencoder_gives_the_same_pixels_and_state(folder: Path) -> None:
    plain = tiny.autoencoder()
    compiled = copy.deepcopy(plain)
    compile_convolutions(compiled, folder)
    kinds = [type(layer) for layer in compiled.modules()]
    assert CompiledConv3x3 in kinds and Conv3x3 not in kinds
    state = compiled.state_dict()
    assert list(state) == list(plain.state_dict())
    assert all(torch.equal(state[name], value) for name, value in plain.state_dict().items())
    latent = numbers(2, plain.latent_channels, 2, 3)
    expected = plain.decode(latent)
    assert (compiled.decode(latent) - expected).abs().max() <= 1e-5 * expected.abs().max()


@needs_compiler
def test_there_is_no_gradient_and_no_other_dtype(kernel: Kernel) -> None:
    layer = CompiledConv3x3(Conv3x3(4, 4), kernel)
    with pytest.raises(RuntimeError, match="no gradient"):
        layer(torch.randn(1, 4, 5, 5, requires_grad=True))
    with pytest.raises(RuntimeError, match=r"float32 on a CPU, got torch\.bfloat16"):
        layer(torch.randn(1, 4, 5, 5, dtype=torch.bfloat16))


@needs_compiler
def test_it_is_compiled_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    build(tmp_path / "new")
    [library] = (tmp_path / "new").iterdir()
    made = library.stat().st_mtime_ns
    build(tmp_path / "new")
    assert [library] == list((tmp_path / "new").iterdir()) and library.stat().st_mtime_ns == made
    monkeypatch.setattr("opensana.runtime.kernels.FLAGS", ("-std=c++17", "-O1", "-fopenmp",
                        "-fPIC", "-shared"))  # fmt: skip
    build(tmp_path / "new")
    assert len(list((tmp_path / "new").iterdir())) == 2


def test_without_a_compiler_it_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ConfigError, match=r"got none \(no-such-compiler\); install g\+\+"):
        build(tmp_path)
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match=r"got none \(c\+\+, g\+\+, clang\+\+\)"):
        build(tmp_path)


@pytest.mark.skipif(os.name != "posix", reason="needs a shell")
def test_what_the_compiler_says_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = tmp_path / "broken"
    compiler.write_text("#!/bin/sh\necho 'in x.cpp:' >&2\necho 'error: no OpenMP' >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    with pytest.raises(ConfigError, match="cannot compile the kernels: error: no OpenMP; name"):
        build(tmp_path)


def test_other_dtypes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="float32 on a CPU, got bfloat16 on cpu"):
        compile_convolutions(nn.Sequential(Conv3x3(4, 4)).bfloat16(), tmp_path)
