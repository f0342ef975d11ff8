"""Models of transformers that caption pictures or embed them: naming and loading them."""

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from opensana.errors import WeightsError
from opensana.text.loading import SOFTCAP, without_progress
from opensana.weights.locate import LIBRARY_FILES

SAFE = {"local_files_only": True, "trust_remote_code": False}


def published_name(name: str) -> str:
    """How a model is named in the labels: its hub id, or its folder's name wherever that lies."""
    folder = Path(name).expanduser()
    return folder.resolve().name if folder.is_dir() else name


def fingerprint(folder: Path) -> str:
    """Which model it is: the commit of a download, else a digest of its files' bytes."""
    if re.fullmatch(r"[0-9a-f]{40}", folder.name) and folder.parent.name == "snapshots":
        return folder.name
    digest = hashlib.sha256()
    for path in sorted(p for pattern in LIBRARY_FILES for p in folder.glob(pattern)):
        with path.open("rb") as stream:
            digest.update(f"{path.name};".encode())
            digest.update(hashlib.file_digest(stream, "sha256").digest())
    return f"sha256:{digest.hexdigest()[:16]}"


def load(folder: Path, auto_class: str, *needed: str) -> tuple[Any, Any]:
    """Model and processor by one of transformers' auto classes; the model has what is needed."""
    import transformers

    with _reading(folder):
        processor = transformers.AutoProcessor.from_pretrained(folder, **SAFE)
    return load_model(folder, auto_class, *needed), processor


def load_model(folder: Path, class_name: str, *needed: str) -> Any:
    """A model by one of transformers' classes, with every weight and all that is needed of it."""
    import transformers

    with _reading(folder):
        config = transformers.AutoConfig.from_pretrained(folder, **SAFE)
        # Fused attention kernels may drop the softcap of a language model's logits.
        softcap = getattr(config.get_text_config(), SOFTCAP, None)
        model, report = getattr(transformers, class_name).from_pretrained(
            folder,
            dtype="auto",
            attn_implementation=None if softcap is None else "eager",
            use_safetensors=True,
            output_loading_info=True,
            **SAFE,
        )
    if report["missing_keys"]:
        raise WeightsError(f"the model in {folder} lacks {sorted(report['missing_keys'])[:3]}")
    for name in needed:
        if not hasattr(model, name):
            raise WeightsError(f"{type(model).__name__} in {folder} has no {name}: another kind")
    return model


@contextmanager
def _reading(folder: Path) -> Iterator[None]:
    """One line for whatever transformers raises; no bars and no lists of weights without a use."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with without_progress():
            yield
    except Exception as error:  # transformers raises nearly anything, ImportError among them
        reason = " ".join(str(error).split())[:300]
        raise WeightsError(f"cannot read the model in {folder}: {reason}") from error
    finally:
        logging.set_verbosity(level)
