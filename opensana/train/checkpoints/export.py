"""Saving while the training goes on: copies are made first, a thread writes them."""

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from opensana.files.writing import write_json
from opensana.weights.safetensors import write_safetensors


@dataclass(frozen=True)
class Export:
    """Weights in the published layout, ready to be written; adapters have no configuration."""

    folder: Path
    config: Mapping[str, Any] | None
    state: Mapping[str, Tensor]
    name: str = "diffusion_pytorch_model"
    metadata: Mapping[str, str] = field(default_factory=dict[str, str])

    def write(self) -> None:
        """Each file appears whole or not at all."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.config is not None:
            write_json(self.folder / "config.json", self.config)
        state = dict(sorted(self.state.items()))
        write_safetensors(state, self.folder, name=self.name, metadata=self.metadata)


class Saver:
    """Writes at once or, `asynchronous`, in the background, in the order of submission."""

    def __init__(self, *, asynchronous: bool) -> None:
        self._pool = ThreadPoolExecutor(max_workers=1) if asynchronous else None
        self._waiting: Future[None] | None = None

    def submit(self, write: Callable[[], None]) -> None:
        """Write once what was submitted before is on disk, and not if that failed."""
        if self._pool is None:
            write()
            return
        before = self._waiting

        def follow() -> None:
            if before is not None:
                before.result()
            write()

        self._waiting = self._pool.submit(follow)

    def wait(self) -> None:
        """Until all writes are on disk; the first failure is raised here."""
        if self._waiting is not None:
            waiting, self._waiting = self._waiting, None
            waiting.result()

    def close(self) -> None:
        """Let a write end, whatever becomes of the training: the run folder is still held."""
        if self._pool is not None:
            self._pool.shutdown()
