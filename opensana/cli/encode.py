"""`opensana encode`: pictures and captions to the features that training reads."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from opensana.cli.command import Command, emit, say


@dataclass(frozen=True)
class Encode(Command):
    """Cache the latents and text states of a data set; the same command goes on after a stop."""

    path: Annotated[Positional[str], arg(metavar="PATH")]
    """The data set: a folder, tar shards, a parquet file or hf://datasets/OWNER/NAME."""
    model: Annotated[str, arg(metavar="MODEL")]
    """Whose encoders to use: a model that comes along, a folder or a hub id."""
    to: Annotated[Path, arg(metavar="FEATURES")]
    """The folder to write; until it is complete, FEATURES.partial."""
    size: Annotated[int | None, arg(metavar="PIXELS")] = None
    """Side of a square picture; others have about its area. Left out, the model's."""
    labels: Annotated[Path | None, arg(metavar="FOLDER")] = None
    """Captions and scores that `opensana label` made."""
    memory: Annotated[str, arg(metavar="SIZE")] = "4GiB"
    """Memory for the autoencoder's maps; larger pictures run in bands of rows."""
    max_bad: Annotated[str, arg(metavar="SHARE")] = "1%"
    """Stop when more of the records cannot be used."""
    batch: int = 8
    """Pictures at once, at most."""
    workers: int = 2
    """Threads that decode pictures."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1 or mps."""

    def run(self) -> None:
        from opensana.data.images import decode
        from opensana.data.rejects import share_of
        from opensana.data.sources import open_source
        from opensana.device import parse_bytes
        from opensana.encode import EncodeOptions, encode, load_encoders
        from opensana.encode.encoders import native_size

        options = EncodeOptions(
            size=native_size(self.model) if self.size is None else self.size,
            batch=self.batch,
            memory=parse_bytes(self.memory),
            max_bad=share_of(self.max_bad),
            workers=self.workers,
        )
        source = open_source(self.path)
        if self.labels is not None:
            from opensana.label.labels import Labels, labelled

            source = labelled(source, Labels.open(self.labels))
        encoders = load_encoders(self.model, device=self.device)
        samples = encode(
            source, self.to, encoders=encoders, options=options, decode=decode, report=say
        )
        say(f"{samples} samples")
        emit(str(self.to))
