"""What a picture takes on the device, beside what the plans say that it takes."""

from typing import Any

from benchmarks.gpu.measuring import attempt, peak_memory, short
from benchmarks.gpu.parts import Note, Setting
from benchmarks.random_model import PROMPT, autoencoder_config, random_sana, transformer_config
from opensana.autoencoder.plan import decoder_chain
from opensana.models.memory import memory_needed
from opensana.pipeline import Sana
from opensana.request import Request

SIDES = (512, 1024, 2048, 4096)
PRESETS = ("sana_600m_1024", "sana_1600m_1024")


def run(setting: Setting, note: Note) -> None:
    presets = PRESETS[:1] if setting.tiny else PRESETS
    for preset in presets:
        model = random_sana(preset, setting.device, setting.dtype, tiny=setting.tiny)
        note(f"{preset}_planned", planned(setting, preset, model))
        for side in (64,) if setting.tiny else SIDES:
            found = attempt(setting, lambda m=model, side=side: drawing(setting, m, side))
            note(f"{preset}_{side}", found)
        del model


def planned(setting: Setting, preset: str, model: Sana) -> dict[str, float]:
    """GiB by `models/memory.py`, for the native size."""
    parts = {"transformer": model.transformer, "vae": model.autoencoder, "text": model.text.model}
    counts = {
        name: sum(x.numel() for x in part.state_dict().values()) for name, part in parts.items()
    }
    plan = memory_needed(
        counts,
        transformer_config(preset, tiny=setting.tiny),
        autoencoder_config(tiny=setting.tiny),
        main=model.transformer.dtype,
        others=model.autoencoder.dtype,
        device=model.device,
    )
    return {name: short(size / 2**30) for name, size in plan.to_dict().items()}


def drawing(setting: Setting, model: Sana, side: int) -> dict[str, Any]:
    """The peak of a picture of two steps, decoded at once and in a third of the plan for that."""
    chain = decoder_chain(model.autoencoder, 1, side // 32, side // 32)
    limit = max(chain.least_memory, chain.one_band_memory // 3)
    found: dict[str, Any] = {"decode_planned_gib": short(chain.one_band_memory / 2**30)}
    ways = {"whole": model, "in_bands": Sana(**{**vars(model), "memory": limit})}
    for name, way in ways.items():
        request = Request(PROMPT, width=side, height=side, steps=2, guidance=4.5, seed=1)
        peak = peak_memory(
            setting.device, lambda way=way, request=request: way.generate(request, notice=_quiet)
        )
        if peak is not None:
            found[f"{name}_peak_gib"] = short(peak / 2**30)
    return {**found, "bands_limit_gib": short(limit / 2**30)}


def _quiet(_: str) -> None:
    """Bands are what is asked for."""
