"""What of a prompt has no effect, or another one than in other programs, is said in one line."""

from types import SimpleNamespace
from typing import Any

import pytest

from opensana.drawing.job import make_job
from opensana.drawing.prompts import prompt_notes
from opensana.models.index import ModelDefaults, ModelInfo
from opensana.request import Request

ENCODER: Any = SimpleNamespace(truncated=lambda text, plain=False: "")
MODEL: Any = SimpleNamespace(
    autoencoder=SimpleNamespace(compression=32),
    transformer=SimpleNamespace(config=SimpleNamespace(patch_size=1)),
    native_size=64,
    info=ModelInfo("a model", 3.0, ModelDefaults()),
)


def notes(prompt: str = "a cat", **fields: Any) -> list[str]:
    job = make_job(Request(prompt, **{"guidance": 4.5, **fields}), MODEL)
    return list(prompt_notes(ENCODER, job))


def test_a_plain_prompt_needs_no_word() -> None:
    assert notes() == notes(negative_prompt="blurry") == []


@pytest.mark.parametrize("guidance", [1, 1.0, 0, 0.5])
def test_a_negative_prompt_without_guidance_is_said(guidance: float) -> None:
    [note] = notes(negative_prompt="blurry", guidance=guidance)
    assert note.startswith("the negative prompt has no effect, since guidance is")
    assert notes(negative_prompt=" ", guidance=guidance) == []


@pytest.mark.parametrize(
    "words",
    [
        "(x:1.5)", "(red hat:0.8)", "(cat:2)", "(8k:1.2)", "((masterpiece))", "(a cat)1.4",
        "[red:blue:0.5]", "[dog:0.25]", "[cow|horse]", "[[dull]]", "red::2", "(x:.5)", "(x:-1.2)",
    ],
)  # fmt: skip
def test_weights_are_said(words: str) -> None:
    [note] = notes(f"a cat, {words}, at night")
    assert "in the prompt weighs nothing and is read as words" in note
    [note] = notes(negative_prompt=f"dull, {words}")
    assert "in the negative prompt weighs nothing" in note
    assert notes(negative_prompt=words, guidance=1)[0].startswith("the negative prompt has no")


@pytest.mark.parametrize(
    "words",
    [
        "a clock (12:30)", "a screen (16:9)", "(John 3:16)", "a map (scale 1:100)", "[a note]",
        "a smile :)", "(a cat)", "f(x) = 2", "a [red] hat", r"\(x:1.5\)", "C++ code", "std::vector",
        "at 12:30", "(1) one and (2) two", "ratio 3:4", "[1:2]", "(see fig. 1.5)",
    ],
)  # fmt: skip
def test_words_that_are_none_are_left_alone(words: str) -> None:
    assert notes(words) == []


@pytest.mark.parametrize("words", ["<lora:a:1>", "<lora:my style:0.8>", "<LORA:a>", "<lyco:b:1>"])
def test_a_lora_in_the_prompt_is_said(words: str) -> None:
    [note] = notes(f"a cat {words}")
    assert note == (
        f"'{words}' in the prompt loads nothing and is read as words; LoRAs go by --lora (lora= of"
        " Sana.load, or of a request to a server)"
    )
    assert len(notes(f"a (cat:1.2) {words}")) == 2


def test_long_and_hostile_prompts_are_read_in_no_time() -> None:
    for text in ("[" + ":" * 20_000, "(" * 20_000, "a" * 20_000, "(a" * 10_000, "[a|" * 9_000):
        notes(text)


def test_notes_stay_short() -> None:
    [note] = notes("(" + "very " * 30 + "red:1.5)")
    assert len(note) < 120
