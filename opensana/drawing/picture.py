"""Picture: an image with the request that drew it, and the PNG chunks that keep both together.

The chunk `parameters` is the text that A1111-style tools read; the chunk `opensana` is JSON from
which exactly the same request can be read back.
"""

import io
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin

from opensana.config import build
from opensana.drawing.recorded import each
from opensana.errors import RequestError
from opensana.files.writing import write_atomic
from opensana.request import Request

CHUNK = "opensana"
FORMAT = 1
# The nearest that other tools have: LCM, too, adds fresh noise to a guess of the data.
SAMPLER_NAMES = {"flow_dpm": "DPM++ 2M", "euler": "Euler", "scm": "LCM"}


@dataclass(frozen=True)
class Picture:
    """One picture; `request` draws exactly this one again (its own seed, its size, one image)."""

    image: Image.Image
    request: Request
    model: str = ""
    provenance: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """What it was drawn from, beside model and request: files by their digests, scales."""

    @property
    def metadata(self) -> dict[str, str]:
        """The PNG text chunks."""
        note = {
            "format": FORMAT,
            "model": self.model,
            **self.provenance,
            "request": asdict(self.request),
        }
        text = parameters(self.request, self.model, self.provenance)
        return {"parameters": text, CHUNK: json.dumps(note)}

    def png(self, *, metadata: bool = True) -> bytes:
        """The encoded file."""
        chunks = PngImagePlugin.PngInfo()
        for key, text in self.metadata.items() if metadata else ():
            # The path of a model may be no text: it holds lone surrogates, which UTF-8 has not.
            readable = text.replace("\0", "").encode("utf-8", "backslashreplace").decode("utf-8")
            chunks.add_text(key, readable)
        buffer = io.BytesIO()
        self.image.save(buffer, format="PNG", pnginfo=chunks)
        return buffer.getvalue()

    def save(self, path: str | Path, *, metadata: bool = True) -> Path:
        """Write a PNG atomically: there is the whole file or none."""
        return write_png(path, self.png(metadata=metadata))


def write_png(path: str | Path, content: bytes) -> Path:
    """Write the bytes of a PNG atomically; RequestError for a name of another kind."""
    path = Path(path)
    if path.suffix.lower() != ".png":
        raise RequestError(f"pictures are written as PNG, got {path.name!r}; try a name in .png")
    write_atomic(path, lambda temporary: temporary.write_bytes(content))
    return path


def parameters(
    request: Request, model: str = "", provenance: Mapping[str, Any] | None = None
) -> str:
    """The A1111 text: prompt with a tag for each LoRA, negative prompt, one line of settings."""
    loras = _loras(provenance or {})
    tags = (f"<lora:{name}:{_number(scale)}>" for name, _, scale in loras)
    lines = [" ".join((request.prompt, *tags))]
    if request.negative_prompt:
        lines.append(f"Negative prompt: {request.negative_prompt}")
    settings = {
        "Steps": request.steps,
        "Sampler": request.solver and SAMPLER_NAMES[request.solver],
        "CFG scale": request.guidance,
        "Seed": request.seed,
        "Size": f"{request.width}x{request.height}",
        "Denoising strength": request.strength,
        "Model": model,
        "Lora hashes": ", ".join(f"{name}: {digest[:10]}" for name, digest, _ in loras),
    }
    lines.append(
        ", ".join(f"{k}: {_quoted(v)}" for k, v in settings.items() if v not in ("", None))
    )
    return "\n".join(lines)


def _loras(provenance: Mapping[str, Any]) -> list[tuple[str, str, float]]:
    """Name, digest and scale of each LoRA; the name as it can stand in a prompt."""
    columns = (each(provenance.get(f"lora_{part}")) for part in ("name", "sha256", "scale"))
    return [
        (re.sub(r"[<>:,\s]+", "_", name), digest, scale)
        for name, digest, scale in zip(*columns, strict=True)
    ]


def _number(scale: float) -> str:
    """As other tools read it, without an exponent."""
    return f"{scale:.9f}".rstrip("0").rstrip(".")


def _quoted(value: object) -> str:
    text = str(value)
    odd = set(text) & set(',:"\n') or text != text.strip()
    return json.dumps(text, ensure_ascii=False) if odd else text


def read_note(path: str | Path) -> dict[str, Any]:
    """The `opensana` chunk of a PNG: model, format, request."""
    try:
        with Image.open(path) as image:
            image.load()
            text = getattr(image, "text", {}).get(CHUNK)
    except FileNotFoundError:
        raise RequestError(f"no picture {path}") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise RequestError(f"{path} is not a readable PNG: {error}") from error
    if text is None:
        raise RequestError(f"{path} carries no opensana settings; was it saved without metadata?")
    try:
        note = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{path}: its opensana settings are damaged: {error}") from error
    if not isinstance(note, dict) or not isinstance(note.get("request"), dict):
        raise RequestError(f"{path}: its opensana settings hold no request")
    return note


def read_request(path: str | Path) -> Request:
    """The request that draws the picture in `path` again."""
    note = read_note(path)
    if note.get("format") != FORMAT:
        raise RequestError(f"{path} has settings of format {note.get('format')}, known is {FORMAT}")
    return build(Request, note["request"], where=str(path))
