"""Fixed positions are made once for a picture, not in every step, and are the same numbers."""

import copy
import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel

from opensana.request import Request
from opensana.transformer import conditioning
from opensana.transformer.conditioning import KEPT_GRIDS, kept_positions, positions
from opensana.transformer.controlnet import ControlNet
from opensana.transformer.model import Transformer
from tests import tiny

PLACED = replace(tiny.TRANSFORMER, interpolation_scale=1.0)
OPTIONS: dict[str, Any] = {"base": 2, "interpolation": 1.0, "device": torch.device("cpu")}
FORWARD = pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")


@pytest.fixture(autouse=True)
def made(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, int]]]:
    """The grids whose positions are made from here on; none is kept from before."""
    grids: list[tuple[int, int]] = []

    def counted(height: int, width: int, *rest: Any, **options: Any) -> Tensor:
        grids.append((height, width))
        return positions(height, width, *rest, **options)

    monkeypatch.setattr(conditioning, "positions", counted)
    kept_positions.cache_clear()
    yield grids
    kept_positions.cache_clear()


def inputs(height: int = 2, width: int = 2, batch: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(4)
    latent = torch.randn(batch, 8, height, width, generator=generator)
    text = torch.randn(batch, 5, tiny.TEXT_WIDTH, generator=generator)
    return latent, torch.full((batch,), 300.0), text


def published(height: int, width: int, channels: int, *, base: int, scale: float) -> Tensor:
    """The published formula, every number by itself."""
    places = torch.empty(height, width, channels)
    half = channels // 2
    for axis, size in ((0, width), (1, height)):
        coordinates = torch.arange(size, dtype=torch.float32) / (size / base) / scale
        rates = [10000.0 ** -(i / (half / 2)) for i in range(half // 2)]
        for index, place in enumerate(coordinates.tolist()):
            table = [math.sin(place * r) for r in rates] + [math.cos(place * r) for r in rates]
            line = places[:, index, :half] if axis == 0 else places[index, :, half:]
            line[:] = torch.tensor(table)
    return places.flatten(0, 1)


@pytest.mark.parametrize("grid", [(2, 2), (3, 5), (16, 8), (1, 1), (64, 33)])
@pytest.mark.parametrize(("base", "scale"), [(2, 1.0), (64, 0.5), (64, 2.0)])
def test_they_are_those_of_the_published_formula(
    grid: tuple[int, int], base: int, scale: float
) -> None:
    options: dict[str, Any] = {"base": base, "interpolation": scale}
    plain = positions(*grid, 16, **options)
    kept = kept_positions(*grid, 16, **options, device=torch.device("cpu"))
    assert torch.equal(kept, plain)
    torch.testing.assert_close(
        plain, published(*grid, 16, base=base, scale=scale), rtol=0, atol=6e-8
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_second_step_draws_the_same_bits(dtype: torch.dtype) -> None:
    model = tiny.transformer(PLACED).to(dtype)
    latent, timestep, text = inputs()
    bare = model.patch_embed(latent.to(dtype))
    expected = (bare + positions(2, 2, 16, base=2, interpolation=1.0)).to(dtype)
    for _ in range(2):
        assert torch.equal(model._tokens(latent)[0], expected)
    assert torch.equal(model(latent, timestep, text), model(latent, timestep, text))


def test_a_picture_needs_them_once(made: list[tuple[int, int]]) -> None:
    sana = replace(tiny.sana(instruction="none"), transformer=tiny.transformer(PLACED))
    for request in (Request("a cat", steps=4, guidance=4.5), Request("a dog", steps=3, seed=2)):
        sana.generate(replace(request, width=128, height=64))
    assert made == [(2, 4)]
    control = ControlNet.of(sana.transformer, 1)
    controlled = replace(sana, controlnet=control)
    controlled.generate("a cat", steps=2, control_image=Image.new("RGB", (64, 64)))
    assert made == [(2, 4), (2, 2)], "one for both networks"


def test_a_server_of_many_sizes_keeps_few(made: list[tuple[int, int]]) -> None:
    model = tiny.transformer(PLACED)
    for side in range(1, 9):
        latent, timestep, text = inputs(side, side)
        for _ in range(3):
            model(latent, timestep, text)
    assert made == [(side, side) for side in range(1, 9)]
    assert kept_positions.cache_info().currsize <= KEPT_GRIDS


def test_what_inference_made_serves_training() -> None:
    latent, timestep, text = inputs()
    model = tiny.transformer(PLACED)
    with torch.inference_mode():
        drawn = model(latent, timestep, text)
    assert not kept_positions(2, 2, 16, **OPTIONS).is_inference()
    model.requires_grad_(True).train()
    out = model(latent.requires_grad_(), timestep, text)
    out.square().sum().backward()
    torch.testing.assert_close(out, drawn)
    assert all(p.grad is not None for p in model.parameters())


@FORWARD
def test_what_a_forward_derivative_made_serves_others() -> None:
    latent, timestep, text = inputs()
    model = tiny.transformer(PLACED)

    def slope() -> Tensor:
        with sdpa_kernel(SDPBackend.MATH):
            found: Any = torch.func.jvp(
                lambda x: model(x, timestep, text), (latent,), (torch.ones_like(latent),)
            )
        return found[1]

    first = slope()
    assert kept_positions.cache_info().currsize == 1
    assert torch.equal(slope(), first)
    model(latent, timestep, text)
    torch.func.vmap(lambda x: model._tokens(x[None])[0])(latent)
    kept = kept_positions(2, 2, 16, **OPTIONS)
    assert torch.equal(kept, positions(2, 2, 16, base=2, interpolation=1.0))


def test_no_module_carries_them() -> None:
    latent, timestep, text = inputs()
    model, fresh = tiny.transformer(PLACED), tiny.transformer(PLACED)
    out = model(latent, timestep, text)
    assert model.state_dict().keys() == fresh.state_dict().keys()
    assert not list(model.buffers())
    assert vars(model).keys() == vars(fresh).keys()
    assert torch.equal(copy.deepcopy(model)(latent, timestep, text), out)


def test_shapes_alone_are_enough() -> None:
    with torch.device("meta"):
        model = Transformer(PLACED)
        assert model(*(part.to("meta") for part in inputs(64, 64))).shape == (1, 8, 64, 64)
    latent, timestep, text = inputs()
    model(*(part.to("meta") for part in (latent, timestep, text)))
    assert kept_positions.cache_info().currsize == 0
    with torch.device("meta"):  # what is kept has numbers all the same
        assert tiny.transformer(PLACED)._tokens(torch.zeros(1, 8, 2, 2, device="meta"))[0].is_meta
    assert not kept_positions(2, 2, 16, **OPTIONS).is_meta


def test_fake_tensors_meet_no_kept_ones() -> None:
    latent, timestep, text = inputs()
    model = tiny.transformer(PLACED)
    expected = model(latent, timestep, text)
    with FakeTensorMode(allow_non_fake_inputs=False):
        fake = Transformer(PLACED)
        assert fake(*(torch.empty(part.shape) for part in inputs())).shape == expected.shape
    assert torch.equal(model(latent, timestep, text), expected)


@pytest.mark.filterwarnings("ignore")  # torch's own, of what it imports to compile
def test_compiled_they_are_part_of_the_one_graph() -> None:
    torch.compiler.reset()
    model = tiny.transformer(PLACED).requires_grad_(True)
    compiled = torch.compile(model._tokens, fullgraph=True, backend="aot_eager")
    for side in (2, 4, 3):
        latent, *_ = inputs(side, side)
        found, grid = compiled(latent)
        assert kept_positions.cache_info().currsize == 0
        torch.testing.assert_close(found, model._tokens(latent)[0])
        assert grid == (side, side)
        kept_positions.cache_clear()


def test_threads_draw_alike() -> None:
    model = tiny.transformer(PLACED)
    sizes = [(2, 2), (2, 4), (4, 2), (4, 4), (8, 2)] * 4
    expected = {size: model(*inputs(*size)) for size in set(sizes)}
    kept_positions.cache_clear()
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda size: model(*inputs(*size)), sizes))
    assert all(torch.equal(out, expected[size]) for out, size in zip(found, sizes, strict=True))
