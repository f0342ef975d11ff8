from pathlib import Path

import numpy as np
import pytest
import torch

from opensana.data.features import (
    NULL,
    Features,
    Sample,
    Texts,
    tensor_hash,
    write_features,
    write_text,
)
from opensana.errors import DataError

TEXT = {
    "text_encoder": "tiny",
    "text_encoder_hash": "abc",
    "instruction": "none",
    "text_version": 1,
}
LATENT = {"autoencoder": "def", "resolution": 64}
STATES = [np.full((n, 4), n, dtype=np.float32) for n in (1, 3, 2)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    text = tmp_path / "text"
    with write_text(text, keys=TEXT, null=np.zeros((1, 4))) as writer:
        writer.add(["a", "b c d"], STATES[:2])
        writer.add(["é f"], STATES[2:])
    with write_features(tmp_path / "features", keys=LATENT, text=text) as latents:
        for value in (0.0, 2.0):
            sample = Sample({"emoji": [1]}, (0, 2), (1.0, 3.0))
            latents.add(torch.full((1, 2, 2, 3), value), [sample])
    return tmp_path / "features"


def test_a_batch_is_padded_to_its_longest(folder: Path) -> None:
    features = Features.open(folder)
    latents, states, mask = features.batch([1, 0, 1], [0, 1, NULL])
    assert latents.shape == (3, 2, 2, 3)
    assert latents.dtype == states.dtype == torch.float32
    assert latents[:, 0, 0, 0].tolist() == [2, 0, 2]
    assert mask.tolist() == [[True, False, False], [True, True, True], [True, False, False]]
    assert states[0, 0].tolist() == [1] * 4
    assert states[1].unique().tolist() == [3]
    assert states[~mask].abs().max() == 0


def test_what_it_says_of_itself(folder: Path) -> None:
    features = Features.open(folder)
    assert len(features) == 2
    assert features.latent_shape == (2, 2, 3)
    assert features.text_dim == 4
    assert features.captions_of(0) == ((0, 2), (0.25, 0.75))
    assert features.caption(2) == "é f"
    assert features.caption(NULL) == ""
    assert features.latent_mean == (1.0, 1.0)
    assert features.latent_std == (1.0, 1.0)
    assert isinstance(features.texts.states, np.memmap)


def test_a_stale_cache_names_the_key(folder: Path) -> None:
    assert Features.open(folder, expect={**TEXT, **LATENT}).keys["resolution"] == 64
    with pytest.raises(DataError, match="its autoencoder is 'def', expected 'new'"):
        Features.open(folder, expect={"autoencoder": "new"})
    with pytest.raises(DataError, match="its instruction"):
        Features.open(folder, expect={"instruction": "diffusers"})
    with pytest.raises(DataError, match="did you mean 'resolution'"):
        Features.open(folder, expect={"resolutio": 64})


def test_text_is_reused_by_another_autoencoder(folder: Path) -> None:
    other = folder.with_name("other")
    with write_features(other, keys={"autoencoder": "new"}, text=folder / "text") as writer:
        writer.add(torch.zeros(1, 2, 1, 1), [Sample({}, (1,), (1.0,))])
    assert Features.open(other).texts.captions == Texts.open(folder / "text").captions


def test_a_failure_keeps_the_old_cache(folder: Path) -> None:
    def fail() -> None:
        with write_features(folder, keys={"autoencoder": "new"}, text=folder / "text") as writer:
            writer.add(torch.full((1, 2, 1, 1), float("nan")), [Sample({}, (1,), (1.0,))])

    with pytest.raises(DataError, match="NaN"):
        fail()
    assert Features.open(folder).keys["autoencoder"] == "def"
    assert sorted(path.name for path in folder.parent.iterdir()) == ["features", "text"]


def test_states_beyond_float16_are_refused(tmp_path: Path) -> None:
    def fail() -> None:
        with write_text(tmp_path / "text", keys=TEXT, null=np.zeros((1, 4))) as writer:
            writer.add(["a"], [np.full((1, 4), 1e6)])

    with pytest.raises(DataError, match="float16"):
        fail()


def test_unusable_samples_and_ids_are_refused(folder: Path) -> None:
    with pytest.raises(DataError, match="at least one caption"):
        Sample({}, (), ())
    with pytest.raises(DataError, match="positive"):
        Sample({}, (1,), (0.0,))
    with pytest.raises(DataError, match="caption id 3"):
        Features.open(folder).batch([0], [3])
    with pytest.raises(DataError, match="not a feature cache"):
        Features.open(folder.parent)


def test_the_hash_of_an_encoder_ignores_the_decoder() -> None:
    one = {"encoder.a": torch.ones(2), "decoder.a": torch.ones(2)}
    other = {**one, "decoder.a": torch.zeros(2)}
    assert tensor_hash(one, prefix="encoder.") == tensor_hash(other, prefix="encoder.")
    assert tensor_hash(one) != tensor_hash(other)
    assert tensor_hash({"a": torch.ones(2)}) != tensor_hash({"a": torch.ones(1, 2)})
    assert tensor_hash({"a": torch.tensor(1.0)}) != tensor_hash({"a": torch.tensor(2.0)})
