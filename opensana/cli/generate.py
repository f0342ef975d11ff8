"""`opensana generate`: prompts in, PNG files out, each as soon as it is drawn.

The flags are the fields of `Request`, inherited, so that every default and its help are written
once. All requests and the output folder are checked before the model is loaded.
"""

import gc
import io
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import count
from json import loads
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

from tyro.conf import Positional, arg

from opensana.cli.command import Command, emit, emit_json, say
from opensana.cli.output import DEFAULT_NAME, PictureFiles
from opensana.cli.saving import Saving
from opensana.drawing.inputs import Inputs, read_inputs
from opensana.drawing.recorded import (
    DIGEST,
    check_same,
    each,
    flag,
    recorded,
    recorded_files,
    recorded_scales,
)
from opensana.errors import DataError, RequestError
from opensana.files.encodings import decode_text
from opensana.models.options import LoadOptions
from opensana.request import Request

if TYPE_CHECKING:
    from opensana.drawing.control_image import ControlImage
    from opensana.drawing.init_image import InitImage
    from opensana.pipeline import Picture, Sana
    from opensana.weights.lora import Lora


@dataclass(frozen=True)
class Generate(LoadOptions, Inputs, Request, Command):
    """Draw pictures from a prompt; their paths go to stdout."""

    prompt: Annotated[Positional[str], arg(metavar="PROMPT")] = ""
    """What the picture should show. Leave it out with --prompt-file or --from-png."""
    images: Annotated[int, arg(aliases=["-n"])] = Request.images
    """How many pictures to draw of each prompt, with the seeds seed, seed + 1, ..."""
    output: Annotated[str, arg(aliases=["-o"], metavar="PATTERN")] = DEFAULT_NAME
    """File name, or a folder; {seed} and {index} are filled in."""
    overwrite: bool = False
    """Replace existing files; without it the new one gets -1, -2, ... before .png."""
    prompt_file: Annotated[str | None, arg(metavar="FILE")] = None
    """Draw one prompt a line of this file; - reads standard input."""
    from_png: Annotated[Path | None, arg(metavar="FILE")] = None
    """Draw a picture again from what its PNG records; flags given beside it change that."""
    no_metadata: bool = False
    """Leave prompt and settings out of the PNG."""
    json: bool = False
    """Print one JSON object a picture instead of its path."""

    def __post_init__(self) -> None:
        """Nothing: `requests` checks, once the prompts are known."""

    def defaults(self) -> Self | None:
        if self.from_png is None:
            return None
        return type(self)(**recorded(self.from_png))  # a switch that is on could not be typed again

    def run(self) -> None:
        requests = self.requests()
        init_image, control = self.inputs()
        files = PictureFiles(self.output, overwrite=self.overwrite)
        files.check(requests)
        sana = self._load()
        if self.offload is not None:
            prompts = [request.prompt for request in requests]
            sana.drop_text_encoder(prompts, [request.negative_prompt for request in requests])
        from opensana.device import resolve_device
        from opensana.drawing.picture import write_png

        numbers, on_cpu = count(), resolve_device(self.device).type == "cpu"

        def write(picture: "Picture", png: bytes) -> None:
            path = files.path(seed=picture.request.seed, index=next(numbers))
            self._report(write_png(path, png), picture)

        with Saving(write, metadata=not self.no_metadata, at_once=on_cpu) as saving:
            for request in requests:
                for picture in _draw(sana, request, init_image, control, saving):
                    saving.add(picture)

    def _load(self) -> "Sana":
        """The model. Loading makes a million long-lived objects: the garbage collector is off."""
        options = {field.name: getattr(self, field.name) for field in fields(LoadOptions)}
        options["memory"] = self.memory_bytes  # what is wrong with it is said before the wait
        options |= {"lora": self.loras or None, "lora_scale": self.lora_scales or 1.0}
        gc.disable()
        try:
            from opensana import Sana
            from opensana.device import has_own_memory, resolve_device

            if self.offload == "text" and not has_own_memory(resolve_device(self.device)):
                options["offload"] = None  # nothing moves: the prompts are read, and it is freed
            say(f"loading {self.model}")
            return Sana.load(options.pop("model"), **options)
        finally:
            gc.enable()

    def inputs(self) -> "tuple[InitImage | None, ControlImage | None]":
        """The picture to start from and the one to follow; RequestError unless they are those of
        --from-png.
        """
        png = self.from_png
        wanted = {} if png is None else recorded_files(png)
        for name in wanted:
            if not getattr(self, name):
                raise RequestError(f"{png} was drawn with {flag(name)}; give it again")
        controlnet = self.controlnet is not None
        init_image, control = read_inputs(self, self, controlnet=controlnet, notice=say)
        digests: dict[str, Any] = {"lora" + DIGEST: [lora.sha256 for lora in self.loras]}
        for part in filter(None, (init_image, control)):
            digests |= part.provenance
        for name, known in wanted.items():
            given = zip(each(getattr(self, name)), each(digests[name + DIGEST]), strict=True)
            check_same(str(png), name, list(given), known)
        for lora in self.loras:
            for line in lora.notes:
                say(line)
        return init_image, control

    @cached_property
    def loras(self) -> "list[Lora]":
        """The LoRAs, read."""
        from opensana.weights.lora import paired, read_lora

        return [read_lora(path) for path, _ in paired(self.lora, self.lora_scale)]

    @property
    def lora_scales(self) -> list[float]:
        """As typed, or as --from-png records them; none is 1 for all."""
        typed = each(self.lora_scale)
        if typed or self.from_png is None or not self.loras:
            return typed
        return recorded_scales(self.from_png)

    def requests(self) -> list[Request]:
        """One checked request a prompt."""
        values = {field.name: getattr(self, field.name) for field in fields(Request)}
        return [
            _checked(values | {"prompt": prompt}, where=where) for where, prompt in self._prompts()
        ]

    def _prompts(self) -> list[tuple[str, str]]:
        """(where it stands, prompt); nowhere for the one on the command line."""
        if self.prompt_file is None:
            if not self.prompt.strip():
                raise RequestError('nothing to draw; try: opensana generate "a red apple"')
            return [("", self.prompt)]
        if self.prompt:
            raise RequestError("give a prompt or --prompt-file, not both")
        return _read_prompts(self.prompt_file)

    def _report(self, path: Path, picture: "Picture") -> None:
        from tqdm import tqdm

        with tqdm.external_write_mode():  # the bar makes room on a terminal that shows both
            if self.json:
                emit_json({"path": str(path)} | loads(picture.metadata["opensana"]))
            else:
                emit(str(path))


