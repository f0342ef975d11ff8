"""`opensana serve`: a model behind HTTP, for programs and for a page in the browser."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from tyro.conf import arg

from opensana.cli.command import Command, say
from opensana.errors import ConfigError, MissingExtraError
from opensana.models.options import LoadOptions
from opensana.request import LARGEST_SIZE, MOST_IMAGES, MOST_STEPS, SMALLEST_SIZE

if TYPE_CHECKING:
    from opensana.serve.painting.sana_painter import SanaPainter
    from opensana.serve.replicas.ray_replicas import RayReplicas, Scale

DAY = 86400.0
RANGES = {
    "port": (0, 65535),
    "batch": (1, 1024),
    "queue": (1, 10**6),
    "queue_per_key": (1, 10**6),
    "rate": (0.001, 10**6),
    "largest_size": (SMALLEST_SIZE, LARGEST_SIZE),
    "most_images": (1, MOST_IMAGES),
    "most_steps": (1, MOST_STEPS),
    "keep_days": (0, 36500),
    "grace": (0, DAY),
}


@dataclass(frozen=True)
class Serve(LoadOptions, Command):
    """Draw for others: a page, and the APIs of OpenAI, of A1111 and one of its own."""

    loras: Annotated[Path | None, arg(metavar="FOLDER")] = None
    """LoRA files, or folders with one, that requests may name; --lora is for every picture."""
    lora_memory: Annotated[str | None, arg(metavar="SIZE")] = None
    """What layers with LoRAs merged may take beside the model; left out, as much as the transformer
    takes, and 1 GiB at least."""
    host: Annotated[str, arg(metavar="ADDRESS")] = "127.0.0.1"
    """Where to listen. Any but this machine's own needs --keys."""
    port: int = 7860
    """Where to listen; 0 takes a free one."""
    keys: Annotated[Path | None, arg(metavar="FILE")] = None
    """Who may ask: lines of name:key. A key is a Bearer token, or the password of any user."""
    insecure: bool = False
    """Answer anybody who can reach the address."""
    folder: Annotated[Path | None, arg(metavar="FOLDER")] = None
    """Where jobs and pictures are kept; left out, a folder in the user's cache for each model."""
    batch: Annotated[int, arg(metavar="COUNT")] = 8
    """How many pictures of one shape take their steps together."""
    exact: bool = False
    """Read prompts and decode pictures one by one: every pixel is what it is alone. Without it some
    may be one level off, and it is faster."""
    queue: Annotated[int, arg(metavar="PICTURES")] = 64
    """How much may wait, in pictures of the model's size and steps; beyond it the answer is 503."""
    queue_per_key: Annotated[int | None, arg(metavar="PICTURES")] = None
    """How much of one key may wait; beyond it the answer is 429."""
    rate: Annotated[float | None, arg(metavar="COUNT")] = None
    """How many requests a minute one key may send."""
    largest_size: Annotated[int, arg(metavar="PIXELS")] = 2048
    """The longest side of a picture."""
    most_images: Annotated[int, arg(metavar="COUNT")] = 16
    """Of one request."""
    most_steps: Annotated[int, arg(metavar="COUNT")] = 200
    """Of one picture."""
    keep_days: Annotated[float, arg(metavar="DAYS")] = 7.0
    """How long finished jobs and their pictures are kept."""
    keep_size: Annotated[str, arg(metavar="SIZE")] = "2GiB"
    """How much of them is kept; the oldest go first."""
    grace: Annotated[float, arg(metavar="SECONDS")] = 30.0
    """How long pictures at work may take to finish when the server is told to stop."""
    ray: Annotated[str | None, arg(metavar="ADDRESS")] = None
    """Let replicas on the Ray cluster at this address draw, or on `local` processes."""
    replicas: Annotated[str | None, arg(metavar="COUNT")] = None
    """How many with --ray, or a range such as 1..4 to have as many as the work needs; left out, one
    on each GPU, or one."""

    def check(self) -> None:
        """ConfigError for what no server can work with."""
        if self.offload is not None:
            raise ConfigError(
                f"--offload {self.offload} is for generate: in a server all parts are at work at "
                "once; try --text-device cpu, or fewer bits with --quantize"
            )
        for name, (least, most) in RANGES.items():
            value = getattr(self, name)
            if value is not None and not least <= value <= most:
                flag = f"--{name.replace('_', '-')}"
                raise ConfigError(f"{flag} must be {least:g} to {most:g}, got {value:g}")

    def run(self) -> None:
        self.check()
        try:
            from opensana.serve import run
        except ModuleNotFoundError as error:
            if (error.name or "").split(".")[0] in ("opensana",):
                raise
            raise MissingExtraError("serve", str(error.name)) from None
        from opensana.device import parse_bytes
        from opensana.serve.jobs.limits import Limits
        from opensana.serve.jobs.store import Store, usual_folder
        from opensana.serve.painting.warm_up import warm_ups
        from opensana.serve.service import Service
        from opensana.weights.locate import locate

        scale = self._scale()
        keep_bytes = parse_bytes(self.keep_size)
        with run.bind(self.host, self.port) as listener:
            keys = run.keys_for(listener, self.keys, insecure=self.insecure)
            say(f"loading {self.model}")
            locate(self.model, revision=self.revision, variant=self.variant)
            folder = self.folder or usual_folder(self.model)
            store = Store(folder)
            with self._painter(folder, scale) as painter:
                usual = painter.about()
                one = usual["native_size"] ** 2 * usual["defaults"]["steps"]
                limits = Limits(
                    largest_side=self.largest_size,
                    most_pixels=self.largest_size**2,
                    most_steps=self.most_steps,
                    most_images=self.most_images,
                    queue=self.queue * one,
                    queue_of_key=self.queue_per_key and self.queue_per_key * one,
                    rate=self.rate,
                    keep_seconds=self.keep_days * DAY,
                    keep_bytes=keep_bytes,
                )
                first = warm_ups(usual) if self.ray is None else ()
                service = Service(painter, store, limits=limits, batch=self.batch, warm_ups=first)
                say(f"answering on {run.url(listener)}; Ctrl-C ends it")
                run.serve(service, listener, keys=keys, grace=self.grace)

    def _scale(self) -> "Scale | None":
        """How many replicas; ConfigError for flags that do not go together."""
        from opensana.serve.replicas.ray_replicas import read_scale

        if self.graph:
            raise ConfigError("graph is not for a server, whose batches change: leave it out")
        if self.replicas is not None and self.ray is None:
            raise ConfigError("--replicas goes with --ray; try --ray local")
        if self.ray is not None and ":" in self.device:
            raise ConfigError(
                f"--device {self.device} does not go with --ray, which gives each replica a GPU; "
                "try --device cuda"
            )
        return None if self.replicas is None else read_scale(self.replicas)

    @contextmanager
    def _painter(
        self, folder: Path, scale: "Scale | None"
    ) -> Iterator["SanaPainter | RayReplicas"]:
        from opensana.device import parse_bytes
        from opensana.serve.painting.loading import load_painter, whole_paths

        options = LoadOptions(**{one.name: getattr(self, one.name) for one in fields(LoadOptions)})
        loras = self.loras and self.loras.expanduser().resolve()
        memory = None if self.lora_memory is None else parse_bytes(self.lora_memory)
        load = partial(load_painter, exact=self.exact, loras=loras, lora_bytes=memory)
        if self.ray is None:
            yield load(options)
            return
        from opensana.serve.replicas.ray_replicas import ray_replicas

        with ray_replicas(
            self.ray,
            scale,
            partial(load, whole_paths(options)),
            batch=self.batch,
            folder=folder,
            gpus=self.device in ("auto", "cuda"),
        ) as replicas:
            yield replicas
