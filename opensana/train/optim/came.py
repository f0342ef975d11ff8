"""CAME (arXiv 2307.02047): Adam's update from factored second moments, weighed by confidence.

Of a matrix's squared gradients only the running means of rows and of columns are kept (algorithm 2,
as in Adafactor), and again of the squared distance between an update and its running mean: where
the two disagree, the step is small. As Sana uses it, linear layers and 1x1 convolutions are
matrices; everything else keeps its second moment whole and has no confidence.

Rows may be sharded. A step then needs three sums over the processes, each of all parameters in one
message.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from opensana.train.engine.parallel import sum_of_shards
from opensana.train.engine.shards import is_sharded, local, rows_like


def is_factored(parameter: Tensor) -> bool:
    """A matrix, or the kernel of a 1x1 convolution."""
    return parameter.ndim == 2 or (parameter.ndim == 4 and parameter.shape[2:] == (1, 1))


@dataclass(frozen=True)
class Work:
    """One parameter in one step, as this process has it: all rows, or its own of a sharded one.

    `update` begins as the gradient. `rows` and `size` count the whole parameter.
    """

    parameter: Tensor
    update: Tensor
    state: dict[str, Tensor]
    rows: int
    size: int
    sharded: bool


class Came(torch.optim.Optimizer):
    """CAME with decoupled weight decay; `clip` bounds the root mean square of an update.

    A step uses the gradients' memory for the updates.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        *,
        lr: float,
        betas: tuple[float, float, float] = (0.9, 0.999, 0.9999),
        eps: tuple[float, float] = (1e-30, 1e-16),
        clip: float = 1.0,
        weight_decay: float = 0.0,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": eps, "clip": clip}
        super().__init__(parameters, {**defaults, "weight_decay": weight_decay})

    def fresh(self, parameter: Tensor) -> dict[str, Tensor]:
        """A parameter's state before its first step; rows are sharded as the parameter's are."""
        zeros = torch.zeros_like(parameter, requires_grad=False)
        if not is_factored(parameter):
            return {"mean": zeros, "square": torch.zeros_like(zeros)}
        rows, columns = parameter.shape[:2]
        state = {"mean": zeros}
        for prefix in ("", "residual_"):
            state[f"{prefix}row"] = rows_like(parameter, (rows,))
            state[f"{prefix}column"] = local(zeros).new_zeros(columns)
        return state

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        for group in self.param_groups:
            given = [parameter for parameter in group["params"] if parameter.grad is not None]
            _step(
                [self._work(p) for p in given if is_factored(p)],
                [self._work(p) for p in given if not is_factored(p)],
                group,
            )

    def _work(self, parameter: Tensor) -> Work:
        if not self.state[parameter]:
            self.state[parameter].update(self.fresh(parameter))
        assert parameter.grad is not None
        flat = (lambda t: t.flatten(1)) if is_factored(parameter) else (lambda t: t)
        state = {name: local(value) for name, value in self.state[parameter].items()}
        return Work(
            parameter=flat(local(parameter.data)),
            update=flat(local(parameter.grad)),
            state={**state, "mean": flat(state["mean"])},
            rows=parameter.shape[0] if parameter.ndim else 1,
            size=parameter.numel(),
            sharded=is_sharded(parameter),
        )


def _step(matrices: list[Work], others: list[Work], group: dict[str, Any]) -> None:
    (first, second, third), (eps, residual_eps) = group["betas"], group["eps"]

    # u = g / sqrt(second moment)
    _scale(matrices, "", second, lambda work: work.update.square().add_(eps), lambda w: w.update)
    for work in others:
        square = work.state["square"].lerp_(work.update.square().add_(eps), 1 - second)
        work.update.mul_(square.rsqrt())

    # u = u / max(1, rms(u) / clip), and its running mean m
    works = matrices + others
    totals = _summed([work.update.square().sum() for work in works], works)
    for work, total in zip(works, totals, strict=True):
        root_mean_square = (total / work.size).sqrt()
        work.update.div_((root_mean_square / group["clip"]).clamp_(min=1))
        work.state["mean"].lerp_(work.update, 1 - first)

    # The step is m; for matrices m / sqrt(running mean of (u - m)^2)
    for work in works:
        work.parameter.mul_(1 - group["lr"] * group["weight_decay"])
    _scale(
        *(matrices, "residual_", third),
        lambda work: (work.update - work.state["mean"]).square_().add_(residual_eps),
        lambda work: work.update.copy_(work.state["mean"]),  # nothing more is needed of u
    )
    for work in matrices:
        work.parameter.sub_(work.update, alpha=group["lr"])
    for work in others:
        work.parameter.sub_(work.state["mean"], alpha=group["lr"])


def _scale(
    works: Sequence[Work],
    prefix: str,
    beta: float,
    squared: Callable[[Work], Tensor],
    scaled: Callable[[Work], Tensor],
) -> None:
    """Take squares into the running means R of rows and C of columns; multiply by 1 / sqrt(V).

    V = R C / mean(R) is the matrix of rank one with these means.
    """
    columns, totals = [], []
    for work in works:
        squares = squared(work)
        row = work.state[f"{prefix}row"].lerp_(squares.mean(1), 1 - beta)
        columns.append(squares.sum(0))
        totals.append(row.sum())
    sums = _summed([*columns, *totals], works)
    for work, column_sum, total in zip(works, sums, sums[len(works) :], strict=False):
        row = work.state[f"{prefix}row"]
        column = work.state[f"{prefix}column"].lerp_(column_sum / work.rows, 1 - beta)
        scaled(work).mul_((row * work.rows / total).rsqrt()[:, None]).mul_(column.rsqrt())


def _summed(values: Sequence[Tensor], works: Sequence[Work]) -> list[Tensor]:
    """The sums over the processes of what each has for its rows, in one message."""
    if not any(work.sharded for work in works):
        return list(values)
    flat = sum_of_shards(torch.cat([value.flatten() for value in values]))
    parts = flat.split([value.numel() for value in values])
    return [part.view_as(value) for part, value in zip(parts, values, strict=True)]
