"""What training Sana 0.6B and 1.6B by the published recipe would take: the tables of docs/scale.md.

    python -m benchmarks.scale

Figures follow from recipes/sana by `--dry-run`, from `opensana cost` and from the assumptions here;
nothing is measured. It takes a few seconds. The last line is JSON.
"""

import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from opensana.autoencoder import Autoencoder
from opensana.evaluate.cost.roofline import BANDWIDTHS
from opensana.evaluate.cost.sheet import counted
from opensana.models.flops import META, PEAKS
from opensana.models.presets import autoencoder_preset
from opensana.train.dry_run import USUAL_SHARE, plan
from opensana.train.recipe import load_recipe

RECIPES = Path(__file__).resolve().parent.parent / "recipes" / "sana"
SIZES = {"600m": "0.6B", "1600m": "1.6B"}
STAGES = {"1-512": 512, "2-1024": 1024, "3-2k": 2048, "4-4k": 4096}
PROCESSES = 32
GPUS = ("A100", "H100")

# Assumptions; none of them is published.
PICTURES = 50_000_000
CAPTION_TOKENS = 120
PICTURE_TOKENS = 1_000
"""What a captioner reads for a picture and its prompt."""
ANSWERS_AT_ONCE = 32
JSON_BYTES = 750
"""Of a caption and its score, as `opensana label` stores them."""

# Published: the four captioners (paper 3.1) and the text encoder, in 10^9 parameters.
CAPTIONERS = {"VILA-3B": 3, "VILA-13B": 13, "InternVL2-8B": 8, "InternVL2-26B": 26}
TEXT_ENCODER = 2.0
"""Gemma 2 2B without its embedding table, which multiplies nothing."""
TEXT_WIDTH, HALF = 2304, 2
BLOCK = 64
"""Pictures in a block of `opensana label --ray`."""
DAY = 86_400
TERA = 1e12


def gpu_days(operations: float, gpu: str) -> float:
    """At the share of the peak that `--dry-run` assumes."""
    return operations / (USUAL_SHARE * PEAKS[gpu][torch.bfloat16] * TERA) / DAY


def training(size: str) -> list[dict[str, Any]]:
    """The stages of one model, from their dry runs."""
    rows = []
    for stage, pixels in STAGES.items():
        overrides = ["dtype=bfloat16", f"parallel.peak_tflops={PEAKS['A100'][torch.bfloat16]}"]
        found = plan(load_recipe(RECIPES / f"{size}-{stage}.toml", overrides), processes=PROCESSES)
        recipe, operations = found.recipe, found.flops * found.recipe.steps
        rows.append(
            {
                "pixels": pixels,
                "steps": recipe.steps,
                "batch": recipe.batch,
                "samples": recipe.steps * recipe.batch,
                "operations": operations,
                "days": {gpu: gpu_days(operations, gpu) for gpu in GPUS},
                "memory": found.memory.total,
                "read": recipe.batch * (latent_bytes(pixels) + text_bytes()) / found.seconds,
            }
        )
    return rows


