"""What is decided by the kind of device, tested without a GPU: on fake tensors and stand-ins.

Also tests `models/memory.py`.
"""

from importlib.machinery import ModuleSpec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from opensana import device as devices
from opensana.drawing.job import make_job
from opensana.drawing.solving import encode
from opensana.errors import ConfigError, WeightsError
from opensana.features import blocks, encoders
from opensana.features.blocks import EncodeOptions, Settings, settings_on
from opensana.features.encoders import valid_states
from opensana.layers.mix_ffn import gated
from opensana.metrics.small_clip import shrunk
from opensana.models import load as loading
from opensana.models import open as opening
from opensana.models.load import Onto, load_autoencoder, load_transformer
from opensana.models.memory import memory_needed
from opensana.pictures.pixels import from_levels
from opensana.pipeline import Sana
from opensana.request import Request
from opensana.runtime import compiled
from opensana.runtime.compiled import compile_blocks
from opensana.runtime.fused_autoencoder import is_fused
from opensana.runtime.placing import place
from opensana.text.encoder import TextStates
from opensana.train.autoencoder.task import layout_on
from opensana.train.optim import optimizers
from opensana.train.optim.optimizers import iterated_in, orthogonalise
from opensana.train.transformer.task import plain_attention
from opensana.transformer.model import PreparedText
from opensana.weights.safetensors import read_safetensors, write_safetensors
from tests import tiny
from tests.launches import Launches, faked

CPU, CUDA, MPS = (torch.device(name) for name in ("cpu", "cuda", "mps"))


def test_an_apple_gpu_pools_what_divides_and_the_cpu_the_rest() -> None:
    with FakeTensorMode(), Launches() as seen:
        for side, pooled in ((64, 1), (65, 0)):
            seen.kernels.clear()
            made = shrunk(torch.empty(2, 3, side, side, device=MPS), 16)
            assert made.device.type == "mps" and made.shape == (2, 3, 16, 16)
            assert sum("pool" in name or "mean" in name for name in seen.kernels) == pooled
    pixels = torch.rand(1, 3, 50, 70)
    assert torch.equal(shrunk(pixels, 16), torch.nn.functional.adaptive_avg_pool2d(pixels, 16))


class OnApple(Tensor):
    """Has numbers, and says that they are on an Apple GPU."""

    @property
    def device(self) -> torch.device:  # pyright: ignore[reportIncompatibleVariableOverride]
        return MPS


@pytest.mark.parametrize(("kind", "own"), [(Tensor, True), (OnApple, False)])
def test_an_apple_gpu_gates_in_the_plain_form(kind: type[Tensor], own: bool) -> None:
    made = gated(torch.randn(1, 4, 2, 2).as_subclass(kind).requires_grad_())
    assert ("Gated" in type(made.grad_fn).__name__) == own


@pytest.mark.parametrize(
    ("device", "compile", "fused"), [(CPU, True, False), (CPU, False, True), (CUDA, True, True)]
)
def test_only_a_cpu_compiles_plain_attention(
    device: torch.device, compile: bool, fused: bool
) -> None:
    with plain_attention(compile, device):
        assert torch.backends.cuda.flash_sdp_enabled() == fused


def test_muon_iterates_in_bfloat16_on_a_gpu_that_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    found = {}
    for has in (True, False):
        monkeypatch.setattr(optimizers, "has_bfloat16", lambda _, has=has: has)
        found[has] = [iterated_in(device) for device in (CUDA, CPU, MPS)]
    assert found[True] == [torch.bfloat16, torch.float32, torch.float32]
    assert found[False] == [torch.float32] * 3


def test_muon_in_bfloat16_brings_singular_values_near_one() -> None:
    matrix = torch.randn(3, 24, 40, generator=torch.Generator().manual_seed(0))
    found = [
        torch.linalg.svdvals(orthogonalise(matrix, steps=5, dtype=dtype).float())
        for dtype in (torch.float32, torch.bfloat16)
    ]
    assert (found[0] - found[1]).abs().max() < 0.05
    assert found[1].min() > 0.5 and found[1].max() < 1.3


def test_encoding_fills_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "free_memory", lambda _: 80 << 30)
    monkeypatch.setattr(blocks.os, "cpu_count", lambda: 64)
    options = EncodeOptions(size=1024)
    assert settings_on(CPU, options) == Settings(batch=8, memory=4 << 30, threads=2)
    assert settings_on(CUDA, options) == Settings(batch=32, memory=40 << 30, threads=16)
    own = EncodeOptions(size=1024, batch=3, memory=99, threads=1)
    assert settings_on(CUDA, own) == settings_on(CPU, own) == Settings(3, 99, 1)


def test_an_autoencoder_trains_in_channels_last_on_cuda() -> None:
    for device, said, last in ((CPU, False, False), (CPU, True, True), (CUDA, False, True)):
        recipe: Any = SimpleNamespace(channels_last=said)
        assert (layout_on(device, recipe) == torch.channels_last) == last


def test_pictures_travel_as_bytes_to_a_gpu() -> None:
    with Launches() as seen:
        pixels = from_levels(np.zeros((2, 5, 7, 3), np.uint8), torch.device("meta"))
    assert pixels.dtype == torch.float32 and pixels.device.type == "meta"
    assert seen.uploads == ["_to_copy in flight"] and seen.uploaded == 2 * 5 * 7 * 3


