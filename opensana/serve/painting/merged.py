"""MergedModels: transformers with LoRAs, the last used kept within a number of bytes.

What pictures at work need may be dropped and is made again, to the same bits, before their next
step; the worker lets a lane that had to wait for that go on for as long as it took.
"""

import time
from typing import Any

from opensana.models.with_loras import WithLoras
from opensana.pipeline import Sana
from opensana.serve.jobs.order import LoraChoice
from opensana.serve.logs import log
from opensana.serve.painting.loras import LoraFolder
from opensana.transformer.model import Transformer
from opensana.weights.lora import MergedLora

Choices = tuple[LoraChoice, ...]
LEAST_KEPT = 2**30
"""Bytes that are kept of the LoRAs of small models."""


class MergedModels:
    """For the worker's thread, but for `decide`, `describe`, `refresh` and `view`."""

    def __init__(
        self, base: WithLoras[Sana], folder: LoraFolder, *, most_bytes: int | None = None
    ) -> None:
        """`most_bytes` are kept, and the one in use in any case.

        None is as much as a LoRA of every layer takes, and 1 GiB at least.
        """
        self._base, self._folder = base, folder
        self._most = max(base.all_bytes, LEAST_KEPT) if most_bytes is None else most_bytes
        self._kept: dict[Choices, tuple[Transformer, int]] = {}  # the last used is the last

    def refresh(self) -> None:
        self._folder.refresh()

    def view(self) -> list[dict[str, Any]]:
        return self._folder.view()

    def decide(self, choices: Choices) -> Choices:
        """With their digests; RequestError for what cannot be had."""
        return self._folder.decide(choices)

    def describe(self, choices: Choices) -> Sana:
        """The model as pictures with these LoRAs record it, with the plain transformer."""
        return self._base.described(
            [MergedLora(one.name, str(one.sha256), one.scale) for one in choices]
        )

    def transformer(self, choices: Choices) -> Transformer:
        """With these merged; RequestError where a file is not the one that was listed any more."""
        kept = self._kept.pop(choices, None)
        if kept is None:
            kept = self._merged(choices)
        self._kept[choices] = kept
        return kept[0]

    def _merged(self, choices: Choices) -> tuple[Transformer, int]:
        start = time.monotonic()
        loras = [(self._folder.read(one), one.scale) for one in choices]
        size = self._base.bytes(loras)
        while self._kept and self.kept_bytes + size > self._most:
            del self._kept[next(iter(self._kept))]
        network = self._base.transformer(loras)
        names = [one.name for one in choices]
        log("lora_merged", names=names, bytes=size, seconds=round(time.monotonic() - start, 3))
        return network, size

    @property
    def kept_bytes(self) -> int:
        """Of all transformers, beside the layers that they share with the model."""
        return sum(size for _, size in self._kept.values())
