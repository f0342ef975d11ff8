"""Quantised transformers: what stays, what is refused, and how far velocities are from float32."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from opensana.cli import main
from opensana.errors import ConfigError, WeightsError
from opensana.models.presets import TRANSFORMERS
from opensana.runtime import quantize as module
from opensana.runtime.kernels import COMPILERS
from opensana.runtime.placing import prepare_for_inference
from opensana.runtime.quantize import (
    KEPT,
    Quantization,
    check_device,
    check_shapes,
    dequantize,
    join_products,
    kept_because,
    quantizable,
    quantization_of,
    quantize,
    slower_here,
)
from opensana.transformer.model import Transformer
from tests import tiny

CPU = torch.device("cpu")
SCHEMES = [Quantization("w8a8"), Quantization("fp8"), Quantization("w8"), Quantization("w4", 4)]
BOUNDS = {"w8a8": 0.04, "fp8": 0.08, "w8": 0.04, "w4": 0.12}
"""Of a tiny network's velocity: the more channels, the less."""


def velocity(network: Transformer) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    latent = torch.randn(2, 8, 4, 3, generator=generator)
    text = torch.randn(1, 5, tiny.TEXT_WIDTH, generator=generator)
    prepared = network.fold(network.prepare_text(text))
    return network.velocity(latent, torch.tensor([300.0, 700.0]), prepared)


def relative(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def test_the_paper_s_exceptions_stay_and_all_else_is_quantised() -> None:
    network = tiny.transformer()
    quantize(network, Quantization("w8"))
    layers = (nn.Linear, nn.Conv2d)
    plain = [name for name, layer in network.named_modules() if isinstance(layer, layers)]
    assert all(kept_because(name) or name.endswith("conv_depth") for name in plain)
    assert {part for part in KEPT for name in plain if part in name} == set(KEPT)
    assert not list(quantizable(network))


@torch.no_grad()
@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda s: s.scheme)
@pytest.mark.parametrize("kind", [tiny.TRANSFORMER, tiny.SPRINT], ids=["flow", "normed"])
def test_velocities_are_near_those_of_float32(scheme: Quantization, kind: object) -> None:
    config = (
        tiny.TRANSFORMER
        if kind is tiny.TRANSFORMER
        else tiny.replace(tiny.SPRINT, guidance_embeds=False)
    )
    plain, network = tiny.transformer(config), tiny.transformer(config)
    quantize(network, scheme)
    assert quantization_of(network) == scheme
    bound = BOUNDS[scheme.scheme]
    assert relative(velocity(network), velocity(plain)) < bound
    prepare_for_inference(network, CPU, torch.float32)
    assert relative(velocity(network), velocity(plain)) < bound


@torch.no_grad()
@pytest.mark.parametrize("kernels", [False, True])
def test_joined_blocks_give_the_same_velocity_and_state(kernels: bool, tmp_path: Path) -> None:
    if kernels and not any(map(shutil.which, COMPILERS)):
        pytest.skip("no C++ compiler here")
    plain, network = tiny.transformer(), tiny.transformer()
    quantize(network, Quantization("w8a8"))
    state = {name: value.clone() for name, value in network.state_dict().items()}
    join_products(network, tmp_path if kernels else None)
    prepare_for_inference(network, CPU, torch.float32)
    assert relative(velocity(network), velocity(plain)) < 0.04
    found = network.state_dict()
    assert set(found) == set(state)
    assert all(torch.equal(found[name], value) for name, value in state.items())


@torch.no_grad()
@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda s: s.scheme)
def test_an_empty_network_takes_the_state_and_plain_layers_come_back(
    scheme: Quantization,
) -> None:
    network = tiny.transformer()
    quantize(network, scheme)
    with torch.device("meta"):
        other = Transformer(tiny.TRANSFORMER)
        quantize(other, scheme)
    other.load_state_dict(network.state_dict(), strict=True, assign=True)
    assert torch.equal(velocity(other.eval()), velocity(network))
    dequantize(other)
    assert quantization_of(other) is None
    assert list(other.state_dict()) == list(tiny.transformer().state_dict())
    assert relative(velocity(other), velocity(network)) < BOUNDS[scheme.scheme]


