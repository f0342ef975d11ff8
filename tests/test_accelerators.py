"""No float64 reaches an accelerator: Apple's GPUs have none, others are slow at it.

Tensors on torch's `meta` device, which have shapes alone, stand for those of a GPU.
"""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from opensana.flow.edit import Start, from_picture
from opensana.flow.loss import flow_matching_loss
from opensana.flow.scm import scm_sigmas
from opensana.flow.solvers import SOLVERS, _timestep
from opensana.metrics.frechet import Moments
from opensana.metrics.small_clip import Clip, ClipConfig, contrastive_loss
from opensana.train.optim.optimizers import Optimizers
from opensana.train.recipe import OptimizerRecipe
from opensana.transformer.controlnet import Controlled, ControlNet
from opensana.transformer.model import Transformer
from tests import tiny

META = torch.device("meta")
PLACED = replace(tiny.TRANSFORMER, interpolation_scale=1.0)


class NoFloat64(TorchDispatchMode):
    """What makes a float64 tensor on an accelerator fails, as on an Apple GPU."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> object:
        out = func(*args, **(kwargs or {}))
        for part in tree_leaves(out):
            if isinstance(part, Tensor) and part.is_meta and part.dtype == torch.float64:
                raise TypeError(f"{func} makes float64 on an accelerator")
        return out


def latents(batch: int = 2) -> Tensor:
    return torch.empty(batch, 8, 2, 2, device=META)


def states() -> Tensor:
    return torch.empty(2, 5, tiny.TEXT_WIDTH, device=META)


def test_the_guard_works() -> None:
    with NoFloat64(), pytest.raises(TypeError, match="float64"):
        latents().double()


@pytest.mark.parametrize("config", [tiny.TRANSFORMER, PLACED, tiny.SPRINT])
def test_drawing(config: Any) -> None:
    network = Transformer(config).to(META).requires_grad_(False)
    guidance = torch.empty(2, device=META) if config.guidance_embeds else None
    with NoFloat64():
        text = network.fold(network.prepare_text(states()))
        levels = (solver.sigmas(4, 3.0) for solver in SOLVERS.values())
        for sigma in (*scm_sigmas(2), *(level for sigmas in levels for level in sigmas)):
            for truncated in (True, False):
                timestep = _timestep(sigma, latents(), truncated=truncated).expand(2)
                network.velocity(latents(), timestep, text, guidance=guidance)
        start = Start(latents(1), 0.5, torch.ones(2, 2, dtype=torch.bool, device=META))
        moved, x, _ = from_picture(start, lambda x, _: x, latents(), (1.0, 0.5, 0.0))
        assert moved(x, torch.tensor(0.0)).dtype == torch.float32
        autoencoder = tiny.autoencoder().to(META)
        assert autoencoder.decode(
            autoencoder.encode(torch.empty(1, 3, 64, 64, device=META))
        ).is_meta


def test_control() -> None:
    transformer = Transformer(PLACED)
    network = Controlled(transformer, ControlNet.of(transformer, 1)).to(META)
    with NoFloat64():
        prepared = network.prepare(states(), None, latents(1))
        assert network.velocity(latents(), torch.empty(2, device=META), prepared).is_meta


def test_training() -> None:
    network = Transformer(PLACED).to(META)
    optimizer = Optimizers(dict(network.named_parameters()), OptimizerRecipe(name="came"))
    with NoFloat64():
        text = network.prepare_text(states())
        sigma = torch.empty(2, device=META)
        loss = flow_matching_loss(
            lambda x, timestep: network.velocity(x, timestep, text), latents(), latents(), sigma
        )
        loss.mean().backward()
        optimizer.step(lr=1e-3)
    clip = Clip(ClipConfig()).to(META)
    with NoFloat64():
        logits = clip(
            torch.empty(2, 3, 64, 64, device=META),
            torch.empty(2, 5, 640, device=META),
            torch.ones(2, 5, dtype=torch.bool, device=META),
        )
        contrastive_loss(logits, torch.eye(2, device=META)).backward()


def test_a_frechet_distance_is_summed_in_float64_on_the_cpu() -> None:
    class OnAccelerator(Tensor):
        """Has numbers, but no float64 until it is on the CPU."""

        def double(self) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
            raise TypeError("cannot convert a MPS Tensor to float64")

        def cpu(self) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
            return self.as_subclass(Tensor)

    features = torch.randn(9, 4, generator=torch.Generator().manual_seed(0))
    ours, plain = Moments(), Moments()
    ours.add(features.as_subclass(OnAccelerator))
    plain.add(features)
    assert ours.covariance.dtype == torch.float64
    assert torch.equal(ours.covariance, plain.covariance)
