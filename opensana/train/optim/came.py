"""CAME (arXiv 2307.02047): Adam's update from factored second moments, weighed by confidence.

Of a matrix's squared gradients only the running means of rows and of columns are kept (algorithm 2,
as in Adafactor), and again of the squared distance between an update and its running mean: where
the two disagree, the step is small. As Sana uses it, linear layers and 1x1 convolutions are
matrices; everything else keeps its second moment whole and has no confidence.

Parameters of one shape make a step together, so that it takes few kernels. Rows may be sharded: a
step then needs three sums over the processes, each of all parameters in one message.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from opensana.train.engine import foreach
from opensana.train.engine.parallel import sum_of_shards
from opensana.train.engine.shards import is_sharded, local, rows_like

CACHED = 2**16  # elements


def is_factored(parameter: Tensor) -> bool:
    """A matrix, or the kernel of a 1x1 convolution."""
    return parameter.ndim == 2 or (parameter.ndim == 4 and parameter.shape[2:] == (1, 1))


@dataclass(frozen=True)
class Work:
    """The parameters of one shape in one step, as this process has them: all rows, or its own.

    `update` [n, ...] begins as their gradients. `rows` and `size` count one whole parameter.
    """

    parameters: list[Tensor]
    update: Tensor
    states: dict[str, list[Tensor]]
    rows: int
    size: int
    sharded: bool

    @property
    def updates(self) -> list[Tensor]:
        """The update of each parameter; a view."""
        return list(self.update.unbind())

    def follow(self, name: str, values: Tensor, weight: float) -> Tensor:
        """Take values [n, ...] into running means, which are returned as one tensor."""
        foreach.lerp_(self.states[name], list(values.unbind()), weight)
        return together(self.states[name])


class Came(torch.optim.Optimizer):
    """CAME with decoupled weight decay; `clip` bounds the root mean square of an update.

    A step may use the gradients' memory for the updates. Where `found_inf` is 1, parameters stay as
    they are, whatever the gradients hold; None is 0.
    """

    found_inf: Tensor | None = None

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
            matrices = self._works(p for p in given if is_factored(p))
            others = self._works(p for p in given if not is_factored(p))
            _step(matrices, others, group, self.found_inf)

    def _works(self, parameters: Iterable[Tensor]) -> list[Work]:
        alike: dict[object, list[Tensor]] = {}
        for parameter in parameters:
            if not self.state[parameter]:
                self.state[parameter].update(self.fresh(parameter))
            shape = parameter.shape[:2] if is_factored(parameter) else parameter.shape
            alike.setdefault((shape, is_sharded(parameter)), []).append(parameter)
        return [self._work(part) for group in alike.values() for part in _parts(group)]

    def _work(self, alike: list[Tensor]) -> Work:
        one = alike[0]
        here = [{n: local(v) for n, v in self.state[p].items()} for p in alike]
        means = [_flat(state["mean"]) if is_factored(one) else state["mean"] for state in here]
        return Work(
            parameters=[_flat(local(parameter.data)) for parameter in alike],
            update=together([_flat(local(_gradient(parameter))) for parameter in alike]),
            states={name: [state[name] for state in here] for name in here[0]} | {"mean": means},
            rows=one.shape[0] if one.ndim else 1,
            size=one.numel(),
            sharded=is_sharded(one),
        )


def _parts(alike: list[Tensor]) -> list[list[Tensor]]:
    """Parameters of one shape that make a step together: all, but on a CPU what its cache holds."""
    count = len(alike)
    if alike[0].device.type == "cpu":
        count = max(1, CACHED // max(1, local(alike[0]).numel()))
    return [alike[first : first + count] for first in range(0, len(alike), count)]


def together(tensors: list[Tensor]) -> Tensor:
    """[n, ...] of n tensors of one shape; a view of one alone."""
    return torch.stack(tensors) if len(tensors) > 1 else tensors[0][None]


def _flat(tensor: Tensor) -> Tensor:
    """The matrix that a factored tensor is; any other as it is."""
    return tensor.flatten(1) if is_factored(tensor) else tensor


def _gradient(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad


def _step(
    matrices: list[Work], others: list[Work], group: dict[str, Any], found_inf: Tensor | None
) -> None:
    (first, second, third), (eps, residual_eps) = group["betas"], group["eps"]
    works = matrices + others
    if not works:
        return

    # u = g / sqrt(second moment)
    _scale(matrices, "", second, lambda work: work.update.square().add_(eps))
    for work in others:
        square = work.follow("square", work.update.square().add_(eps), 1 - second)
        work.update.mul_(square.rsqrt())

    # u = u / max(1, rms(u) / clip), and its running mean m
    norms = torch.stack(foreach.norm([one for work in works for one in work.updates]))
    (totals,) = _summed([norms.square()], works)
    for work, total in zip(works, totals.split([len(w.update) for w in works]), strict=True):
        over = (total / work.size).sqrt_().div_(group["clip"]).clamp_(min=1)
        work.update.div_(over.view(-1, *[1] * (work.update.ndim - 1)))
        foreach.lerp_(work.states["mean"], work.updates, 1 - first)

    # The step is m; for matrices m / sqrt(running mean of (u - m)^2)
    def instability(work: Work) -> Tensor:
        foreach.sub_(work.updates, work.states["mean"])
        squares = work.update.square().add_(residual_eps)
        foreach.copy_(work.updates, work.states["mean"])  # nothing more is needed of u
        return squares

    _scale(matrices, "residual_", third, instability)
    for work in others:
        foreach.copy_(work.updates, work.states["mean"])
    decay = group["lr"] * group["weight_decay"]
    for work in works:
        kept = 1 - decay
        if found_inf is not None:
            work.update.masked_fill_(found_inf.bool(), 0)
            kept = 1 - decay * (1 - found_inf)
        if decay:
            foreach.mul_(work.parameters, kept)
        foreach.sub_(work.parameters, work.updates, alpha=group["lr"])


def _scale(
    works: Sequence[Work], prefix: str, beta: float, squared: Callable[[Work], Tensor]
) -> None:
    """Take squares into the running means R of rows and C of columns; multiply by 1 / sqrt(V).

    V = R C / mean(R) is the matrix of rank one with these means.
    """
    rows, columns, totals = [], [], []
    for work in works:
        squares = squared(work)
        rows.append(work.follow(f"{prefix}row", squares.mean(2), 1 - beta))
        columns.append(squares.sum(1))
        totals.append(rows[-1].sum(1, keepdim=True))
    sums = _summed([*columns, *totals], works)
    for work, row, column, total in zip(works, rows, sums, sums[len(works) :], strict=False):
        column = work.follow(f"{prefix}column", column / work.rows, 1 - beta)
        row = (row * work.rows / total).rsqrt()
        work.update.mul_(row[:, :, None]).mul_(column.rsqrt()[:, None])


def _summed(values: Sequence[Tensor], works: Sequence[Work]) -> list[Tensor]:
    """The sums over the processes of what each has for its rows, in one message."""
    if not any(work.sharded for work in works):
        return list(values)
    flat = sum_of_shards(torch.cat([value.flatten() for value in values]))
    parts = flat.split([value.numel() for value in values])
    return [part.view_as(value) for part, value in zip(parts, values, strict=True)]
