"""Optimisers: AdamW, CAME, and Muon for matrices with AdamW for the rest; schedule; exact state.

Muon (https://kellerjordan.github.io/posts/muon/) replaces a matrix's momentum by its nearest
semi-orthogonal matrix, found with a Newton-Schulz iteration. `torch.optim.Muon` iterates in
bfloat16, which a CPU without native bfloat16 runs hundreds of times slower, and takes only 2-D
parameters; this one iterates in bfloat16 on GPUs alone and sees 1x1 convolutions as matrices.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from opensana.device import has_bfloat16
from opensana.errors import CheckpointError
from opensana.train.engine import foreach
from opensana.train.engine.shards import resharded
from opensana.train.optim.came import Came
from opensana.train.recipe import OptimizerRecipe, Recipe, ScheduleRecipe

QUINTIC = (3.4445, -4.7750, 2.0315)
# First and last layers, embeddings and tables are matrices by shape but not by role.
NOT_MATRICES = (
    "encoder.conv_in.",
    "decoder.conv_in.",
    "encoder.conv_out.",
    "decoder.conv_out.",
    "patch_embed.",
    "time_embed.",
    "caption_projection.",
    "proj_out.",
    "scale_shift_table",
)


def is_matrix(name: str, parameter: Tensor) -> bool:
    """Whether Muon takes this parameter: a linear or 1x1 convolution weight of an inner layer."""
    shape = parameter.shape
    square_window = parameter.ndim == 2 or (parameter.ndim == 4 and shape[2:] == (1, 1))
    if not square_window or min(shape[0], shape[1]) < 2:
        return False
    return not any(part in name for part in NOT_MATRICES)


def orthogonalise(
    matrices: Tensor, *, steps: int, dtype: torch.dtype = torch.float32, eps: float = 1e-7
) -> Tensor:
    """The semi-orthogonal factors of [n, rows, columns], roughly: singular values near 1.

    The products are in `dtype`, and so is what is returned.
    """
    if matrices.shape[-2] > matrices.shape[-1]:
        return orthogonalise(matrices.mT, steps=steps, dtype=dtype, eps=eps).mT
    x = matrices / matrices.flatten(1).norm(dim=1).clamp(min=eps)[:, None, None]
    x = x.to(dtype)
    a, b, c = QUINTIC
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x


def iterated_in(device: torch.device) -> torch.dtype:
    """The number format of the iteration: bfloat16 where a CUDA GPU has it, as torch's own Muon."""
    half = device.type == "cuda" and has_bfloat16(device)
    return torch.bfloat16 if half else torch.float32


class Muon(torch.optim.Optimizer):
    """Muon with the update scaled to AdamW's usual root mean square, so that one rate fits both.

    Where `found_inf` is 1, parameters stay as they are, whatever the gradients hold; None is 0.
    """

    found_inf: Tensor | None = None

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        *,
        lr: float,
        momentum: float,
        weight_decay: float,
        steps: int,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "steps": steps}
        super().__init__(parameters, defaults)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        for group in self.param_groups:
            for alike in by_shape(p for p in group["params"] if p.grad is not None):
                self._move(alike, group)

    def _move(self, alike: list[Tensor], group: dict[str, Any]) -> None:
        """One step of all matrices of one shape together: batched products keep all cores busy."""
        rate, decay = group["lr"], group["lr"] * group["weight_decay"]
        gradients = torch.stack([g.flatten(1) for g in self._nesterov(alike, group["momentum"])])
        dtype = iterated_in(gradients.device)
        updates = orthogonalise(gradients, steps=group["steps"], dtype=dtype)
        kept = 1 - decay
        if self.found_inf is not None:
            updates = updates.masked_fill(self.found_inf.bool(), 0)
            kept = 1 - decay * (1 - self.found_inf)
        size = 0.2 * math.sqrt(max(gradients.shape[1:]))
        moves = [move.reshape(p.shape) for move, p in zip(updates, alike, strict=True)]
        if decay:
            foreach.mul_(alike, kept)
        foreach.add_(alike, moves, alpha=-rate * size)

    def _nesterov(self, alike: list[Tensor], momentum: float) -> Sequence[Tensor]:
        for parameter in alike:
            if not self.state[parameter]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        gradients = [parameter.grad for parameter in alike]
        buffers = [self.state[parameter]["momentum_buffer"] for parameter in alike]
        foreach.lerp_(buffers, gradients, 1 - momentum)
        return foreach.lerp(gradients, buffers, momentum)