def _checked(values: dict[str, Any], *, where: str) -> Request:
    try:
        return Request(**values)
    except RequestError as error:
        raise RequestError(f"{where}{error}") from None


def _read_prompts(name: str) -> list[tuple[str, str]]:
    """A line ends in a line feed, a carriage return or both; str.splitlines() knows more ends."""
    try:
        data = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
        text = decode_text(data)
    except DataError as error:
        raise RequestError(f"{name} {error}") from None
    except OSError as error:
        raise RequestError(f"cannot read --prompt-file {name!r}: {error.strerror}") from None
    prompts = [
        (f"{name} line {number}: ", line.strip())
        for number, line in enumerate(io.StringIO(text, newline=None), start=1)
        if line.strip()
    ]
    if not prompts:
        raise RequestError(f"--prompt-file {name!r} holds no prompt; write one a line")
    return prompts


def _draw(
    sana: "Sana",
    request: Request,
    init: "InitImage | None",
    control: "ControlImage | None",
    saving: Saving,
) -> "Iterator[Picture]":
    """The pictures of a request; after each step, those before that are encoded are written."""
    with _progress(request, saving) as on_step:
        yield from sana.draw(
            request,
            on_step=on_step,
            notice=say,
            image=init and init.image,
            mask=init and init.mask,
            control_image=control and control.image,
            control_scale=control.scale if control else 1.0,
        )


@contextmanager
def _progress(request: Request, saving: Saving) -> Iterator[Callable[[int, int, Any], None]]:
    """A bar on stderr, one tick a solver step; nothing when stderr is no terminal."""
    from tqdm import tqdm

    disable = True if sys.stderr is None else None  # None: where it is no terminal
    prompt = _short(request.prompt)
    with tqdm(total=request.steps, desc=prompt, leave=False, disable=disable) as bar:

        def on_step(_step: int, total: int, _latent: Any) -> None:
            bar.total = total
            bar.update()
            saving.write_encoded()

        yield on_step


def _short(prompt: str, length: int = 40) -> str:
    return prompt if len(prompt) <= length else f"{prompt[: length - 3]}..."