def test_settings_are_written_as_the_ecosystem_does_and_read_back(tmp_path: Path) -> None:
    for scheme in SCHEMES:
        written = json.loads(json.dumps(scheme.to_dict()))
        assert written["quant_method"] == "opensana"
        assert written["modules_to_not_convert"] == list(KEPT)
        assert Quantization.from_config(written, tmp_path) == scheme


@pytest.mark.parametrize("method", ["bitsandbytes", "torchao", "gguf", "svdquant"])
def test_what_others_quantised_is_refused_by_name(method: str, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=f"is quantised by {method}, which opensana does not"):
        Quantization.from_config({"quant_method": method}, tmp_path)


def test_wrong_use_is_one_line(tmp_path: Path) -> None:
    network = tiny.transformer()
    quantize(network, Quantization("w8"))
    with pytest.raises(ConfigError, match=r"quantised already \(w8\); name the plain one"):
        quantize(network, Quantization("w4"))
    with pytest.raises(ConfigError, match=r"unknown scheme 'w8a9' \(did you mean 'w8a8'\?\): "):
        Quantization.named("w8a9")
    with pytest.raises(ConfigError, match="on a CPU or on CUDA, got meta; use w8"):
        join_products(tiny.transformer().to("meta"))
    with pytest.raises(ConfigError, match="scheme"):
        Quantization.from_config({"quant_method": "opensana", "scheme": "w2"}, tmp_path)


def test_what_is_slower_here_is_said_with_both_times(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([0.002, 0.001, 0.001, 0.002, 0.5, 0.001])
    monkeypatch.setattr(module, "seconds", lambda run, device: next(times))
    said = slower_here(Quantization("w8"), 16, CPU, torch.float32)
    assert said == (
        "w8 saves memory here, not time: a product of 1024 tokens and 256 channels takes 2.0 ms in "
        "w8, 1.0 ms in float32"
    )
    assert slower_here(Quantization("w8a8"), 16, CPU, torch.float32) is None
    with pytest.raises(ConfigError, match="this processor has no fast kernel for w8a8; use w8"):
        slower_here(Quantization("w8a8"), 16, CPU, torch.float32)


@pytest.mark.parametrize(
    ("scheme", "capability", "wrong"),
    [
        ("w8a8", (7, 0), "capability 7.5 or more, this one has 7.0; use w8$"),
        ("w8a8", (7, 5), None),
        ("w8a8", (8, 6), None),
        ("fp8", (7, 0), "fp8 needs a GPU of compute capability 8.9 or more, .* 7.0; use w8$"),
        ("fp8", (8, 6), "8.9 or more, this one has 8.6; use w8a8$"),
        ("fp8", (8, 9), None),
        ("fp8", (9, 0), None),
        ("fp8", (12, 0), None),
        ("w8", (3, 5), None),
    ],
)  # fmt: skip
def test_what_a_card_multiplies(
    scheme: str, capability: tuple[int, int], wrong: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    if wrong is None:
        check_device(scheme, torch.device("cuda"))
        return
    with pytest.raises(ConfigError, match=wrong):
        check_device(scheme, torch.device("cuda"))


def test_fp8_is_for_cuda_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for device, other in (("cpu", "w8a8"), ("mps", "w8")):
        with pytest.raises(ConfigError, match=f"8-bit floats on CUDA .*got {device}; use {other}$"):
            check_device("fp8", torch.device(device))
    folder = tiny.sana(instruction="none").save(tmp_path / "tiny")
    line = ["generate", "x", "-m", str(folder), "--device", "cpu", "--quantize", "fp8"]
    assert main(line) == 2
    assert "got cpu; use w8a8" in capsys.readouterr().err


def test_a_gpu_s_products_take_sides_of_eight_and_sixteen() -> None:
    network = tiny.transformer()  # whose Mix-FFN has 40 channels
    quantize(network, Quantization("fp8"))
    check_shapes(network, CPU)
    with pytest.raises(ConfigError, match="multiples of 16, got conv_point with 16 x 40; use w8"):
        check_shapes(network, torch.device("cuda"))
    network = tiny.transformer()
    quantize(network, Quantization("w8a8"))
    check_shapes(network, torch.device("cuda"))


def test_every_published_shape_can_be_multiplied() -> None:
    for config in TRANSFORMERS.values():
        with torch.device("meta"):
            network = Transformer(tiny.replace(config, num_layers=1))
            quantize(network, Quantization("fp8"))
        check_shapes(network, torch.device("cuda"))
