"""The published model folder: its parts, what it says of itself, reading and writing it.

    model_index.json, scheduler/, transformer/, vae/, text_encoder/, tokenizer/

`_opensana` in model_index.json keeps what the published format has no place for; other readers
skip keys that begin with an underscore. A folder may name its text encoder there instead of
holding it, and may hold a few-step transformer beside its own, in transformer_sprint/.
"""

import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import nn

from opensana.autoencoder.config import AutoencoderConfig
from opensana.autoencoder.model import Autoencoder
from opensana.bins import bins
from opensana.config import build
from opensana.device import resolve_device, resolve_dtype
from opensana.errors import NumericsError, OpensanaError, WeightsError, near
from opensana.layers.packed import can_pack, pack
from opensana.memory import memory_needed
from opensana.presets import PUBLISHED_LICENCE, facts
from opensana.published import describe_published
from opensana.request import SolverName
from opensana.text.encoder import TextEncoder
from opensana.text.gemma import gemma3_270m_folder
from opensana.text.instruction import KEPT_TOKENS
from opensana.transformer.config import TransformerConfig
from opensana.transformer.controlnet import ControlNet, ControlNetConfig, check_pair
from opensana.transformer.model import Transformer
from opensana.weights.files import (
    DTYPE_NAMES,
    VARIANTS,
    TensorInfo,
    available_variants,
    check_finite,
    is_finite,
    load_into,
    read_headers,
    read_json,
    read_safetensors,
    write_json,
    write_safetensors,
)
from opensana.weights.locate import HUB_ID, fetch, is_here, locate

DIFFUSERS_VERSION = "0.32.0"
INDEX = "model_index.json"
NOTES = "_opensana"
DPM, EULER = "DPMSolverMultistepScheduler", "FlowMatchEulerDiscreteScheduler"
SCM = "SCMScheduler"
PIPELINES = {"SanaPipeline": (DPM, EULER), "SanaSprintPipeline": (SCM,)}
SPRINT_STEPS = 2
SPRINT_PART = "transformer_sprint"
"""The folder of a few-step transformer beside the model's own; other readers know nothing of it."""
CONTROLNET_FILES = (
    *("config.json", "diffusion_pytorch_model*"),
    *("controlnet/config.json", "controlnet/diffusion_pytorch_model*"),
)
ALIGNMENT = 64
TEXT_ENCODERS = {"gemma3-270m": gemma3_270m_folder}
SCHEDULER: dict[str, Any] = {
    "_class_name": DPM,
    "_diffusers_version": DIFFUSERS_VERSION,
    "algorithm_type": "dpmsolver++",
    "final_sigmas_type": "zero",
    "flow_shift": 3.0,
    "lower_order_final": True,
    "num_train_timesteps": 1000,
    "prediction_type": "flow_prediction",
    "solver_order": 2,
    "solver_type": "midpoint",
    "use_flow_sigmas": True,
}
SPRINT_SCHEDULER: dict[str, Any] = {
    "_class_name": SCM,
    "_diffusers_version": DIFFUSERS_VERSION,
    "num_train_timesteps": 1000,
    "prediction_type": "trigflow",
    "sigma_data": 0.5,
}
EULER_SCHEDULER: dict[str, Any] = {
    "_class_name": EULER,
    "_diffusers_version": DIFFUSERS_VERSION,
    "num_train_timesteps": 1000,
    "shift": 3.0,
}
# Each of these would change the noise levels that `flow_dpm` and `euler` walk.
OTHER_SIGMAS = (
    "invert_sigmas",
    "shift_terminal",
    "stochastic_sampling",
    "use_beta_sigmas",
    "use_dynamic_shifting",
    "use_exponential_sigmas",
    "use_karras_sigmas",
)
OWN_SOLVERS: dict[str, SolverName] = {DPM: "flow_dpm", EULER: "euler", SCM: "scm"}

Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True)
class Notes:
    """The `_opensana` entry of model_index.json."""

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
    notes: Notes
    folder: Path | None = None
    scheduler: str = DPM

    @property
    def solver(self) -> SolverName:
        """What the folder's scheduler is called here: the solver of requests that name none."""
        return OWN_SOLVERS[self.scheduler]

    @property
    def sprint(self) -> "ModelInfo":
        """The same with a few-step transformer in place of the model's own."""
        return replace(self, scheduler=SCM, notes=replace(self.notes, steps=SPRINT_STEPS))


# ------------------------------------------------------------------ reading


