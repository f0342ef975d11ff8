"""When memory ends: once again with less, which is said, then one clear line.

Also tests `drawing/batches.py`. torch's errors are raised by stand-ins.
"""

import gc
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from opensana.autoencoder.plan import decoder_chain
from opensana.drawing import decoding
from opensana.drawing.decoding import decode_images
from opensana.errors import OutOfMemory
from opensana.pipeline import Sana
from opensana.runtime.shortage import attempt, ran_out
from tests import tiny

CPU = torch.device("cpu")
REQUEST: dict[str, Any] = {"prompt": "a cat", "steps": 2, "seed": 1}


@pytest.fixture
def sana() -> Sana:
    return tiny.sana(instruction="none")


def ends_above(most: int, run: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A network on a device that holds a batch of at most so many."""

    def limited(x: Tensor, *rest: Any, **more: Any) -> Tensor:
        if len(x) > most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB.")
        return run(x, *rest, **more)

    return limited


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 9 bytes"), True),
        (MemoryError(), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_what_counts_as_out_of_memory(error: Exception, expected: bool) -> None:
    assert ran_out(error) == expected


def test_what_was_held_is_free_before_the_next_attempt(monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[weakref.ref[Tensor]] = []

    def too_much() -> None:
        large = torch.zeros(9)
        held.append(weakref.ref(large))
        raise torch.OutOfMemoryError("CUDA out of memory.")

    seen = list[object]()
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: seen.append(held[0]()))
    gc.disable()
    try:
        assert attempt(too_much, torch.device("cuda")) is None
    finally:
        gc.enable()
    assert seen == [None], "the tensor lived until the cache was emptied"
    with pytest.raises(ZeroDivisionError):
        attempt(lambda: 1 / 0, CPU)


def test_a_batch_is_halved_until_it_fits(sana: Sana, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = sana.generate(**REQUEST, images=4)
    limited = ends_above(1, sana.transformer.velocity)
    monkeypatch.setattr(sana.transformer, "velocity", limited)
    heard: list[str] = []
    drawn = sana.generate(**REQUEST, images=4, notice=heard.append)
    assert heard == [
        "memory ended with 4 pictures at once; once again with 2",
        "memory ended with 2 pictures at once; once again with 1",
        "memory ended with 2 pictures at once; once again with 1",
    ]
    assert [picture.request.seed for picture in drawn] == [1, 2, 3, 4]
    for one, other in zip(drawn, expected, strict=True):
        assert np.abs(np.asarray(one.image, int) - np.asarray(other.image, int)).max() <= 1


def test_a_picture_that_does_not_fit_is_one_line(
    sana: Sana, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sana.transformer, "velocity", ends_above(0, sana.transformer.velocity))
    with pytest.raises(OutOfMemory, match="not enough memory for the steps of a picture of 64x64"):
        sana.generate(**REQUEST)


def test_decoding_is_tried_again_in_bands(sana: Sana, monkeypatch: pytest.MonkeyPatch) -> None:
    [expected] = sana.generate(**REQUEST, width=96, height=192)
    decode, asked = sana.autoencoder.decode, list[int]()

    def limited(latent: Tensor) -> Tensor:
        asked.append(len(latent))
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(sana.autoencoder, "decode", limited)
    heard: list[str] = []
    [drawn] = sana.generate(**REQUEST, width=96, height=192, notice=heard.append)
    [line] = heard
    assert "memory ended while decoding; once again, one picture at a time in bands of" in line
    assert asked == [1]
    assert np.abs(np.asarray(drawn.image, int) - np.asarray(expected.image, int)).max() <= 1
    monkeypatch.setattr(sana.autoencoder, "decode", decode)


def test_bands_that_do_not_fit_are_one_line(sana: Sana, monkeypatch: pytest.MonkeyPatch) -> None:
    limits: list[int] = []

    def limited(_model: object, _latent: Tensor, *, memory: int) -> None:
        limits.append(memory)
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(decoding, "decode_bands", limited)
    whole = decoder_chain(sana.autoencoder, 1, 6, 3)
    heard: list[str] = []
    with pytest.raises(OutOfMemory, match="not enough memory to decode 2 x 96x192 pixels"):
        decode_images(
            sana.autoencoder,
            torch.zeros(2, 8, 6, 3),
            memory=whole.one_band_memory,
            notice=heard.append,
        )
    assert len(heard) == 1
    assert limits == [whole.one_band_memory, max(whole.least_memory, whole.one_band_memory // 2)]


def test_whoever_has_another_way_is_told_at_once(sana: Sana) -> None:
    """A server decodes fewer pictures at once instead."""
    sana.autoencoder.decode = ends_above(1, sana.autoencoder.decode)
    with pytest.raises(OutOfMemory):
        decode_images(sana.autoencoder, torch.zeros(2, 8, 2, 2), memory=None)
