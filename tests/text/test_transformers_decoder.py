"""A language model of transformers is called by the names that its version knows."""

import warnings
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import Gemma2Config, Gemma2Model

from opensana.text.transformers_decoder import LibraryDecoder

CONFIG = SimpleNamespace(hidden_size=4, layer_types=["full_attention"])


class Named(nn.Module):
    """A decoder that writes each token as its own state, key and value."""

    config = SimpleNamespace(get_text_config=lambda decoder: CONFIG)

    def states(self, input_ids: Tensor, cache: Any) -> tuple[Tensor]:
        states = input_ids[..., None].float().expand(-1, -1, CONFIG.hidden_size)
        if cache is not None:
            cache.update(states[:, None], states[:, None], 0)
        return (states,)


class Newer(Named):
    def forward(self, input_ids: Tensor, cache: Any = None, use_cache: bool = True) -> Any:
        return self.states(input_ids, cache)


class Older(Named):
    def forward(
        self, input_ids: Tensor, past_key_values: Any = None, use_cache: bool = True
    ) -> Any:
        return self.states(input_ids, past_key_values)


class Without(Named):
    def forward(self, input_ids: Tensor, use_cache: bool = True) -> Any:
        assert not use_cache
        return self.states(input_ids, None)


@pytest.mark.parametrize("version", [Newer, Older])
def test_the_cache_goes_by_the_name_that_the_model_knows(version: type[Named]) -> None:
    decoder = LibraryDecoder(version())
    _, past = decoder(torch.tensor([[1, 2]]))
    states, longer = decoder(torch.tensor([[3]]), past)
    assert states.shape == (1, 1, 4)
    assert longer[0][0][0, 0, :, 0].tolist() == [1, 2, 3]


def test_a_model_without_a_cache_reads_everything_anew() -> None:
    decoder = LibraryDecoder(Without())
    assert not decoder.can_continue
    states, past = decoder(torch.tensor([[1, 2]]))
    assert states.shape == (1, 2, 4) and past == []


def test_no_warning_of_the_library_reaches_a_user() -> None:
    config = Gemma2Config(
        vocab_size=16,
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=4,
    )
    decoder = LibraryDecoder(Gemma2Model(config).eval())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, past = decoder(torch.tensor([[1, 2]]))
        decoder(torch.tensor([[3]]), past)
