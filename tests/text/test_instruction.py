import inspect

import pytest
from diffusers.pipelines.sana.pipeline_sana import SanaPipeline

from opensana.errors import ConfigError
from opensana.text.instruction import (
    COMPLEX_HUMAN_INSTRUCTION,
    KEPT_TOKENS,
    OFFICIAL_INSTRUCTION,
    instruction,
)


def test_it_equals_the_default_of_diffusers() -> None:
    parameters = inspect.signature(SanaPipeline.__call__).parameters
    assert "\n".join(parameters["complex_human_instruction"].default) == COMPLEX_HUMAN_INSTRUCTION
    assert parameters["max_sequence_length"].default == KEPT_TOKENS


def test_the_official_spelling_differs_in_two_quotes_only() -> None:
    pairs = zip(OFFICIAL_INSTRUCTION, COMPLEX_HUMAN_INSTRUCTION, strict=True)
    assert [(a, b) for a, b in pairs if a != b] == [('"', "'")] * 2
    assert '"Enhanced prompt"' in OFFICIAL_INSTRUCTION
    assert OFFICIAL_INSTRUCTION.endswith("\nUser Prompt: ")


def test_names() -> None:
    assert instruction("diffusers") == COMPLEX_HUMAN_INSTRUCTION
    assert instruction("official") == OFFICIAL_INSTRUCTION
    assert instruction("none") == ""
    with pytest.raises(ConfigError, match=r"did you mean 'official'"):
        instruction("oficial")
