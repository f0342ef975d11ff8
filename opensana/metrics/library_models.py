"""Published models that describe or judge pictures: finding, naming and reading them."""

import hashlib
import re
from pathlib import Path
from typing import Any

from opensana.errors import WeightsError
from opensana.text.loading import SOFTCAP, without_progress
from opensana.weights.locate import LIBRARY_FILES


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

    safe = {"local_files_only": True, "trust_remote_code": False}
    try:
        with without_progress():
            processor = transformers.AutoProcessor.from_pretrained(folder, **safe)
            config = transformers.AutoConfig.from_pretrained(folder, **safe)
            model, report = getattr(transformers, auto_class).from_pretrained(
                folder,
                dtype="auto",
                attn_implementation="eager" if _softcapped(config) else None,
                use_safetensors=True,
                output_loading_info=True,
                **safe,
            )
    except Exception as error:  # transformers raises nearly anything, ImportError among them
        raise WeightsError(f"cannot read the model in {folder}: {_first_lines(error)}") from error
    if report["missing_keys"]:
        raise WeightsError(f"the model in {folder} lacks {sorted(report['missing_keys'])[:3]}")
    for name in needed:
        if not hasattr(model, name):
            raise WeightsError(f"{type(model).__name__} in {folder} has no {name}: another kind")
    return model, processor


def _softcapped(config: Any) -> bool:
    """Whether the language model squashes its attention's logits, which fused kernels may drop."""
    return getattr(config.get_text_config(), SOFTCAP, None) is not None


def _first_lines(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
