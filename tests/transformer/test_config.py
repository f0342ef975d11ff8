"""A transformer's config: the published file in, the same file out, and refusals."""

import inspect
import json
from typing import Any

import pytest

from opensana.errors import ConfigError
from opensana.transformer import TransformerConfig
from tests.configs import SANA_600M


def test_a_published_config_is_read_and_written_back() -> None:
    config = TransformerConfig.from_dict(SANA_600M)
    assert (config.width, config.cross_width, config.hidden) == (1152, 1152, 2880)
    written = json.loads(json.dumps(config.to_dict()))
    assert {name: written[name] for name in SANA_600M if name != "_diffusers_version"} == {
        name: value for name, value in SANA_600M.items() if name != "_diffusers_version"
    }
    assert TransformerConfig.from_dict(written) == config


def test_defaults_are_those_of_diffusers() -> None:
    diffusers = pytest.importorskip("diffusers")
    signature = inspect.signature(diffusers.SanaTransformer2DModel.__init__)
    theirs = {name: p.default for name, p in signature.parameters.items() if name != "self"}
    ours = TransformerConfig().to_dict()
    del ours["_class_name"]
    assert ours == theirs


def test_no_output_channels_means_those_of_the_latent() -> None:
    config = TransformerConfig.from_dict(SANA_600M | {"out_channels": None, "in_channels": 16})
    assert config.output_channels == 16


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_layer": 3}, "num_layers"),
        ({"num_layers": 10**9}, "num_layers"),
        ({"num_layers": 0}, "num_layers"),
        ({"num_layers": None}, "num_layers"),
        ({"num_layers": "many"}, "num_layers"),
        ({"num_attention_heads": 1024, "attention_head_dim": 1024}, "16384"),
        ({"cross_attention_dim": None}, "cross_attention_dim"),
        ({"cross_attention_dim": 2240}, "1152"),
        ({"mlp_ratio": float("nan")}, "mlp_ratio"),
        ({"mlp_ratio": 1e9}, "mlp_ratio"),
        ({"dropout": 1.0}, "dropout"),
        ({"patch_size": 0}, "patch_size"),
        ({"patch_size": 64}, "patch_size"),
        ({"interpolation_scale": 0.0}, "interpolation_scale"),
        ({"qk_norm": "layer_norm"}, "rms_norm_across_heads"),
        ({"sample_size": 10**6}, "sample_size"),
    ],
)
def test_a_config_that_cannot_be_right_is_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        TransformerConfig.from_dict(SANA_600M | change)
