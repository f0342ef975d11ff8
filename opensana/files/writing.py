"""Files and folders that appear whole, or not at all; and the JSON of model folders.

A temporary name beside the target is written, flushed to disk, and renamed: a reader sees the old
content or the new, never a part, whatever ends the process.
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
    """A JSON object from a model folder; a damaged or missing file is a WeightsError."""
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
    """Write one JSON object atomically, indented as the published files are."""
    text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
    write_atomic(path, lambda temporary: temporary.write_text(text, "utf-8"))


def write_atomic(path: str | Path, write: Callable[[Path], object]) -> None:
    """Call `write` with a temporary path beside `path`, flush it to disk, then rename it.

    The temporary name is short, whatever that of `path`, which may have all that the system allows.
    """
    path = Path(path)
    temporary = path.with_name(f".{secrets.token_hex(4)}.partial")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode
        write(temporary)
        temporary.chmod(mode)  # safetensors makes its files private
        _flush(temporary)
        os.replace(temporary, path)
        _flush_folder(path.parent)
    except (OSError, SafetensorError) as error:
        raise OpensanaError(f"{path} cannot be written: {error}") from error
    finally:
        temporary.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    with path.open("rb+") as handle:
        os.fsync(handle.fileno())


def _flush_folder(folder: Path) -> None:
    """Makes the rename itself durable; only POSIX lets a folder be opened for this."""
    if os.name != "posix":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def atomic_folder(to: str | Path) -> Iterator[Path]:
    """A temporary folder that takes the place of `to` when the block ends without an error.

    OpensanaError if the disk refuses; `to` is then as it was. The temporary name is short, as in
    `write_atomic`.
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