def read_info(folder: Path, *, name: str = "") -> ModelInfo:
    """Name, shift and notes of a model folder; a scheduler that opensana lacks is an error."""
    index = read_json(folder / INDEX)
    scheduler, shift = read_shift(folder / "scheduler" / "scheduler_config.json")
    _check_kind(folder, str(index.get("_class_name", "SanaPipeline")), scheduler)
    notes = read_notes(index, name or folder.name, folder, sprint=scheduler == SCM)
    return ModelInfo(name or folder.name, shift, notes, folder, scheduler)


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


def read_notes(index: Mapping[str, Any], name: str, folder: Path, *, sprint: bool) -> Notes:
    own = Notes(steps=SPRINT_STEPS) if sprint else Notes()
    if isinstance(index.get(NOTES), dict):
        return build(Notes, {"steps": own.steps} | index[NOTES], where=f"{folder / INDEX}, {NOTES}")
    known = facts(name)
    if known is not None:
        return Notes(
            instruction=known.instruction,
            licence=known.licence,
            steps=known.steps,
            guidance=known.guidance,
        )
    published = name.startswith("Efficient-Large-Model/")
    return replace(own, licence=PUBLISHED_LICENCE) if published else own


def read_shift(path: Path) -> tuple[str, float]:
    """The scheduler's class and its flow shift; 1, none, for Sprint models."""
    config = read_json(path)
    kind = str(config.get("_class_name"))
    if kind not in (DPM, EULER, SCM):
        raise WeightsError(
            f"{path}: the scheduler {kind} is not supported{near(kind, (DPM, EULER, SCM))}; "
            f"there are {DPM} with flow sigmas, {EULER} and {SCM}"
        )
    if kind == SCM:
        _check_setting(config, path, "prediction_type", "trigflow", absent="trigflow")
        return kind, 1.0
    for name in OTHER_SIGMAS:
        if config.get(name):
            raise WeightsError(f"{path}: {name} is not supported, got {config[name]!r}")
    if kind == DPM:
        _check_flow(config, path)
    shift = config.get("flow_shift" if kind == DPM else "shift", 1.0)
    if isinstance(shift, bool) or not isinstance(shift, int | float) or not 0 < shift < 1000:
        raise WeightsError(f"{path}: the flow shift must be a positive number, got {shift!r}")
    return kind, float(shift)


def _check_flow(config: Mapping[str, Any], path: Path) -> None:
    names = ("prediction_type", "use_flow_sigmas", "algorithm_type", "solver_order", "solver_type")
    absent = {"prediction_type": "epsilon", "use_flow_sigmas": False}
    for name in names:
        wanted = SCHEDULER[name]
        _check_setting(config, path, name, wanted, absent=absent.get(name, wanted))


def _check_setting(
    config: Mapping[str, Any], path: Path, name: str, wanted: object, *, absent: object
) -> None:
    value = config.get(name, absent)
    if value != wanted:
        raise WeightsError(f"{path}: {name} must be {wanted!r}, got {value!r}")


def load_transformer(folder: Path, *, variant: str | None = None) -> Transformer:
    """The transformer of a model folder or of a folder that is one itself, for inference.

    It is on the CPU, in the stored dtype.
    """
    part = transformer_folder(folder)
    config = transformer_config(part)
    with torch.device("meta"):
        module = Transformer(config)
    _load(module, part, variant)
    return module


def load_other_transformer(own: Path, model: Path) -> Transformer:
    """The transformer in `own`, to stand in for that of the model folder.

    WeightsError where it reads or writes other things than the model's own.
    """
    config, expected = (transformer_config(transformer_folder(folder)) for folder in (own, model))
    for name in ("in_channels", "out_channels", "caption_channels"):
        got, wanted = getattr(config, name), getattr(expected, name)
        if got != wanted:
            raise WeightsError(
                f"{own} has {name} {got}, and the other parts of this model need {wanted}; "
                "name the model whose features it was trained on"
            )
    return load_transformer(own)


def load_autoencoder(folder: Path, *, variant: str | None = None) -> Autoencoder:
    """The autoencoder of a model folder or of a folder that is one itself, for inference."""
    part = autoencoder_folder(folder)
    config = autoencoder_config(part)
    with torch.device("meta"):
        module = Autoencoder(config)
    _load(module, part, variant)
    return module


def load_controlnet(
    source: str | Path, transformer: TransformerConfig, *, variant: str | None = None
) -> ControlNet:
    """The ControlNet in a folder, in its folder `controlnet`, or of a hub id, for inference.

    ConfigError if it was made for another transformer.
    """
    part = controlnet_folder(source)
    config = ControlNetConfig.from_dict(_config(part, "SanaControlNetModel"))
    check_pair(transformer, config)
    with torch.device("meta"):
        module = ControlNet(config)
    _load(module, part, variant)
    return module


