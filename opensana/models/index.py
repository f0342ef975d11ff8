"""model_index.json: what a model folder is, and what is known of it besides its networks.

`_opensana` in it keeps what the published format has no place for; other readers skip keys that
begin with an underscore.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from opensana.config import build
from opensana.errors import WeightsError
from opensana.files.writing import read_json
from opensana.models.parts import autoencoder_config, transformer_config
from opensana.models.scheduler import DIFFUSERS_VERSION, DPM, EULER, OWN_SOLVERS, SCM, read_shift
from opensana.request import SolverName
from opensana.text.gguf import gguf_in, read_config
from opensana.text.instruction import KEPT_TOKENS
from opensana.transformer.config import TransformerConfig
from opensana.weights.gguf import GgufFile
from opensana.weights.published_models import PUBLISHED_LICENCE, published_model

INDEX = "model_index.json"
DEFAULTS = "_opensana"
PIPELINES = {"SanaPipeline": (DPM, EULER), "SanaSprintPipeline": (SCM,)}
SPRINT_STEPS = 2


@dataclass(frozen=True)
class ModelDefaults:
    """The `_opensana` entry of model_index.json: how a model is drawn with unless one asks."""

    text_encoder: Literal["gemma3-270m"] | None = None
    """The package that holds the text encoder, where the folder has none."""
    instruction: Literal["diffusers", "official", "none"] = "diffusers"
    max_tokens: int = KEPT_TOKENS
    licence: str = "unknown: ask whoever gave you this model"
    steps: int = 20
    guidance: float = 4.5


@dataclass(frozen=True)
class ModelInfo:
    """What is known of a model besides its networks."""

    name: str
    shift: float
    defaults: ModelDefaults
    folder: Path | None = None
    scheduler: str = DPM

    @property
    def solver(self) -> SolverName:
        """What the folder's scheduler is called here: the solver of requests that name none."""
        return OWN_SOLVERS[self.scheduler]

    @property
    def sprint(self) -> "ModelInfo":
        """The same with a few-step transformer in place of the model's own."""
        return replace(self, scheduler=SCM, defaults=replace(self.defaults, steps=SPRINT_STEPS))


def read_info(folder: Path, *, name: str = "") -> ModelInfo:
    """Name, shift and defaults of a model folder; a scheduler that opensana lacks is an error."""
    index = read_json(folder / INDEX)
    scheduler, shift = read_shift(folder / "scheduler" / "scheduler_config.json")
    _check_kind(folder, str(index.get("_class_name", "SanaPipeline")), scheduler)
    _check_widths(folder, transformer_config(folder / "transformer"))
    defaults = read_defaults(index, name or folder.name, folder, sprint=scheduler == SCM)
    return ModelInfo(name or folder.name, shift, defaults, folder, scheduler)


def _check_kind(folder: Path, kind: str, scheduler: str) -> None:
    """A Sprint model is one in its index, its scheduler and its transformer."""
    if kind not in PIPELINES:
        known = " and ".join(PIPELINES)
        raise WeightsError(f"{folder} is a {kind}: opensana draws with {known} models only")
    if scheduler not in PIPELINES[kind]:
        wanted = " or ".join(PIPELINES[kind])
        raise WeightsError(f"{folder} is a {kind} with {scheduler}, but needs {wanted}")
    config = transformer_config(folder / "transformer")
    if config.guidance_embeds != (scheduler == SCM):
        raise WeightsError(
            f"{folder} is a {kind}, got a transformer with guidance_embeds {config.guidance_embeds}"
        )
    if scheduler == SCM and config.timestep_scale != 1:
        raise WeightsError(
            f"{folder} is a {kind}, whose transformer is told sigma itself, "
            f"got timestep_scale {config.timestep_scale}"
        )


def _check_widths(folder: Path, transformer: TransformerConfig) -> None:
    """What one part gives, the next must take: the text's width, the latent's and the picture's."""
    channels = transformer.in_channels
    if transformer.output_channels != channels:
        raise WeightsError(
            f"{folder}: the transformer reads {channels} channels and writes "
            f"{transformer.output_channels}; a velocity has as many as its latent"
        )
    if (folder / "vae" / "config.json").is_file():
        autoencoder = autoencoder_config(folder / "vae")
        if (autoencoder.latent_channels, autoencoder.in_channels) != (channels, 3):
            raise WeightsError(
                f"{folder}: an autoencoder of pictures with 3 channels and latents with {channels} "
                f"is needed, got {autoencoder.in_channels} and {autoencoder.latent_channels}; "
                "copy vae/ from the model that the transformer belongs to"
            )
    width = _text_width(folder / "text_encoder")
    if width not in (None, transformer.caption_channels):
        raise WeightsError(
            f"{folder}: the text encoder's states have {width} channels, the transformer reads "
            f"{transformer.caption_channels}; copy text_encoder/ and tokenizer/ from the model "
            "that the transformer belongs to"
        )


def _text_width(part: Path) -> int | None:
    """The width of a text encoder's states, None where it has no file that tells."""
    if (file := gguf_in(part)) is not None:
        return read_config(GgufFile(file))["hidden_size"]
    path = part / "config.json"
    config = read_json(path) if path.is_file() else {}
    text = config.get("text_config", config)
    width = text.get("hidden_size") if isinstance(text, dict) else None
    return width if isinstance(width, int) else None


def read_defaults(
    index: Mapping[str, Any], name: str, folder: Path, *, sprint: bool
) -> ModelDefaults:
    """Those of the folder, else of the published model of that name, else our own."""
    own = ModelDefaults(steps=SPRINT_STEPS) if sprint else ModelDefaults()
    if isinstance(stored := index.get(DEFAULTS), dict):
        where = f"{folder / INDEX}, {DEFAULTS}"
        return build(ModelDefaults, {"steps": own.steps} | stored, where=where)
    known = published_model(name)
    if known is not None:
        return ModelDefaults(
            instruction=known.instruction,
            licence=known.licence,
            steps=known.steps,
            guidance=known.guidance,
        )
    published = name.startswith("Efficient-Large-Model/")
    return replace(own, licence=PUBLISHED_LICENCE) if published else own


def model_index(
    text_encoder: str | None,
    tokenizer: str | None,
    *,
    defaults: ModelDefaults,
    scheduler: str = DPM,
) -> dict[str, Any]:
    """The content of model_index.json; a class is None where the folder has no such part."""
    absent = [None, None]
    return {
        "_class_name": "SanaSprintPipeline" if scheduler == SCM else "SanaPipeline",
        "_diffusers_version": DIFFUSERS_VERSION,
        DEFAULTS: asdict(defaults),
        "scheduler": ["diffusers", scheduler],
        "text_encoder": ["transformers", text_encoder] if text_encoder else absent,
        "tokenizer": ["transformers", tokenizer] if tokenizer else absent,
        "transformer": ["diffusers", "SanaTransformer2DModel"],
        "vae": ["diffusers", "AutoencoderDC"],
    }
