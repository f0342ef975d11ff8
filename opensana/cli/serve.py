"""`opensana serve`: a model behind HTTP, for programs and for a page in the browser."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated

from tyro.conf import arg

from opensana.cli.command import Command, say
from opensana.errors import MissingExtraError
from opensana.models.options import LoadOptions

DAY = 86400.0


@dataclass(frozen=True)
class Serve(LoadOptions, Command):
    """Draw for others: a page, and the APIs of OpenAI, of A1111 and one of its own."""

    host: Annotated[str, arg(metavar="ADDRESS")] = "127.0.0.1"
    """Where to listen. Any but this machine's own needs --keys."""
    port: int = 7860
    """Where to listen; 0 takes a free one."""
    keys: Annotated[Path | None, arg(metavar="FILE")] = None
    """Who may ask: lines of name:key. A key is a Bearer token, or the password of any user."""
    insecure: bool = False
    """Answer anybody who can reach the address."""
    folder: Annotated[Path | None, arg(metavar="FOLDER")] = None
    """Where jobs and pictures are kept; left out, a folder in the user's cache for each port."""
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

    def run(self) -> None:
        try:
            from opensana.serve import run
        except ModuleNotFoundError as error:
            if (error.name or "").split(".")[0] in ("opensana",):
                raise
            raise MissingExtraError("serve", str(error.name)) from None
        from opensana.device import parse_bytes
        from opensana.files.user_cache import cache_folder
        from opensana.pipeline import Sana
        from opensana.serve.limits import Limits
        from opensana.serve.previews import load_previewer
        from opensana.serve.sana_painter import SanaPainter
        from opensana.serve.service import Service
        from opensana.serve.store import Store

        keys = run.keys_for(self.host, self.keys, insecure=self.insecure)
        keep_bytes = parse_bytes(self.keep_size)
        listener = run.bind(self.host, self.port)
        port = listener.getsockname()[1]
        store = Store(self.folder or cache_folder() / "serve" / str(port))
        options = {field.name: getattr(self, field.name) for field in fields(LoadOptions)}
        say(f"loading {self.model}")
        sana = Sana.load(options.pop("model"), **options)
        painter = SanaPainter(sana, previewer=load_previewer(sana), exact=self.exact)
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
        service = Service(painter, store, limits=limits, batch=self.batch)
        say(f"answering on http://{self.host}:{port}; Ctrl-C ends it")
        run.serve(service, listener, keys=keys, grace=self.grace)
