"""Evaluation: reconstruction (paper 2.1) and prompt following."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from opensana.evaluate.emoji.counts import Counts

__all__ = ["Counts", "evaluate_emoji", "evaluate_pictures"]


def evaluate_emoji(model: Any, data: str | Path, **options: Any) -> dict[str, Any]:
    """The metrics of a model on the emoji set, nested by name; see `evaluate.emoji.figures`."""
    from opensana.evaluate.emoji.figures import evaluate

    return evaluate(model, data, **options)


def evaluate_pictures(
    models: Sequence[str], pictures: str | Path, **options: Any
) -> dict[str, Any]:
    """The metrics of autoencoders on any pictures; see `opensana.evaluate.autoencoder`."""
    from opensana.evaluate.autoencoder import evaluate_pictures

    return evaluate_pictures(models, pictures, **options)
