"""What a model folder says of itself: parts that are not of one model are refused in one line."""

from dataclasses import replace
from pathlib import Path

import pytest

from opensana.errors import WeightsError
from opensana.models.describe import describe
from opensana.pipeline import Sana
from tests import tiny

pytestmark = pytest.mark.usefixtures("one_thread")
OTHERS = {
    "learned variances": (
        {"transformer": tiny.transformer(replace(tiny.TRANSFORMER, out_channels=16))},
        "reads 8 channels and writes 16",
    ),
    "a latent of another width": (
        {"transformer": tiny.transformer(replace(tiny.TRANSFORMER, in_channels=4, out_channels=4))},
        "latents with 4 is needed, got 3 and 8",
    ),
    "a text of another width": (
        {"transformer": tiny.transformer(replace(tiny.TRANSFORMER, caption_channels=24))},
        "states have 16 channels, the transformer reads 24",
    ),
    "pictures with transparency": (
        {"autoencoder": tiny.autoencoder(replace(tiny.AUTOENCODER, in_channels=4))},
        "3 channels and latents with 8 is needed, got 4 and 8",
    ),
    "grey pictures": (
        {"autoencoder": tiny.autoencoder(replace(tiny.AUTOENCODER, in_channels=1))},
        "needed, got 1 and 8",
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_parts_that_do_not_fit_one_another_are_refused(name: str, tmp_path: Path) -> None:
    parts, line = OTHERS[name]
    folder = replace(tiny.sana(instruction="none"), **parts).save(tmp_path / "model")
    for read in (Sana.load, describe):
        with pytest.raises(WeightsError, match=line) as caught:
            read(folder, device="cpu")
        assert "\n" not in str(caught.value)