def _load(module: nn.Module, part: Path, variant: str | None) -> None:
    load_into(module, read_safetensors(part, variant=part_variant(part, variant)), where=part)
    module.eval().requires_grad_(False)


def settle(module: Module, device: torch.device, dtype: torch.dtype) -> Module:
    """The module where and as it will run.

    Tensors mapped from a file start anywhere; kernels round differently there, so that a loaded
    model would differ in its last bits from the one that was saved.
    """
    module.to(device, dtype)
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.device.type == "cpu" and tensor.data_ptr() % ALIGNMENT:
            tensor.data = tensor.data.clone()
    return module


def ready(module: Module, device: torch.device, dtype: torch.dtype) -> Module:
    """The module settled for inference: its linear layers packed where that is faster."""
    settle(module, device, dtype)
    if can_pack(device, dtype):
        pack(module)
    return module


def part_variant(part: Path, variant: str | None) -> str | None:
    """The variant asked for where the part has it, else the plain files, as published models do."""
    if variant is not None and variant not in VARIANTS:
        raise WeightsError(f"no such variant {variant!r}{near(variant, VARIANTS)}: fp16 or bf16")
    return variant if variant in available_variants(part) else None


def transformer_config(part: Path) -> TransformerConfig:
    return TransformerConfig.from_dict(_config(part, "SanaTransformer2DModel"))


def autoencoder_config(part: Path) -> AutoencoderConfig:
    return AutoencoderConfig.from_dict(_config(part, "AutoencoderDC"))


def transformer_folder(folder: Path) -> Path:
    return folder / "transformer" if (folder / "transformer").is_dir() else folder


def autoencoder_folder(folder: Path) -> Path:
    return folder / "vae" if (folder / "vae").is_dir() else folder


def controlnet_folder(source: str | Path) -> Path:
    """Where a ControlNet's config.json lies; of a hub id only the ControlNet is fetched."""
    folder = Path(source).expanduser()
    if not folder.exists() and HUB_ID.fullmatch(str(source)):
        folder = fetch(str(source), CONTROLNET_FILES)
    part = folder / "controlnet" if (folder / "controlnet").is_dir() else folder
    if not (part / "config.json").is_file():
        raise WeightsError(
            f"{source} holds no ControlNet: name the folder with its config.json, the one above "
            "its folder `controlnet`, or a hub id (owner/name)"
        )
    return part


def _config(part: Path, kind: str) -> dict[str, Any]:
    config = read_json(part / "config.json")
    if config.get("_class_name", kind) != kind:
        raise WeightsError(f"{part} holds a {config['_class_name']}, expected a {kind}")
    return config


def load_text(
    folder: Path, info: ModelInfo, *, device: torch.device, dtype: torch.dtype
) -> TextEncoder:
    """The text encoder in the folder, or the one that its notes name."""
    source = TEXT_ENCODERS[info.notes.text_encoder]() if info.notes.text_encoder else folder
    encoder = TextEncoder.load(
        source,
        device=device,
        dtype=dtype,
        instruction=info.notes.instruction,
        max_tokens=info.notes.max_tokens,
    )
    if not info.notes.text_encoder:  # a package's file is known by its SHA-256
        check_finite(encoder.model.state_dict(), where=folder / "text_encoder")
    ready(encoder.model, device, dtype)
    return encoder


def stored_dtype(folder: Path, variant: str | None = None) -> torch.dtype:
    """The number format of the stored transformer."""
    part = folder / "transformer"
    headers = read_headers(part, variant=part_variant(part, variant))
    return DTYPE_NAMES.get(main_dtype(headers), torch.float32)


def main_dtype(headers: Mapping[str, TensorInfo]) -> str:
    """The dtype that holds most of the numbers."""
    totals: dict[str, int] = {}
    for tensor in headers.values():
        totals[tensor.dtype] = totals.get(tensor.dtype, 0) + tensor.size
    return max(totals, key=lambda name: totals[name], default="F32")


def part_dtype(device: torch.device, transformer: torch.dtype) -> torch.dtype:
    """Text encoder and autoencoder follow the transformer, but overflow in float16."""
    if transformer != torch.float16:
        return transformer
    return resolve_dtype(device, None, torch.bfloat16)


# ------------------------------------------------------------------ writing