def test_the_states_of_a_batch_are_one_copy_to_the_host() -> None:
    """Not one and a selection for each caption."""
    states = torch.empty(4, 6, 3, dtype=torch.bfloat16, device="meta")
    mask = torch.arange(6) < torch.tensor([1, 6, 3, 2])[:, None]
    with Launches() as seen:
        found = valid_states(TextStates(states, mask))
    assert seen.host_reads == ["cpu"] and seen.count == 0
    assert [rows.shape for rows in found] == [(1, 3), (6, 3), (3, 3), (2, 3)]
    assert all(rows.dtype == np.float32 for rows in found)


def test_cuda_encodes_by_a_fused_autoencoder_under_the_same_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny.sana(instruction="none").save(tmp_path / "tiny")
    monkeypatch.setattr(encoders, "load_text", lambda *_, **more: SimpleNamespace(model=None))
    monkeypatch.setattr(encoders, "settle_float32", lambda *_, **more: {})
    monkeypatch.setattr(encoders, "place", lambda module, device, dtype: module)
    monkeypatch.setattr(devices, "has_bfloat16", lambda _: True)
    made = []
    for device in (CPU, CUDA):
        monkeypatch.setattr(encoders, "resolve_device", lambda _, device=device: device)
        made.append(encoders.load_encoders(folder))
    assert [is_fused(one.autoencoder) for one in made] == [False, True]
    assert made[0].latent_keys() == made[1].latent_keys()


def test_compiling_for_a_gpu_needs_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    with FakeTensorMode():
        transformer: Any = faked(tiny.transformer())
    monkeypatch.setattr(compiled, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="needs Triton"):
        compile_blocks(transformer)
    monkeypatch.setattr(compiled, "find_spec", lambda name: ModuleSpec(name, None))
    marked: list[torch.nn.Module] = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda block: marked.append(block))
    compile_blocks(transformer)
    assert marked == list(transformer.transformer_blocks)


def test_the_text_encoder_may_run_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny.sana(instruction="none").save(tmp_path / "tiny")
    with pytest.raises(ConfigError, match="'cuda:9' is not there"):
        Sana.load(folder, device="cpu", text_device="cuda:9")
    monkeypatch.setattr(opening, "resolve_device", torch.device)
    sana = Sana.load(folder, device="meta", text_device="cpu", dtype="bfloat16")
    assert sana.text.device == CPU and sana.device.type == "meta"
    assert next(sana.text.model.parameters()).dtype in (torch.float32, torch.bfloat16)
    job = make_job(Request("a cat", seed=1, guidance=1.0), sana)
    [text] = encode(sana, job)
    assert isinstance(text, PreparedText)
    assert all(part.device.type == "meta" for block in text.separate for part in block)


@pytest.mark.parametrize(
    ("device", "options", "straight"),
    [
        (CUDA, {}, torch.bfloat16),
        (CUDA, {"dtype": "float16"}, torch.float16),
        (CUDA, {"quantize": "w8"}, None),
        (CUDA, {"offload": "text"}, None),
        (CPU, {}, None),
    ],
)
def test_cuda_gets_weights_from_the_files_unless_they_change(
    device: torch.device,
    options: dict[str, Any],
    straight: torch.dtype | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tiny.sana(instruction="none").save(tmp_path / "tiny")
    found: list[Onto | None] = []

    def load(*_: object, onto: Onto | None, **more: object) -> None:
        found.append(onto)
        raise InterruptedError

    monkeypatch.setattr(opening, "resolve_device", lambda _: device)
    monkeypatch.setattr(opening, "settle_float32", lambda *_, **more: {})
    monkeypatch.setattr(devices, "has_bfloat16", lambda _: True)
    monkeypatch.setattr(opening, "load_transformer", load)
    with pytest.raises(InterruptedError):
        Sana.load(folder, **options)
    assert found == [straight and Onto(device, straight)]


def test_weights_read_onto_a_device_are_those_that_were_placed(tmp_path: Path) -> None:
    folder = tiny.sana(instruction="none").save(tmp_path / "tiny")
    for load in (load_transformer, load_autoencoder):
        placed = place(load(folder), CPU, torch.bfloat16)
        straight = load(folder, onto=Onto(CPU, torch.bfloat16))
        expected, state = placed.state_dict(), straight.state_dict()
        assert expected.keys() == state.keys()
        assert all(torch.equal(state[name], weight) for name, weight in expected.items())
        assert not any(x.requires_grad for x in straight.parameters())


def test_wrong_weights_are_refused_before_they_are_on_the_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny.sana(instruction="none").save(tmp_path / "tiny")
    part = folder / "transformer"
    state = read_safetensors(part)
    state["proj_out.weigth"] = state.pop("proj_out.weight")
    write_safetensors(state, part)
    monkeypatch.setattr(loading, "read_onto", lambda *_, **more: pytest.fail("it was read"))
    with pytest.raises(WeightsError, match=r"did you mean 'proj_out\.weigth'"):
        load_transformer(folder, onto=Onto(CPU, torch.bfloat16))


def test_a_gpu_holds_both_halves_of_guidance() -> None:
    def denoising(device: torch.device, config: Any) -> int:
        parts = {"transformer": 1, "vae": 1}
        half = torch.bfloat16
        needed = memory_needed(
            parts, config, tiny.AUTOENCODER, main=half, others=half, device=device
        )
        return needed.denoising

    assert denoising(CUDA, tiny.TRANSFORMER) == 2 * denoising(CPU, tiny.TRANSFORMER)
    assert denoising(CUDA, tiny.SPRINT) == denoising(CPU, tiny.SPRINT)
