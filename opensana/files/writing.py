"""Atomic writes of files and folders, and the JSON of model folders.

The content is written under a temporary name, flushed to disk and renamed: a reader sees the old
content or the new one, never a part of it.
"""

import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from opensana.errors import OpensanaError, WeightsError

LARGEST_JSON = 2**26


def read_json(path: str | Path) -> dict:
    """Read a JSON object of a model folder; WeightsError if it is missing or damaged."""
    try:
        if Path(path).stat().st_size > LARGEST_JSON:
            raise WeightsError(f"{path} is larger than {LARGEST_JSON} bytes: no configuration")
        value = json.loads(Path(path).read_text("utf-8"))
    except FileNotFoundError:
        raise WeightsError(f"{path} is missing from the model folder") from None
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise WeightsError(f"{path} must hold one JSON object, got {type(value).__name__}")
    return value


def write_json(path: str | Path, value: Mapping) -> None:
    """Write a JSON object atomically, indented like the published files."""
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    write_atomic(path, lambda temporary: temporary.write_text(text, "utf-8"))


def write_atomic(path: str | Path, write: Callable[[Path], object]) -> None:
    """Call `write` with a temporary path beside `path`, flush it to disk, then rename it.

    The temporary name is short: that of `path` may be as long as the system allows.
    """
    path = Path(path)
    temporary = path.with_name(f".{secrets.token_hex(4)}.partial")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode
        write(temporary)
        temporary.chmod(mode)  # safetensors makes its files private
        sync(temporary)
        os.replace(temporary, path)
        sync(path.parent)
    except (OSError, SafetensorError) as error:
        raise OpensanaError(f"{path} cannot be written: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def remove_partial(folder: Path) -> None:
    """Remove what a process that was killed has left of `write_atomic` in a folder of its own."""
    for left in folder.glob(".*.partial"):
        left.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Flush a file to disk, or on POSIX a folder, which makes its renames durable."""
    folder = path.is_dir()
    if folder and os.name != "posix":
        return
    descriptor = os.open(path, os.O_RDONLY if folder else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def atomic_folder(to: str | Path) -> Iterator[Path]:
    """A temporary folder that replaces `to` when the block ends without an error.

    OpensanaError if it cannot be written; `to` is then unchanged. The temporary name is short, as
    in `write_atomic`.
    """
    to = Path(to)
    folder = to.with_name(f".{secrets.token_hex(4)}.partial")
    old = folder.with_suffix(".old")
    try:
        folder.mkdir(parents=True)
        yield folder
        if to.exists():
            os.replace(to, old)
        os.replace(folder, to)
    except OSError as error:
        raise OpensanaError(f"{to} cannot be written: {error}") from error
    finally:
        if old.exists() and not to.exists():
            os.replace(old, to)
        shutil.rmtree(folder, ignore_errors=True)
        shutil.rmtree(old, ignore_errors=True)
