"""Figures of a model: reconstruction (paper 2.1) and following the prompt, on the emoji set."""

from pathlib import Path
from typing import Any

__all__ = ["evaluate_emoji"]


def evaluate_emoji(
    model: Any, data: str | Path, *, labels: int = 200, grid: str | Path | None = None
) -> dict[str, Any]:
    """The figures of a model on the emoji set, nested by name; see `opensana.evaluate.emoji`."""
    from opensana.evaluate.emoji import evaluate

    return evaluate(model, data, labels=labels, grid=grid)
