"""Which emoji a drawing is nearest to, and the sheet that shows it.

Also tests `pictures/sheet.py`.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from opensana.datasets.emoji.compose import Scene, compose
from opensana.datasets.emoji.dataset import EmojiData
from opensana.evaluate.emoji import nearest as generation
from opensana.evaluate.emoji.nearest import (
    ask,
    caption_questions,
    drawer,
    judge,
    label_questions,
    references,
    save_sheet,
    shrink,
)
from opensana.pictures.sheet import contact_sheet
from tests import tiny


def drawn(data: EmojiData, index: int) -> Image.Image:
    return Image.fromarray(compose(Scene((index,)), data.pictures))


def test_shrinking_averages_areas() -> None:
    picture = np.zeros((128, 128, 3), dtype=np.uint8)
    picture[::2] = 255
    assert shrink(picture).tolist() == [0.5] * (64 * 64 * 3)
    assert shrink(np.zeros((96, 96, 3), dtype=np.uint8)).shape == (64 * 64 * 3,)


def test_the_right_emoji_is_the_nearest(data: EmojiData) -> None:
    known = references(data, data.vocabulary)
    wanted = data.vocabulary
    right = judge([drawn(data, record.index) for record in wanted], wanted, known)
    assert (right.pictures, right.top1, right.top5) == (5, 1.0, 1.0)
    assert right.error == 0
    wrong = judge([drawn(data, (record.index + 1) % 5) for record in wanted], wanted, known)
    assert wrong.top1 == 0
    assert wrong.error > 0


def test_a_sibling_is_right(data: EmojiData) -> None:
    siblings = [replace(record, family="one") for record in data.vocabulary[:2]]
    known = references(data, siblings + data.vocabulary[2:])
    assert judge([drawn(data, 1)], [siblings[0]], known).top1 == 1


def test_five_families_are_counted_not_five_pictures(
    data: EmojiData, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generation, "TOP", 2)
    same = [replace(record, family="one") for record in data.vocabulary[:4]]
    known = references(data, [*same, data.vocabulary[4]])
    assert judge([drawn(data, 0)], [data.vocabulary[4]], known).top5 == 1


def test_questions_are_the_same_each_time(data: EmojiData) -> None:
    questions = label_questions(data, 3)
    assert questions == label_questions(data, 3)
    assert len({question.prompt for question in questions}) == 3
    captions = caption_questions(data, 10)
    assert len(captions) == 5
    assert all(question.prompt.startswith("name") for question in captions)


def test_every_prompt_has_its_own_seed(data: EmojiData) -> None:
    seen: list[tuple[str, int]] = []
    progress: list[tuple[int, int]] = []

    def draw(prompts: Sequence[str], seeds: Sequence[int]) -> list[Image.Image]:
        seen.extend(zip(prompts, seeds, strict=True))
        return [drawn(data, int(prompt.split()[-1])) for prompt in prompts]

    questions = label_questions(data, 5) * 2
    known = references(data, data.vocabulary)
    answers, pictures = ask(
        draw, questions, known, report=lambda done, total: progress.append((done, total))
    )
    assert answers.top1 == 1
    assert len(pictures) == 10
    assert [seed for _, seed in seen] == list(range(10))
    assert progress == [(8, 10), (10, 10)]


def test_the_contact_sheet(data: EmojiData, tmp_path: Path) -> None:
    questions = label_questions(data, 5) * 6
    pictures = [drawn(data, question.record.index) for question in questions]
    sheet = contact_sheet(pictures[:25], [question.prompt for question in questions[:25]], side=64)
    assert sheet.size == (5 * 72 + 8, 5 * (64 + 28 + 8) + 8)
    save_sheet(tmp_path / "sheet.png", pictures, questions)
    with Image.open(tmp_path / "sheet.png") as saved:
        assert saved.format == "PNG"


def test_a_batch_draws_what_single_requests_draw() -> None:
    model = tiny.sana()
    defaults = replace(model.info.defaults, steps=3)
    model = replace(model, info=replace(model.info, defaults=defaults))
    prompts, seeds = ["a cat", "a much longer prompt", "ox"], [4, 5, 6]
    pictures = drawer(model)(prompts, seeds)
    for prompt, seed, picture in zip(prompts, seeds, pictures, strict=True):
        (single,) = model.generate(prompt, seed=seed, steps=3, guidance=defaults.guidance)
        difference = np.asarray(picture).astype(int) - np.asarray(single.image)
        assert np.abs(difference).max() <= 1
    larger = drawer(model, steps=1, size=2 * pictures[0].width)(prompts[:1], seeds[:1])
    assert larger[0].size == (2 * pictures[0].width, 2 * pictures[0].height)