def write_model(
    folder: str | Path,
    *,
    text: TextEncoder,
    transformer: Transformer,
    autoencoder: Autoencoder,
    info: ModelInfo,
    sprint: Transformer | None = None,
) -> Path:
    """The whole model in the published layout; the folder appears complete or not at all."""
    with published(Path(folder)) as partial:
        write_transformer(transformer, partial / "transformer")
        if sprint is not None:
            write_transformer(sprint, partial / SPRINT_PART)
        write_autoencoder(autoencoder, partial / "vae")
        write_scheduler(partial, info.shift, info.scheduler)
        text.model.save_pretrained(partial / "text_encoder")
        text.tokenizer.save_pretrained(partial / "tokenizer")
        classes = (type(text.model).__name__, type(text.tokenizer).__name__)
        notes = replace(info.notes, text_encoder=None)
        write_json(partial / INDEX, model_index(*classes, notes=notes, scheduler=info.scheduler))
    return Path(folder)


def write_model_without_text(
    folder: str | Path,
    *,
    transformer: Transformer,
    autoencoder: Autoencoder,
    shift: float,
    notes: Notes,
    sprint: Transformer | None = None,
    dtype: torch.dtype | None = None,
) -> Path:
    """A model whose notes name the package of its text encoder, stored in `dtype`."""
    assert notes.text_encoder is not None, "the notes must say where the text encoder is"
    scheduler = SCM if transformer.config.guidance_embeds else DPM
    with published(Path(folder)) as partial:
        write_transformer(transformer, partial / "transformer", dtype=dtype)
        if sprint is not None:
            write_transformer(sprint, partial / SPRINT_PART, dtype=dtype)
        write_autoencoder(autoencoder, partial / "vae", dtype=dtype)
        write_scheduler(partial, shift, scheduler)
        write_json(partial / INDEX, model_index(None, None, notes=notes, scheduler=scheduler))
    return Path(folder)


def write_transformer(module: Transformer, part: Path, *, dtype: torch.dtype | None = None) -> None:
    """config.json and weights of one transformer, stored in `dtype` if given."""
    _write_part(module, module.config.to_dict(), part, dtype)


def write_controlnet(module: ControlNet, part: Path, *, dtype: torch.dtype | None = None) -> None:
    """config.json and weights of one ControlNet, stored in `dtype` if given."""
    _write_part(module, module.config.to_dict(), part, dtype)


def write_autoencoder(module: Autoencoder, part: Path, *, dtype: torch.dtype | None = None) -> None:
    """config.json and weights of one autoencoder, stored in `dtype` if given."""
    _write_part(module, module.config.to_dict(), part, dtype)


def _write_part(
    module: nn.Module, config: Mapping[str, Any], part: Path, dtype: torch.dtype | None
) -> None:
    state = module.state_dict()
    if dtype is not None:
        state = {k: v.to(dtype) if v.is_floating_point() else v for k, v in state.items()}
    for key, value in state.items():
        if not is_finite(value):
            raise NumericsError(f"{key!r} holds NaN or infinite values: not written to {part}")
    write_safetensors(state, part)
    write_json(part / "config.json", {"_diffusers_version": DIFFUSERS_VERSION, **config})


def write_scheduler(folder: Path, shift: float, scheduler: str = DPM) -> None:
    """scheduler/scheduler_config.json of that class; Sprint's has no shift."""
    (folder / "scheduler").mkdir(parents=True, exist_ok=True)
    configs = {
        DPM: {**SCHEDULER, "flow_shift": shift},
        EULER: {**EULER_SCHEDULER, "shift": shift},
        SCM: SPRINT_SCHEDULER,
    }
    write_json(folder / "scheduler" / "scheduler_config.json", configs[scheduler])


def model_index(
    text_encoder: str | None, tokenizer: str | None, *, notes: Notes, scheduler: str = DPM
) -> dict[str, Any]:
    """The content of model_index.json; a class is None where the folder has no such part."""
    absent = [None, None]
    return {
        "_class_name": "SanaSprintPipeline" if scheduler == SCM else "SanaPipeline",
        "_diffusers_version": DIFFUSERS_VERSION,
        NOTES: asdict(notes),
        "scheduler": ["diffusers", scheduler],
        "text_encoder": ["transformers", text_encoder] if text_encoder else absent,
        "tokenizer": ["transformers", tokenizer] if tokenizer else absent,
        "transformer": ["diffusers", "SanaTransformer2DModel"],
        "vae": ["diffusers", "AutoencoderDC"],
    }