def latent_bytes(pixels: int) -> int:
    """Of one picture in the cache."""
    config = autoencoder_preset("dc_ae_f32c32_sana_1_1")
    return config.latent_channels * (pixels // config.compression) ** 2 * HALF


def text_bytes() -> int:
    """Of one caption's states in the cache."""
    return CAPTION_TOKENS * TEXT_WIDTH * HALF


def encoder_macs(pixels: int) -> int:
    with META:
        model = Autoencoder(autoencoder_preset("dc_ae_f32c32_sana_1_1"))
        picture = torch.empty(1, 3, pixels, pixels)
    return counted(model.encoder, lambda: model.encode(picture)).macs


def features(samples: dict[int, int]) -> list[dict[str, Any]]:
    """Of each size: the latents of the distinct pictures, at most as many as the stage sees."""
    rows = []
    for pixels, seen in samples.items():
        pictures, macs = min(PICTURES, seen), encoder_macs(pixels)
        rows.append(
            {
                "pixels": pixels,
                "pictures": pictures,
                "macs": macs,
                "days": {gpu: gpu_days(2.0 * macs * pictures, gpu) for gpu in GPUS},
                "bytes": pictures * latent_bytes(pixels),
            }
        )
    return rows


def texts() -> dict[str, Any]:
    """The states of all captions; the instruction is read once, not for each."""
    captions = PICTURES * len(CAPTIONERS)
    operations = 2e9 * TEXT_ENCODER * CAPTION_TOKENS * captions
    return {
        "captions": captions,
        "days": {gpu: gpu_days(operations, gpu) for gpu in GPUS},
        "bytes": captions * text_bytes(),
    }


def labelling(gpu: str) -> dict[str, float]:
    """Seconds of a picture by each captioner: reading it, then writing a token at a time.

    Reading is bound by arithmetic; each written token reads all weights once for a whole batch.
    """
    peak, bandwidth = PEAKS[gpu][torch.bfloat16] * TERA, BANDWIDTHS[gpu] * TERA
    return {
        name: 2e9 * billions * PICTURE_TOKENS / (USUAL_SHARE * peak)
        + CAPTION_TOKENS * HALF * 1e9 * billions / bandwidth / ANSWERS_AT_ONCE
        for name, billions in CAPTIONERS.items()
    }


def markdown(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    return [f"| {' | '.join(map(str, row))} |" for row in (heads, ["---"] * len(heads), *rows)]


def number(value: float) -> str:
    """Two digits below 100, else whole."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.2g}"


def pages(found: dict[str, Any]) -> Iterator[list[str]]:
    for size, rows in found["training"].items():
        heads = (size, "steps x batch", "operations", *(f"{gpu} days" for gpu in GPUS))
        heads += (f"GiB a device of {PROCESSES}", "GB/s read, 32 A100")
        cells: list[list[object]] = [
            [
                row["pixels"],
                f"{row['steps']:,} x {row['batch']:,}",
                f"{row['operations']:.2g}",
                *(number(row["days"][gpu]) for gpu in GPUS),
                f"{row['memory'] / 2**30:.1f}",
                f"{row['read'] / 1e9:.2g}",
            ]
            for row in rows
        ]
        sums = [number(sum(row["days"][gpu] for row in rows)) for gpu in GPUS]
        operations = sum(row["operations"] for row in rows)
        cells.append(["sum", "", f"{operations:.2g}", *sums, "", ""])
        yield markdown(heads, cells)
    heads = ("features", "number", *(f"{gpu} days" for gpu in GPUS), "TB stored")
    cells = [
        [
            f"latents, {row['pixels']} px",
            f"{row['pictures'] / 1e6:,.3g} M",
            *(number(row["days"][gpu]) for gpu in GPUS),
            f"{row['bytes'] / TERA:.2g}",
        ]
        for row in found["features"]
    ]
    row = found["texts"]
    days = (number(row["days"][gpu]) for gpu in GPUS)
    millions, stored = f"{row['captions'] / 1e6:,.3g} M", number(row["bytes"] / TERA)
    cells.append(["text states", millions, *days, stored])
    yield markdown(heads, cells)
    heads = (
        "captioner",
        *(f"s a picture, {gpu}" for gpu in GPUS),
        *(f"{gpu} days" for gpu in GPUS),
    )
    seconds = found["labelling"]
    each = [[seconds[gpu][name] for gpu in GPUS] for name in CAPTIONERS]
    each.append([sum(column) for column in zip(*each, strict=True)])
    yield markdown(
        heads,
        [
            [name, *(f"{s:.2g}" for s in row), *(number(s * PICTURES / DAY) for s in row)]
            for name, row in zip((*CAPTIONERS, "all four"), each, strict=True)
        ],
    )
    wanted = (30, 7)
    workers = [
        [gpu, *(math.ceil(sum(seconds[gpu].values()) * PICTURES / DAY / days) for days in wanted)]
        for gpu in GPUS
    ]
    heads = ("Ray workers, one GPU each", *(f"for {days} days" for days in wanted))
    yield markdown(heads, workers)


def main() -> None:
    stages = {name: training(size) for size, name in SIZES.items()}
    samples = {row["pixels"]: row["samples"] for row in stages["0.6B"]}
    found = {
        "training": stages,
        "features": features(samples),
        "texts": texts(),
        "labelling": {gpu: labelling(gpu) for gpu in GPUS},
        "label_bytes": PICTURES * len(CAPTIONERS) * JSON_BYTES,
        "label_blocks": math.ceil(PICTURES / BLOCK) * len(CAPTIONERS),
    }
    print("\n\n".join("\n".join(page) for page in pages(found)))
    print(json.dumps({"results": found}))


if __name__ == "__main__":
    main()
