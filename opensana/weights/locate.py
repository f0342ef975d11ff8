"""Where a model lives: a model that comes with the package, a folder, or a hub id.

The hub is asked through huggingface_hub, which honours HF_HOME, HF_TOKEN and HF_HUB_OFFLINE.
"""

import re
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from opensana.errors import WeightsError, near
from opensana.weights.published_models import UNGATED, hub_id, suggestion
from opensana.weights.safetensors import VARIANTS

PRETRAINED = Path(__file__).resolve().parent.parent / "pretrained"
PARTS = ("scheduler", "text_encoder", "tokenizer", "transformer", "transformer_sprint", "vae")
PREVIEW = "preview.safetensors"
"""Beside an autoencoder's weights, of which it is no variant."""
TOP_FILES = ("model_index.json", "config.json", "LICENSE", "LICENSE.txt")
NEEDED_SUFFIXES = (".json", ".safetensors", ".model", ".txt", ".jinja")
LIBRARY_FILES = ("*.json", "*.safetensors", "*.model", "*.txt", "*.jinja")
"""What transformers reads of a model."""
HUB_ID = re.compile(r"[\w][\w.-]*/[\w.-]+")


def preset_names() -> list[str]:
    """The models that come with the package."""
    if not PRETRAINED.is_dir():
        return []
    return sorted(folder.name for folder in PRETRAINED.iterdir() if is_model(folder))


def is_model(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("model_index.json", "config.json"))


def _hint_at_parts(folder: Path) -> str:
    """A hint at the models inside the folder, such as what a training run has exported."""
    inside = sorted(str(part) for part in folder.iterdir() if part.is_dir() and is_model(part))
    return f"; did you mean {' or '.join(inside[:3])}?" if inside else ""


def locate(model: str | Path, *, revision: str | None = None, variant: str | None = None) -> Path:
    """The folder of `model`: a name in `preset_names()`, a folder, or a hub id (downloaded once).

    From the hub only the files that are used are fetched; `variant` picks fp16 or bf16 weights.
    """
    name = str(model)
    folder = PRETRAINED / name if name in preset_names() else Path(name).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise WeightsError(f"{name} is no model on the hub: it has no revision {revision!r}")
        if not is_model(folder):
            raise WeightsError(
                f"{folder} holds no model: it has no model_index.json or config.json"
                f"{_hint_at_parts(folder)}"
            )
        return folder
    if folder.is_file():
        raise WeightsError(f"{folder} is a file, not a model folder; try `opensana convert`")
    if HUB_ID.fullmatch(name) and not name.startswith((".", "~")):
        return _from_hub(name, revision, variant)
    hint = near(name, preset_names()) or suggestion(name)
    raise WeightsError(f"no model {name!r}{hint}; {_choices()}")


def is_here(model: str | Path, *, revision: str | None = None) -> bool:
    """Whether `locate` needs no download: true of everything but a hub id that is not stored."""
    name = str(model)
    if not HUB_ID.fullmatch(name) or Path(name).exists():
        return True
    try:
        return _stored(name, revision).is_dir()
    except (OSError, ValueError):
        return False


def locate_file(source: str | Path, *, revision: str | None = None) -> Path:
    """A single file: a path, or `hf://owner/repository/path/in/it` (fetched once)."""
    name = str(source)
    if name.startswith("hf://"):
        parts = name.removeprefix("hf://").split("/", 2)
        if len(parts) != 3 or not all(parts):
            raise WeightsError(f"{name!r} is not of the form hf://owner/repository/file")
        return _file_from_hub("/".join(parts[:2]), parts[2], revision)
    path = Path(name).expanduser()
    if not path.is_file():
        raise WeightsError(f"no file {path}")
    return path


def locate_library(model: str | Path) -> Path:
    """The folder of a model in the layout of transformers, such as a CLIP or a captioner.

    `model` is a folder with a config.json, or a hub id (downloaded once).
    """
    name = str(model)
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise WeightsError(f"{folder} holds no model: config.json is missing")
        return folder
    if HUB_ID.fullmatch(name) and not name.startswith("."):
        return fetch(name, LIBRARY_FILES)
    raise WeightsError(f"no model {name!r}: it is neither a folder nor a hub id (owner/name)")