@contextmanager
def published(folder: Path) -> Iterator[Path]:
    """A folder beside `folder` that takes its place once the block has ended well."""
    if folder.exists() and not _may_replace(folder):
        raise OpensanaError(f"{folder} exists and is not a model folder: give another place")
    partial = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}.partial")
    try:
        partial.mkdir(parents=True)
        yield partial
        _swap(partial, folder)
    except OSError as error:
        raise OpensanaError(f"{folder} cannot be written: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _may_replace(folder: Path) -> bool:
    return folder.is_dir() and ((folder / INDEX).is_file() or not any(folder.iterdir()))


def _swap(partial: Path, folder: Path) -> None:
    old = partial.with_suffix(".old")
    if folder.exists():
        os.replace(folder, old)
    os.replace(partial, folder)
    shutil.rmtree(old, ignore_errors=True)


# ------------------------------------------------------------------ describing


def describe(
    model: str | Path,
    *,
    revision: str | None = None,
    variant: str | None = None,
    device: str = "auto",
) -> dict[str, Any]:
    """What `opensana info` shows, from configs and file headers; no weights are read.

    A published model is not fetched for it: what is known of it is shown instead.
    """
    if not is_here(model, revision=revision):
        published = describe_published(str(model), device=device)
        if published is not None:
            return published
    folder = locate(model, revision=revision, variant=variant)
    if not (folder / INDEX).is_file():
        return _describe_autoencoder(folder, str(model), variant)
    info = read_info(folder, name=str(model))
    autoencoder = autoencoder_config(folder / "vae")
    transformer = transformer_config(folder / "transformer")
    side = transformer.sample_size * autoencoder.compression
    names = [name for name in ("transformer", SPRINT_PART, "vae") if (folder / name).is_dir()]
    parts = {name: _part(folder / name, variant) for name in names}
    parts["text_encoder"] = _text_part(folder, info)
    known = facts(str(model))
    place = resolve_device(device)
    stored = DTYPE_NAMES.get(str(parts["transformer"]["dtype"]), torch.float32)
    main = resolve_dtype(place, None, stored)
    others = part_dtype(place, main)
    counts = {part: found["parameters"] or 0 for part, found in parts.items()}
    memory = memory_needed(counts, transformer, autoencoder, main=main, others=others)
    return {
        "model": str(model),
        "folder": str(folder),
        "licence": info.notes.licence,
        "native_size": side,
        "shift": info.shift,
        "scheduler": info.scheduler,
        "instruction": info.notes.instruction,
        "recommended_steps": info.notes.steps,
        "recommended_guidance": info.notes.guidance,
        "dtype": parts["transformer"]["dtype"],
        "dtype_rule": known.dtype_rule if known else "as stored; float32 on a CPU",
        "computed_in": str(main).removeprefix("torch."),
        "positions": transformer.positions,
        "binned_sizes": [f"{width}x{height}" for width, height in bins(side).values()],
        "parameters": sum(part["parameters"] or 0 for part in parts.values()),
        "parts": parts,
        "memory": memory.to_dict(),
    }


def _describe_autoencoder(folder: Path, name: str, variant: str | None) -> dict[str, Any]:
    config = autoencoder_config(folder)
    part = _part(folder, variant)
    return {
        "model": name,
        "folder": str(folder),
        "dtype": part["dtype"],
        "compression": config.compression,
        "latent_channels": config.latent_channels,
        "scaling_factor": config.scaling_factor,
        "parameters": part["parameters"],
        "parts": {"vae": part},
    }


def _part(part: Path, variant: str | None) -> dict[str, Any]:
    headers = read_headers(part, variant=part_variant(part, variant))
    return {
        "class": str(read_json(part / "config.json").get("_class_name", "unknown")),
        "parameters": sum(tensor.size for tensor in headers.values()),
        "dtype": main_dtype(headers),
        "bytes": sum(tensor.bytes for tensor in headers.values()),
    }


def _text_part(folder: Path, info: ModelInfo) -> dict[str, Any]:
    if info.notes.text_encoder:
        return {"class": info.notes.text_encoder, "parameters": None, "dtype": "F32", "bytes": None}
    part = folder / "text_encoder"
    headers = read_headers(part)
    architectures = read_json(part / "config.json").get("architectures") or ["unknown"]
    return {
        "class": str(architectures[0]),
        "parameters": sum(tensor.size for tensor in headers.values()),
        "dtype": main_dtype(headers),
        "bytes": sum(tensor.bytes for tensor in headers.values()),
    }
