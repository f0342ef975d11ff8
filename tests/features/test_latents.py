"""The cache of latents: written, read back, and refused where it does not fit.

Also tests `features/manifest.py` and `features/texts.py`.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from opensana.errors import DataError
from opensana.features.latents import Features, Sample, write_features
from opensana.features.manifest import tensor_hash
from opensana.features.texts import NULL, write_text

TEXT = {
    "text_encoder": "tiny",
    "text_encoder_hash": "abc",
    "instruction": "none",
    "max_tokens": 300,
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
            sample = Sample("apple", (0, 2), (None, 31.5), ("file", "vlm"))
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
    assert features.sample(0) == Sample("apple", (0, 2), (None, 31.5), ("file", "vlm"))
    assert features.caption(2) == "é f"
    assert features.caption(NULL) == ""
    assert features.latent_mean == (1.0, 1.0)
    assert features.latent_std == (1.0, 1.0)
    assert isinstance(features.texts.states, np.memmap)
    assert isinstance(features.latents[0], np.memmap)
    assert features.latents[0].dtype == np.float16


def test_latents_of_several_shapes(folder: Path) -> None:
    """Samples keep the order in which they came, whatever bucket each is in."""
    other = folder.with_name("buckets")
    shapes = [(2, 2, 3), (2, 4, 2), (2, 2, 3), (2, 4, 2), (2, 4, 2)]
    with write_features(other, keys=LATENT, text=folder.parent / "text") as writer:
        for index, shape in enumerate(shapes):
            sample = Sample(str(index), (index % 3,), (None,))
            writer.add(torch.full((1, *shape), float(index)), [sample])
    features = Features.open(other)
    assert features.buckets.tolist() == [0, 1, 0, 1, 1]
    assert [features.sample(index).key for index in range(5)] == list("01234")
    assert [features.shape_of(index) for index in range(5)] == shapes
    assert features.latent_shape == (2, 4, 2), "that of most samples"
    assert features.batch([4, 1], [0, 0])[0].unique(dim=0)[:, 0, 0, 0].tolist() == [1, 4]
    assert features.latent(2).max() == 2
    values = np.repeat(range(5), [6, 8, 6, 8, 8])
    assert features.latent_mean == pytest.approx((values.mean(),) * 2)
    assert features.latent_std == pytest.approx((values.std(),) * 2)
    assert sorted(path.name for path in other.glob("latents*")) == [
        "latents-2x3.npy",
        "latents-4x2.npy",
    ]
    with pytest.raises(DataError, match="several buckets"):
        features.batch([0, 1], [0, 0])


def test_a_cache_that_lost_a_part_is_refused(folder: Path) -> None:
    np.save(folder / "places.npy", np.zeros((5, 2), np.int32))
    with pytest.raises(DataError, match="incomplete"):
        Features.open(folder)
    manifest = folder / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"version": 2', '"version": 1'))
    with pytest.raises(DataError, match="its version is 1, expected 2"):
        Features.open(folder)
    manifest.write_text("{")
    with pytest.raises(DataError, match="damaged"):
        Features.open(folder)


def test_latents_beyond_float16_are_refused(folder: Path) -> None:
    other, sample = folder.with_name("other"), [Sample("x", (1,), (1.0,))]

    def fail() -> None:
        with write_features(other, keys=LATENT, text=folder.parent / "text") as writer:
            writer.add(torch.full((1, 2, 1, 1), 1e6), sample)

    with pytest.raises(DataError, match="scaling_factor"):
        fail()
    assert not other.exists()


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
        writer.add(torch.zeros(1, 2, 1, 1), [Sample("x", (1,), (1.0,))])
    assert list(Features.open(other).texts.captions) == ["a", "b c d", "é f"]


def test_a_failure_keeps_the_old_cache(folder: Path) -> None:
    def fail() -> None:
        with write_features(folder, keys={"autoencoder": "new"}, text=folder / "text") as writer:
            writer.add(torch.full((1, 2, 1, 1), float("nan")), [Sample("x", (1,), (1.0,))])

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
        Sample("x", (), ())
    with pytest.raises(DataError, match="finite"):
        Sample("x", (1,), (float("nan"),))
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
