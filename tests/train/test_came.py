"""CAME against its equations, written here as the paper writes them, one matrix at a time.

Also tests `train/optim/came.py`.
"""

import pytest
import torch
from torch import Tensor, nn

from opensana.train.optim import came
from opensana.train.optim.came import Came, is_factored
from opensana.train.optim.optimizers import Optimizers
from opensana.train.recipe import OptimizerRecipe
from opensana.transformer.model import Transformer, TransformerConfig
from tests.launches import Launches
from tests.train.conftest import TRANSFORMER

BETAS, EPS, CLIP, RATE = (0.9, 0.999, 0.9999), (1e-30, 1e-16), 1.0, 0.1


def rank_one(rows: Tensor, columns: Tensor) -> Tensor:
    """V = R C / (1^T R), of the sums of rows and columns (equation 4)."""
    return torch.outer(rows, columns) / rows.sum()


def reference(weight: Tensor, gradients: list[Tensor], decay: float = 0.0) -> Tensor:
    """Algorithm 2 for one matrix [n, m], in float64; CLIP is the paper's d."""
    (b1, b2, b3), (e1, e2) = BETAS, EPS
    theta, (n, m) = weight.double().clone(), weight.shape
    r, s = (torch.zeros(n, dtype=torch.float64) for _ in range(2))
    c, t = (torch.zeros(m, dtype=torch.float64) for _ in range(2))
    mean = torch.zeros_like(theta)
    for gradient in gradients:
        g = gradient.double()
        r = b2 * r + (1 - b2) * (g**2 + e1).sum(1)
        c = b2 * c + (1 - b2) * (g**2 + e1).sum(0)
        u = g / rank_one(r, c).sqrt()
        u = u / max(1.0, float(u.pow(2).mean().sqrt()) / CLIP)
        mean = b1 * mean + (1 - b1) * u
        instability = (u - mean) ** 2 + e2
        s = b3 * s + (1 - b3) * instability.sum(1)
        t = b3 * t + (1 - b3) * instability.sum(0)
        theta = theta - RATE * decay * theta - RATE * mean / rank_one(s, t).sqrt()
    return theta


def draws(shape: tuple[int, ...], count: int = 4) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(shape, generator=generator) for _ in range(count)]


def trained(weight: Tensor, gradients: list[Tensor], decay: float = 0.0) -> Tensor:
    parameter = nn.Parameter(weight.clone())
    optimizer = Came([parameter], lr=RATE, betas=BETAS, eps=EPS, clip=CLIP, weight_decay=decay)
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()
    return parameter.detach()


@pytest.mark.parametrize("decay", [0.0, 0.3])
@pytest.mark.parametrize("shape", [(5, 3), (2, 7), (1, 4)])
def test_a_matrix_follows_the_equations(shape, decay: float):
    weight, *gradients = draws(shape, 5)
    expected = reference(weight, gradients, decay)
    torch.testing.assert_close(
        trained(weight, gradients, decay).double(), expected, rtol=1e-4, atol=1e-4
    )


def test_a_1x1_convolution_is_its_matrix():
    weight, *gradients = draws((5, 3), 4)
    window = trained(weight[:, :, None, None], [g[:, :, None, None] for g in gradients])
    assert torch.equal(window[:, :, 0, 0], trained(weight, gradients))


@pytest.mark.parametrize("shape", [(6,), (4, 1, 3, 3)])
def test_others_are_adam_without_correction_or_confidence(shape):
    weight, *gradients = draws(shape, 4)
    (b1, b2, _), (e1, _) = BETAS, EPS
    theta, mean, square = weight.clone(), torch.zeros(shape), torch.zeros(shape)
    for g in gradients:
        square = b2 * square + (1 - b2) * (g**2 + e1)
        u = g / square.sqrt()
        mean = b1 * mean + (1 - b1) * u / max(1.0, float(u.pow(2).mean().sqrt()))
        theta = theta - RATE * mean
    torch.testing.assert_close(trained(weight, gradients), theta, rtol=1e-4, atol=1e-5)


def test_memory_is_that_of_one_momentum_and_a_few_rows():
    layer = nn.Linear(64, 32, bias=False)
    optimizer = Optimizers(dict(layer.named_parameters()), OptimizerRecipe(name="came"))
    layer(torch.ones(1, 64)).sum().backward()
    optimizer.step(lr=1e-3)
    assert sum(t.numel() for t in optimizer.state_tensors().values()) == 64 * 32 + 2 * (64 + 32)
    assert is_factored(layer.weight)


def test_it_learns():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 8), nn.SiLU(), nn.Linear(8, 1)), torch.randn(32, 4)
    optimizer = Optimizers(dict(model.named_parameters()), OptimizerRecipe(name="came"))
    wanted, first, loss = x.prod(1, keepdim=True), None, torch.zeros(())
    for _ in range(200):
        optimizer.zero_grad()
        loss = (model(x) - wanted).square().mean()
        first = float(loss.detach()) if first is None else first
        loss.backward()
        optimizer.step(lr=3e-3)
    assert first is not None and float(loss.detach()) < 0.5 * first


def together(count: int, shapes: list[tuple[int, ...]]) -> tuple[list[Tensor], list[Tensor]]:
    """Parameters of some shapes, `count` of each, after three steps: of all at once, and alone."""
    drawn = [draws(shape, 4 * count)[i::count] for shape in shapes for i in range(count)]
    parameters = [nn.Parameter(weight.clone()) for weight, *_ in drawn]
    optimizer = Came(parameters, lr=RATE, weight_decay=0.1)
    for step in range(3):
        for parameter, (_, *gradients) in zip(parameters, drawn, strict=True):
            parameter.grad = gradients[step].clone()
        optimizer.step()
    alone = [trained(weight, gradients, 0.1) for weight, *gradients in drawn]
    return [parameter.detach() for parameter in parameters], alone


SHAPES = [(6, 4), (6, 4, 1, 1), (4,), (4, 1, 3, 3), (), (3, 8)]


@pytest.mark.parametrize("cached", [1, 60, 10**6])
def test_parameters_of_one_shape_step_as_each_would_alone(monkeypatch, cached: int):
    """However many make a step together."""
    monkeypatch.setattr(came, "CACHED", cached)
    for one, other in zip(*together(3, SHAPES), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_kernels_are_of_shapes_not_of_parameters():
    """Four blocks take no more than two; a step of 0.6B is 479 kernels in place of 16,120."""
    counts = []
    for blocks in (2, 4):
        with torch.device("meta"):
            model = Transformer(TransformerConfig.from_dict({**TRANSFORMER, "num_layers": blocks}))
        for parameter in model.parameters():
            parameter.grad = torch.empty_like(parameter)
        optimizer = Came(model.parameters(), lr=RATE)
        with Launches() as seen:
            optimizer.step()
        made = sum(len(state) for state in optimizer.state.values())  # zeros, in the first step
        counts.append(seen.count - made)
    assert counts[0] == counts[1] < 500
