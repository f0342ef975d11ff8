import re

import pytest

from opensana.datasets.emoji.generator import Vocabulary
from opensana.datasets.emoji.scenes import Composition
from opensana.datasets.emoji.spoken import held_out_labels, spoken_prompts, spoken_scenes
from tests.datasets.emoji.vocabularies import small_vocabulary

VOCABULARY = Vocabulary(small_vocabulary())
RECORDS = VOCABULARY.data.records


def test_held_out_labels_are_in_no_training_caption() -> None:
    hidden = held_out_labels(VOCABULARY.data)
    assert sum(map(len, hidden.values())) > 10
    texts = [p.text for _, _, prompts in spoken_prompts(VOCABULARY.data) for p in prompts]
    texts += [text for _, text in spoken_scenes(VOCABULARY, 400, seed=1)]
    for language, known in hidden.items():
        for record, label in known:
            said = re.compile(rf"(?<![\w-]){re.escape(label)}(?!\d)")
            assert not any(said.search(text) for text in texts), (language, label)
            assert all(
                record != other or language != spoken
                for other, spoken, _ in spoken_prompts(VOCABULARY.data)
            )


def test_every_kind_is_known_by_its_character_and_weights_sum_to_one() -> None:
    found = list(spoken_prompts(VOCABULARY.data))
    assert sum(language == "emoji" for _, language, _ in found) == len(RECORDS)
    assert all(sum(p.weight for p in prompts) == pytest.approx(1) for *_, prompts in found)


def test_spoken_colours_are_not_held_out_ones() -> None:
    for scene, _ in spoken_scenes(VOCABULARY, 300, seed=2):
        assert isinstance(scene, Composition)
        assert not VOCABULARY.held_out(scene)
