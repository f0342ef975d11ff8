"""The number format of a training: what a device only emulates is refused, or not chosen.

Also tests `train/engine/precision.py`.
"""

from contextlib import nullcontext

import pytest
import torch

from opensana.errors import ConfigError
from opensana.train.engine.precision import best_format, check_dtype

CARD = torch.device("cuda", 0)


@pytest.mark.parametrize("native", [False, True])
def test_bfloat16_that_a_gpu_emulates_is_refused(
    autoencoder_recipe, monkeypatch: pytest.MonkeyPatch, native: bool
):
    def supported(including_emulation: bool = True) -> bool:
        return including_emulation or native

    monkeypatch.setattr(torch.cuda, "device", lambda place: nullcontext())
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    recipe = autoencoder_recipe(dtype="bfloat16")
    assert best_format(CARD) == ("bfloat16" if native else "float32")
    if native:
        check_dtype(recipe, CARD)
    else:
        with pytest.raises(ConfigError, match="this GPU has no bfloat16 products"):
            check_dtype(recipe, CARD)
    check_dtype(autoencoder_recipe(dtype="float32"), CARD)
