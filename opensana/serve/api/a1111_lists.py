"""What A1111's clients look up before they ask: options, and lists that are short or empty here."""

import os
from collections.abc import Mapping
from typing import Any

import torch

from opensana.device import free_memory
from opensana.drawing.picture import SAMPLER_NAMES

EMPTY: Mapping[str, Any] = {
    "sd-vae": [],
    "sd-modules": [],
    "latent-upscale-modes": [],
    "hypernetworks": [],
    "face-restorers": [],
    "realesrgan-models": [],
    "prompt-styles": [],
    "embeddings": {"loaded": {}, "skipped": {}},
    "scripts": {"txt2img": [], "img2img": []},
    "script-info": [],
    "extensions": [],
}
"""Lists of what is not here; clients read them when they start."""
REFRESHED = ("refresh-checkpoints", "refresh-vae", "refresh-embeddings")
"""The model is the one that the server was started with."""
SCHEDULERS = [
    {
        "name": "automatic",
        "label": "Automatic",
        "aliases": None,
        "default_rho": -1.0,
        "need_inner_model": False,
    }
]
UPSCALERS = [
    {"name": "None", "model_name": None, "model_path": None, "model_url": None, "scale": 1.0}
]
CMD_FLAGS = {"api": True, "nowebui": True}


def options(model: str) -> dict[str, Any]:
    """Those of A1111's settings that clients read."""
    return {
        "sd_model_checkpoint": model,
        "sd_checkpoint_hash": "",
        "sd_vae": "Automatic",
        "CLIP_stop_at_last_layers": 1,
        "samples_format": "png",
        "eta_noise_seed_delta": 0,
    }


def samplers(capabilities: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The solvers by the names that other tools have for them."""
    return [
        {"name": SAMPLER_NAMES[solver], "aliases": [solver], "options": {}}
        for solver in capabilities["solvers"]
    ]


def models(model: str) -> list[dict[str, Any]]:
    """The one that this server draws with; never where its files are."""
    names = {"title": model, "model_name": model, "filename": model}
    return [names | {"hash": None, "sha256": None, "config": None}]


def loras(capabilities: Mapping[str, Any]) -> list[dict[str, Any]]:
    """For `<lora:name:1>` in a prompt."""
    return [
        {
            "name": one["name"],
            "alias": one["name"],
            "path": one["name"],
            "metadata": {
                "ss_network_dim": str(one["rank"]),
                "modelspec.trigger_phrase": ", ".join(one["trigger_words"]),
            },
        }
        for one in capabilities["loras"]
    ]


def memory() -> dict[str, Any]:
    """Bytes of the system's memory."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    free = min(total, free_memory(torch.device("cpu")))
    ram = {"free": free, "used": total - free, "total": total}
    return {"ram": ram, "cuda": {"error": "not reported"}}
