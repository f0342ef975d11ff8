"""Which repositories on the hub hold the published models in the folder layout."""

from difflib import get_close_matches

OWNER = "Efficient-Large-Model"
SUFFIX = "_diffusers"
MODELS = (
    "Sana_600M_512px",
    "Sana_600M_1024px",
    "Sana_1600M_512px",
    "Sana_1600M_512px_MultiLing",
    "Sana_1600M_1024px",
    "Sana_1600M_1024px_MultiLing",
    "Sana_1600M_1024px_BF16",
    "Sana_1600M_2Kpx_BF16",
    "Sana_1600M_4Kpx_BF16",
    "SANA1.5_1.6B_1024px",
    "SANA1.5_4.8B_1024px",
    "Sana_Sprint_0.6B_1024px",
    "Sana_Sprint_1.6B_1024px",
    "Sana_Sprint_0.6B_1024px_teacher",
    "Sana_Sprint_1.6B_1024px_teacher",
)
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
