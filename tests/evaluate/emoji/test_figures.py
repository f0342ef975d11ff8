"""The figures of a model on the emoji: which are measured, from what, and in which order.

Also tests `evaluate/emoji/counts.py`.
"""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from opensana.datasets.emoji.compose import Scene, compose
from opensana.datasets.emoji.dataset import EmojiData
from opensana.errors import DataError, RequestError
from opensana.evaluate import Counts
from opensana.evaluate.emoji import figures as emoji
from opensana.evaluate.emoji.colours import colour_questions
from opensana.evaluate.emoji.figures import measure_all, measure_drawing, open_or_prepare
from opensana.evaluate.emoji.nearest import Answers, caption_questions, label_questions
from opensana.evaluate.emoji.pairs import Pairs, pair_questions


class Identity(torch.nn.Module):
    """An autoencoder that keeps everything."""

    latent_channels = 8

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def encode(self, pixels: Tensor) -> Tensor:
        return pixels

    def decode(self, latent: Tensor) -> Tensor:
        return latent


def test_all_figures(data: EmojiData, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def draw(prompts: Sequence[str], seeds: Sequence[int]) -> list[Image.Image]:
        numbers = [int(prompt.split()[-1]) for prompt in prompts]
        return [Image.fromarray(compose(Scene((n,)), data.pictures)) for n in numbers]

    generation = measure_drawing(
        draw,
        data,
        counts=Counts(labels=3, colours=0, pairs=0, questions=0, languages=0),
        grid=tmp_path / "grid.png",
    )
    assert (generation.labels.pictures, generation.labels.top1) == (3, 1.0)
    assert generation.labels_among_all.top1 == 1
    assert generation.held_out_captions is not None
    assert generation.held_out_captions.top1 == 1
    assert generation.colours is generation.held_out_pairs is generation.training_pairs is None
    assert (tmp_path / "grid.png").exists()
    output = capsys.readouterr()
    assert output.out == ""
    assert "3/3 labels" in output.err


def test_a_perfect_drawer(crowd: EmojiData) -> None:
    scenes = {q.prompt: Scene((q.record.index,)) for q in label_questions(crowd, 16)}
    scenes |= {q.prompt: Scene((q.record.index,)) for q in caption_questions(crowd, 16)}
    for q in colour_questions(crowd, 20):
        scenes[q.prompt] = Scene((q.record.index,), q.background)
    for held_out in (True, False):
        scenes |= {q.prompt: q.scene for q in pair_questions(crowd, 10, held_out=held_out)}

    def draw(prompts: Sequence[str], seeds: Sequence[int]) -> list[Image.Image]:
        return [Image.fromarray(compose(scenes[prompt], crowd.pictures)) for prompt in prompts]

    figures = measure_drawing(draw, crowd, counts=Counts(16, 16, 20, 10, 0, 0))
    answers = Answers(pictures=16, top1=1.0, top5=1.0, error=0.0)
    assert figures.labels == figures.labels_among_all == figures.held_out_captions == answers
    assert figures.colours is not None
    assert (figures.colours.emoji.pictures, figures.colours.emoji.top1) == (20, 1)
    assert figures.held_out_pairs == figures.training_pairs == Pairs(10, 1.0, 1.0)


@pytest.mark.parametrize("counts", [{"labels": 0}, {"captions": -1}, {"pairs": -5}])
def test_counts_that_cannot_be(counts: dict[str, int]) -> None:
    with pytest.raises(RequestError, match=f"{next(iter(counts))} must be [01] or more, got"):
        Counts(**counts)


def test_an_autoencoder_alone_draws_nothing(data: EmojiData) -> None:
    figures = asdict(measure_all(Identity(), data))  # type: ignore[arg-type]
    assert figures["generation"] is None
    assert figures["reconstruction_held_out"]["psnr"] == 100
    assert 5 < figures["linear_code_held_out"]["psnr"] < 60


def test_a_missing_set_is_prepared_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    made: list[Path] = []
    monkeypatch.setattr(emoji, "prepare", made.append)
    open_or_prepare(tmp_path / "missing")
    assert made == [tmp_path / "missing"]
    assert "fetching" in capsys.readouterr().err
    with pytest.raises(DataError, match="not a prepared emoji folder"):
        open_or_prepare(tmp_path)
