"""`opensana encode`: pictures and captions to the features that training reads."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import Positional, arg

from opensana.cli.command import Command, emit, say
from opensana.cli.data import open_and_tell, open_labels, tell_unlabelled
from opensana.models.options import Device

if TYPE_CHECKING:
    from opensana.datasets.record import Source
    from opensana.features.blocks import BlockEncoder, EncodeOptions
    from opensana.label.labels import Labels


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
    memory: Annotated[str | None, arg(metavar="SIZE")] = None
    """Memory for the autoencoder's maps; larger pictures run in bands of rows. Left out, 4GiB, on a
    GPU half of what is free."""
    max_bad: Annotated[str, arg(metavar="SHARE")] = "1%"
    """Stop when more of the records cannot be used."""
    batch: int | None = None
    """Pictures at once, at most. Left out, 8, on a GPU 32."""
    threads: int | None = None
    """How many decode pictures, in each worker with --ray. Left out, 2, for a GPU one a processor
    up to 16."""
    device: Device = "auto"
    ray: Annotated[str | None, arg(metavar="ADDRESS")] = None
    """Spread the work over the Ray cluster at this address, or over `local` processes."""
    workers: int | None = None
    """How many with --ray; left out, one on each GPU, or one."""

    def run(self) -> None:
        from opensana.datasets.rejects import share_of
        from opensana.device import parse_bytes
        from opensana.features.blocks import EncodeOptions
        from opensana.features.encode import encode, encode_on
        from opensana.features.encoders import native_size
        from opensana.workers.cluster import check_workers, connected

        check_workers(self.ray, self.workers)
        options = EncodeOptions(
            size=native_size(self.model) if self.size is None else self.size,
            batch=self.batch,
            memory=None if self.memory is None else parse_bytes(self.memory),
            max_bad=share_of(self.max_bad),
            threads=self.threads,
        )
        labels, plain = open_labels(self.labels), open_and_tell(self.path)
        tell_unlabelled(plain, labels)
        source = with_labels(plain, labels)
        if self.ray is None:
            encoder = encoder_of(source, self.model, self.device, options)
            samples = encode(encoder, self.to, report=say)
        else:
            opened = partial(open_encoder, self.path, self.labels, self.model, self.device, options)
            with connected(self.ray, self.workers) as cluster:
                samples = encode_on(
                    cluster, opened, source, self.to, max_bad=options.max_bad, report=say
                )
        say(f"{samples} samples")
        emit(str(self.to))


def with_labels(source: "Source", labels: "Labels | None") -> "Source":
    """The data set with the captions and scores of its labels."""
    from opensana.label.labels import labelled

    return source if labels is None else labelled(source, labels)


def open_encoder(
    path: str, labels: Path | None, model: str, device: str, options: "EncodeOptions"
) -> "BlockEncoder":
    """What encodes, on another machine, which opens the data set anew."""
    from opensana.datasets.sources import open_source

    source = with_labels(open_source(path), open_labels(labels))
    return encoder_of(source, model, device, options)


def encoder_of(
    source: "Source", model: str, device: str, options: "EncodeOptions"
) -> "BlockEncoder":
    from opensana.features.blocks import BlockEncoder
    from opensana.features.encoders import load_encoders
    from opensana.pictures.decode import decode

    return BlockEncoder(source, load_encoders(model, device=device), options, decode)