def fetch(name: str, patterns: Sequence[str]) -> Path:
    """The folder of a hub id with the files that match, for models of any other layout."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.constants import is_offline_mode

    def cached() -> Path:
        return Path(snapshot_download(name, local_files_only=True))

    def download() -> Path:
        return Path(snapshot_download(name, allow_patterns=list(patterns)))

    return _ask_hub(name, cached if is_offline_mode() else download, cached)


def _choices() -> str:
    known = ", ".join(preset_names()) or "none"
    return f"give a folder, a hub id (owner/name), or one of the models that come along: {known}"


# ------------------------------------------------------------------ the hub


def _from_hub(name: str, revision: str | None, variant: str | None) -> Path:
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.constants import is_offline_mode

    def cached() -> Path:
        return _stored(name, revision)

    def download() -> Path:
        files = HfApi().list_repo_files(name, revision=revision)
        needed = needed_files(files, variant)
        if not needed:
            other = hub_id(name)
            hint = f": try {other}" if other else ""
            raise WeightsError(f"{name} on the hub holds no model in the published layout{hint}")
        return Path(snapshot_download(name, revision=revision, allow_patterns=needed))

    return _ask_hub(name, cached if is_offline_mode() else download, cached)


def _stored(name: str, revision: str | None) -> Path:
    """The folder of an earlier download.

    Only needed files were fetched then, so that huggingface_hub 2 calls the folder incomplete;
    what is really missing from it is named when it is read.
    """
    from huggingface_hub import errors, snapshot_download

    try:
        return Path(snapshot_download(name, revision=revision, local_files_only=True))
    except errors.LocalEntryNotFoundError as error:
        folder = getattr(error, "snapshot_path", None)
        if folder is None:
            raise
        return Path(folder)


def _file_from_hub(name: str, file: str, revision: str | None) -> Path:
    from huggingface_hub import hf_hub_download

    def fetch() -> Path:
        return Path(hf_hub_download(name, file, revision=revision))

    def cached() -> Path:
        return Path(hf_hub_download(name, file, revision=revision, local_files_only=True))

    return _ask_hub(name, fetch, cached)


def _ask_hub(name: str, fetch: Callable[[], Path], cached: Callable[[], Path]) -> Path:
    from huggingface_hub import errors

    try:
        return fetch()
    except errors.HFValidationError as error:
        raise WeightsError(f"{name!r} is no hub id: {error}") from error
    except errors.GatedRepoError as error:
        copy = f"; or take the open copy {UNGATED[name]}" if name in UNGATED else ""
        raise WeightsError(
            f"{name} is gated: accept its terms at https://huggingface.co/{name}, "
            f"then log in with `hf auth login` or set HF_TOKEN{copy}"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise WeightsError(f"{name} has no such revision on the hub") from error
    except errors.RepositoryNotFoundError as error:
        raise WeightsError(
            f"the hub has no public model {name!r}{_published(name)}: check the spelling; "
            "for a private one log in with `hf auth login` or set HF_TOKEN"
        ) from error
    except errors.RemoteEntryNotFoundError as error:
        raise WeightsError(f"{name} has no such file on the hub") from error
    except errors.LocalEntryNotFoundError as error:
        raise _not_cached(name) from error
    except errors.HfHubHTTPError as error:
        raise _refused(name, error) from error
    except (OSError, _http_error()) as error:
        return _from_cache(name, error, cached)


def _published(name: str) -> str:
    return suggestion(name.partition("/")[2])


def _http_error() -> type[Exception]:
    """The error class of whichever HTTP library huggingface_hub uses."""
    from huggingface_hub.errors import HfHubHTTPError

    bases = [base for base in HfHubHTTPError.__mro__ if base.__name__ == "HTTPError"]
    return bases[-1] if bases else HfHubHTTPError


def _not_cached(name: str) -> WeightsError:
    return WeightsError(
        f"{name} is not on this machine and the hub cannot be reached (offline, or HF_HUB_OFFLINE "
        f"is set): connect once, or give a folder; {_choices()}"
    )


def _refused(name: str, error: Exception) -> WeightsError:
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        return WeightsError(
            f"the hub refused {name} ({status}): your token is missing or has no access; "
            "log in with `hf auth login` or set HF_TOKEN"
        )
    return WeightsError(f"the hub could not serve {name} (status {status}): try again later")


def _from_cache(name: str, error: Exception, cached: Callable[[], Path]) -> Path:
    """The hub did not answer: an earlier download will do, and the user is told."""
    try:
        folder = cached()
    except (OSError, ValueError):
        raise _not_cached(name) from error
    warnings.warn(f"the hub cannot be reached; using the stored copy of {name}", stacklevel=2)
    return folder


def needed_files(files: Iterable[str], variant: str | None) -> list[str]:
    """Of a repository's files, those that a model folder needs, with one variant of the weights."""
    groups: dict[str, list[str]] = {}
    for file in files:
        if _is_wanted(file):
            groups.setdefault(str(Path(file).parent), []).append(file)
    # The text encoder is read in its plain form.
    variants = {group: None if group == "text_encoder" else variant for group in groups}
    return sorted(f for name, group in groups.items() for f in _one_variant(group, variants[name]))


def _is_wanted(file: str) -> bool:
    path = Path(file)
    if len(path.parts) == 1:
        weights = file.startswith("diffusion_pytorch_model") and file.endswith(NEEDED_SUFFIXES)
        return file in TOP_FILES or weights
    return len(path.parts) == 2 and path.parts[0] in PARTS and file.endswith(NEEDED_SUFFIXES)


def _one_variant(files: list[str], variant: str | None) -> list[str]:
    """A part without the asked variant comes in its plain form, as the published models do."""
    weights = [file for file in files if ".safetensors" in file and Path(file).name != PREVIEW]
    present = {_variant_of(file) for file in weights}
    kept = variant if variant in present else None
    if kept is None and None not in present and len(present) == 1:
        kept = next(iter(present))
    return [f for f in files if f not in weights or _variant_of(f) == kept]


def _variant_of(file: str) -> str | None:
    name = Path(file).name
    return next((v for v in VARIANTS if re.search(rf"\.{v}(\.|-\d)", name)), None)
