"""One set of load options: for Python, for `opensana generate` and in words for other commands."""

import inspect
from dataclasses import MISSING, fields
from typing import get_type_hints

import pytest

from opensana.cli.app import parse
from opensana.cli.encode import Encode
from opensana.cli.evaluate import Evaluate
from opensana.cli.generate import Generate
from opensana.cli.info import Info
from opensana.cli.label import Label
from opensana.cli.reconstruct import Reconstruct
from opensana.errors import ConfigError
from opensana.models.options import Device, LoadOptions, Revision, Variant
from opensana.pipeline import Sana

SEVERAL = {"lora", "lora_scale"}
"""In Python one may be given without a list; left out, they are None and 1."""


def test_they_are_the_keywords_of_load() -> None:
    keywords = dict(inspect.signature(Sana.load).parameters)
    assert set(keywords) == {field.name for field in fields(LoadOptions)}
    for field in fields(LoadOptions):
        if field.name not in SEVERAL:
            assert field.default is not MISSING
            assert keywords[field.name].default == field.default


def test_each_keyword_reaches_its_option(monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[LoadOptions] = []

    def stop(options: LoadOptions) -> None:
        heard.append(options)
        raise ConfigError("far enough")

    monkeypatch.setattr("opensana.pipeline.open_model", stop)
    given = {field.name: object() for field in fields(LoadOptions)}
    with pytest.raises(ConfigError, match="far enough"):
        Sana.load(**given)  # pyright: ignore[reportArgumentType]
    assert vars(heard[0]) == given


def test_generate_has_all_of_them_as_flags() -> None:
    words = "generate x -m m --revision r --variant fp16 --transformer t --lora a --lora b"
    words += " --lora-scale 2 --lora-scale 3 --controlnet c --device cpu --dtype fp32"
    words += " --text-device cpu --offload all --graph"
    command = parse([*words.split(), "--memory", "4", "--compile", "--kernels", "--quantize", "w4"])
    assert isinstance(command, Generate) and isinstance(command, LoadOptions)
    got = {field.name: str(getattr(command, field.name)) for field in fields(LoadOptions)}
    assert got == {
        "model": "m", "revision": "r", "variant": "fp16", "transformer": "t",
        "lora": "('a', 'b')", "lora_scale": "(2.0, 3.0)", "controlnet": "c", "device": "cpu",
        "text_device": "cpu", "offload": "all",
        "dtype": "fp32", "memory": "4", "compile": "True", "kernels": "True",
        "quantize": "w4", "graph": "True",
    }  # fmt: skip


def test_memory_is_a_size_or_a_number_of_bytes() -> None:
    assert LoadOptions(memory="2GiB").memory_bytes == 2 * 2**30 == LoadOptions(memory=2**31).memory
    assert LoadOptions().memory_bytes is None
    with pytest.raises(ConfigError, match="'4' is no size of memory"):
        _ = LoadOptions(memory="4").memory_bytes


def test_other_commands_ask_in_the_same_words() -> None:
    own = get_type_hints(LoadOptions, include_extras=True)
    assert (own["device"], own["revision"], own["variant"]) == (Device, Revision, Variant)
    for command in (Encode, Label, Reconstruct):
        assert get_type_hints(command, include_extras=True)["device"] == Device
    for command in (Info, Evaluate):
        hint = get_type_hints(command, include_extras=True)["model"]
        assert hint.__metadata__[0] == own["model"].__metadata__[0]
