"""The published models: their repositories on the hub, and what their files do not say.

The architectures that they name are values in `models/presets.py`.
"""

from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal

OWNER = "Efficient-Large-Model"
SUFFIX = "_diffusers"
PUBLISHED_LICENCE = "weights: NVIDIA NSCL v2-custom (non-commercial) and Gemma terms"
DTYPE_RULES = {
    "fp16": "transformer fp16; text encoder and autoencoder bf16 or fp32, never fp16",
    "bf16": "all parts bf16; never fp16",
}


@dataclass(frozen=True)
class PublishedModel:
    """What a model's user must know and its files do not say."""

    transformer: str
    dtype: Literal["fp16", "bf16"]
    native_size: int
    shift: float = 3.0
    steps: int = 20
    guidance: float = 4.5
    instruction: Literal["diffusers", "official", "none"] = "diffusers"
    licence: str = PUBLISHED_LICENCE
    autoencoder: str = "dc_ae_f32c32_sana_1_0"

    @property
    def dtype_rule(self) -> str:
        return DTYPE_RULES[self.dtype]


NEWER_DECODER = "dc_ae_f32c32_sana_1_1"


def _sprint(transformer: str) -> PublishedModel:
    """Few steps, no shift: see `flow/scm.py`."""
    return PublishedModel(transformer, "bf16", 1024, shift=1.0, steps=2, autoencoder=NEWER_DECODER)


def _teacher(transformer: str) -> PublishedModel:
    """To distil from: its timestep is sigma, as in Sprint, so that no other sampler fits."""
    return PublishedModel(transformer, "bf16", 1024, autoencoder=NEWER_DECODER)


MODELS: dict[str, PublishedModel] = {
    "Sana_600M_512px": PublishedModel("sana_600m_512", "fp16", 512),
    "Sana_600M_1024px": PublishedModel("sana_600m_1024", "fp16", 1024),
    "Sana_1600M_512px": PublishedModel("sana_1600m_512", "fp16", 512),
    "Sana_1600M_512px_MultiLing": PublishedModel("sana_1600m_512", "fp16", 512),
    "Sana_1600M_1024px": PublishedModel("sana_1600m_1024", "fp16", 1024),
    "Sana_1600M_1024px_MultiLing": PublishedModel("sana_1600m_1024", "fp16", 1024),
    "Sana_1600M_1024px_BF16": PublishedModel("sana_1600m_1024", "bf16", 1024),
    "Sana_1600M_2Kpx_BF16": PublishedModel("sana_1600m_2k", "bf16", 2048),
    "Sana_1600M_4Kpx_BF16": PublishedModel("sana_1600m_4k", "bf16", 4096, shift=6.0),
    "SANA1.5_1.6B_1024px": PublishedModel("sana_1_5_1600m", "bf16", 1024),
    "SANA1.5_4.8B_1024px": PublishedModel("sana_1_5_4800m", "bf16", 1024),
    "Sana_Sprint_0.6B_1024px": _sprint("sprint_600m"),
    "Sana_Sprint_1.6B_1024px": _sprint("sprint_1600m"),
    "Sana_Sprint_0.6B_1024px_teacher": _teacher("sprint_teacher_600m"),
    "Sana_Sprint_1.6B_1024px_teacher": _teacher("sprint_teacher_1600m"),
}
AUTOENCODERS = (
    "mit-han-lab/dc-ae-f32c32-sana-1.0-diffusers",
    "mit-han-lab/dc-ae-f32c32-sana-1.1-diffusers",
    "mit-han-lab/dc-ae-lite-f32c32-sana-1.1-diffusers",
    "mit-han-lab/dc-ae-f32c32-in-1.0-diffusers",
    "mit-han-lab/dc-ae-f32c32-mix-1.0-diffusers",
    "mit-han-lab/dc-ae-f64c128-in-1.0-diffusers",
    "mit-han-lab/dc-ae-f64c128-mix-1.0-diffusers",
    "mit-han-lab/dc-ae-f128c512-in-1.0-diffusers",
    "mit-han-lab/dc-ae-f128c512-mix-1.0-diffusers",
)
UNGATED = {"google/gemma-2-2b-it": f"{OWNER}/gemma-2-2b-it"}
"""Copies, which the published folders use, of text encoders behind terms to accept."""


def published_model(name: str) -> PublishedModel | None:
    """A published model by its hub id or folder name; None if it is not one."""
    # Published pages write Sana_Sprint and SANA_Sprint for one and the same model.
    return {plain_name(known): found for known, found in MODELS.items()}.get(plain_name(name))


def plain_name(model: str) -> str:
    """A hub id, folder or file name without owner, layout and case, as the tables compare it."""
    name = model.replace("\\", "/").rstrip("/").rpartition("/")[2].lower()
    return name.removesuffix(SUFFIX).removesuffix("-diffusers")


def hub_id(model: str) -> str | None:
    """The repository of a published model from any way to write its name; None for others."""
    whole = (f"{OWNER}/{name}{SUFFIX}" for name in MODELS)
    return {plain_name(found): found for found in (*whole, *AUTOENCODERS)}.get(plain_name(model))


def suggestion(name: str) -> str:
    """` (did you mean the published 'owner/name'?)` where `name` is or resembles one, or ''."""
    if "/" in name or "\\" in name:
        return ""
    known = [plain_name(found) for found in (*MODELS, *AUTOENCODERS)]
    nearest = get_close_matches(plain_name(name), known, n=1)
    return f" (did you mean the published '{hub_id(nearest[0])}'?)" if nearest else ""
