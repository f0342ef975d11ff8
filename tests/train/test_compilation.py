"""A compiled training step is one graph, and rounds in its backward pass what eager mode rounds.

Also tests `train/engine/compilation.py`.
"""

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor
from torch._functorch import config
from torch.nn.attention import SDPBackend, sdpa_kernel

from opensana.flow.consistency import change_along
from opensana.layers import relu_linear_attention
from opensana.models.load import load_transformer
from opensana.train.engine.compilation import compiled, exact_backward
from opensana.weights.locate import PRETRAINED
from tests import tiny
from tests.layers.test_linear_attention import ROUNDED, heads, quadratic

pytestmark = pytest.mark.filterwarnings("ignore")  # torch's own, of what it imports to compile
BFLOAT16 = torch.autocast("cpu", torch.bfloat16)


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    torch.compiler.reset()
    with config.patch(backward_pass_autocast="same_as_forward"):
        exact_backward()
        yield


def test_compiled_attention_keeps_its_sums_in_float32_both_ways() -> None:
    wide = [part.double().requires_grad_() for part in heads()]
    narrow = [part.requires_grad_() for part in heads()]
    # `fullgraph` is an error where the graph would break.
    attention = torch.compile(relu_linear_attention, fullgraph=True, backend="aot_eager")
    exact = quadratic(*wide)
    with BFLOAT16:
        out = attention(*narrow)
    direction = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).bfloat16()
    assert (out - exact).norm() < 1.05 * ROUNDED * exact.norm()
    found = torch.autograd.grad(out, narrow, direction)
    expected = torch.autograd.grad(exact, wide, direction.double())
    for ours, theirs in zip(found, expected, strict=True):
        assert (ours - theirs).norm() < 1.05 * ROUNDED * theirs.norm()


def test_a_compiled_step_in_bfloat16_is_the_eager_one() -> None:
    model = tiny.transformer(tiny.SPRINT).requires_grad_(True).train()
    x, sigma, scale = torch.randn(2, 8, 2, 2), torch.tensor([0.3, 0.7]), torch.tensor([4.5, 4.5])
    states = torch.randn(2, 5, tiny.TEXT_WIDTH)

    def gradients(*, compiled: bool) -> list[Tensor]:
        step = model.forward
        if compiled:
            step = torch.compile(step, fullgraph=True, backend="aot_eager")
        with BFLOAT16, sdpa_kernel(SDPBackend.MATH):
            out = step(x, sigma, states, guidance=scale)
        return [out, *torch.autograd.grad(out.square().sum(), list(model.parameters()))]

    for ours, theirs in zip(gradients(compiled=True), gradients(compiled=False), strict=True):
        assert (ours - theirs).norm() <= 1e-5 * theirs.norm()


def test_a_distillation_in_bfloat16_derives_forwards_near_float32() -> None:
    model = tiny.transformer(tiny.SPRINT)
    x, flow = torch.randn(2, 2, 8, 2, 2, generator=torch.Generator().manual_seed(2))
    text = model.prepare_text(torch.randn(2, 5, tiny.TEXT_WIDTH))
    sigma, scale = torch.tensor([0.3, 0.7]), torch.tensor([4.5, 4.5])

    def changes(*, half: bool) -> tuple[Tensor, Tensor]:
        with sdpa_kernel(SDPBackend.MATH), torch.autocast("cpu", torch.bfloat16, enabled=half):
            return change_along(
                lambda x, sigma: model.velocity(x, sigma, text, guidance=scale), x, sigma, flow
            )

    for ours, exact in zip(changes(half=True), changes(half=False), strict=True):
        assert 0 < (ours - exact).norm() < 0.03 * exact.norm()


@pytest.mark.slow  # a minute in the compiler
def test_compiled_gradients_of_emoji_256_in_bfloat16_are_as_near_to_float32_as_eager_ones() -> None:
    model = load_transformer(PRETRAINED / "emoji-256" / "transformer").float().requires_grad_(True)
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(8, model.config.in_channels, 8, 8, generator=generator)
    sigma = 1000 * torch.rand(8, generator=generator)
    states = torch.randn(8, 12, model.config.caption_channels, generator=generator)

    def gradient(velocity: Callable[..., Tensor], *, half: bool = True) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            out = velocity(x, sigma, model.prepare_text(states))
        found = torch.autograd.grad(out.float().square().mean(), list(model.parameters()))
        return torch.cat([part.flatten() for part in found])

    exact = gradient(model.velocity, half=False)
    eager = (gradient(model.velocity) - exact).norm()
    assert (gradient(compiled(model.velocity)) - exact).norm() <= 1.1 * eager  # not of NaN