def by_shape(parameters: Iterable[Tensor]) -> list[list[Tensor]]:
    """Parameters in groups of one shape as matrices, in order of appearance."""
    groups: dict[torch.Size, list[Tensor]] = {}
    for parameter in parameters:
        groups.setdefault(parameter.flatten(1).shape, []).append(parameter)
    return list(groups.values())


class Optimizers:
    """One or two torch optimisers over the trainable parameters, with state as named tensors."""

    def __init__(self, named: Mapping[str, nn.Parameter], recipe: OptimizerRecipe) -> None:
        self.names = {id(parameter): name for name, parameter in named.items()}
        self.parameters = list(named.values())
        self.name = recipe.name
        self.rest = recipe.rest if recipe.name == "muon" else 1.0
        matrices = [p for n, p in named.items() if recipe.name == "muon" and is_matrix(n, p)]
        taken = {id(parameter) for parameter in matrices}
        rest = [parameter for parameter in self.parameters if id(parameter) not in taken]
        common: dict[str, Any] = {"lr": recipe.lr, "weight_decay": recipe.weight_decay}
        self.parts: list[torch.optim.Optimizer] = []
        if matrices:
            options = {"momentum": recipe.momentum, "steps": recipe.orthogonal_steps}
            self.parts.append(Muon(matrices, **common, **options))
        if rest and recipe.name == "came":
            self.parts.append(Came(rest, **common, **vars(recipe.came)))
        elif rest:
            self.parts.append(_adamw(rest, recipe))

    def step(self, *, lr: float, found_inf: Tensor | None = None) -> None:
        """One step at a rate; where `found_inf` [] is 1.0, no parameter changes."""
        for part in self.parts:
            part.found_inf = found_inf  # pyright: ignore[reportAttributeAccessIssue]
            for group in part.param_groups:
                group["lr"] = lr if isinstance(part, Muon) else lr * self.rest
            part.step()

    def zero_grad(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None

    def state_tensors(self) -> dict[str, Tensor]:
        """All state as `parameter/slot` -> tensor; nothing else is needed to go on exactly."""
        return {
            f"{self.names[id(parameter)]}/{slot}": value
            for part in self.parts
            for parameter, state in part.state.items()
            for slot, value in state.items()
        }

    def load_state_tensors(self, tensors: Mapping[str, Tensor]) -> None:
        by_name = {
            self.names[id(p)]: (part, p)
            for part in self.parts
            for group in part.param_groups
            for p in group["params"]
        }
        for key in tensors:
            name, _, slot = key.rpartition("/")
            if name not in by_name:
                raise CheckpointError(
                    f"the checkpoint's optimiser state names '{name}', which this recipe does not"
                    " train; resume with the recipe of the checkpoint, or start a new run folder"
                )
            part, parameter = by_name[name]
            like = part.fresh(parameter)[slot] if isinstance(part, Came) else parameter
            part.state[parameter][slot] = resharded(tensors, key, like)


def base_rate(recipe: Recipe) -> float:
    """The learning rate after scaling: `lr * sqrt(batch / 256)` under `scale = "sqrt"`."""
    scaled = recipe.optimizer.scale == "sqrt"
    return recipe.optimizer.lr * (math.sqrt(recipe.batch / 256) if scaled else 1.0)


def rate_at(recipe: Recipe, step: int) -> float:
    """The learning rate of step `step` (0-based) of a recipe."""
    return learning_rate(step, lr=base_rate(recipe), steps=recipe.steps, schedule=recipe.schedule)


def learning_rate(step: int, *, lr: float, steps: int, schedule: ScheduleRecipe) -> float:
    """The rate of step `step` (0-based) of `steps`."""
    if step < schedule.warmup:
        return lr * (step + 1) / schedule.warmup
    progress = (step - schedule.warmup) / max(1, steps - schedule.warmup)
    fall = {
        "constant": 1.0,
        "linear": 1 - progress,
        "cosine": 0.5 * (1 + math.cos(math.pi * progress)),
    }[schedule.decay]
    if schedule.decay == "constant":
        return lr
    return lr * (schedule.final + (1 - schedule.final) * fall)


def _adamw(parameters: list[nn.Parameter], recipe: OptimizerRecipe) -> torch.optim.AdamW:
    decayed = [p for p in parameters if p.ndim >= 2]
    plain = [p for p in parameters if p.ndim < 2]
    groups = [
        {"params": decayed, "weight_decay": recipe.weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, lr=recipe.lr, betas=recipe.betas, eps=recipe.eps, fused=True)
