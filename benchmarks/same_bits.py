"""Whether a change of the code changed any training or picture, by the command line alone.

    python -m benchmarks.same_bits --to before.json      # then change the code
    python -m benchmarks.same_bits --against before.json

Ten steps of every kind of recipe on tiny data, the metrics and the exported weights; nine pictures,
the whole PNG. The digests hold for one machine and one version of torch.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw
from safetensors.torch import load_file, save_file

from opensana.config import build, to_toml
from opensana.datasets.emoji.dataset import VERSION
from opensana.features.latents import Sample, write_features
from opensana.features.texts import TEXT_KEYS, write_text
from opensana.models.save import write_controlnet, write_transformer
from opensana.train.recipe import KINDS
from opensana.transformer.controlnet import ControlNet
from opensana.transformer.initialisation import initialise
from opensana.transformer.model import Transformer, TransformerConfig
from tests import tiny
from tests.drawing.test_control_image import control_config
from tests.train.conftest import AUTOENCODER, BY_WEIGHT, COMMON, TRANSFORMER
from tests.train.test_clip import COUNT, record

ROOT = Path(__file__).resolve().parent.parent
OF_THE_CLOCK = ("samples_per_second", "seconds", "memory", "peak", "mfu")
LORA = {"rank": 2, "alpha": 4, "targets": ["to_q", "to_v", "to_out.0"]}
SEED = ["--seed", "7"]
TINY = [*SEED, "--steps", "4", "--model"]
PICTURES = {
    "plain": ["a red apple", *SEED],
    "image": ["a red apple", *SEED, "--image", "image.png", "--strength", "0.6"],
    "mask": ["a cat face", *SEED, "--image", "image.png", "--mask", "mask.png"],
    "512px": ["a red apple", *SEED, "--width", "512", "--height", "512"],
    "streamed": ["a red apple", *SEED, "--width", "512", "--height", "512", "--memory", "8MB"],
    "control": ["a cat", *TINY, "tiny", "--controlnet", "control", "--control-image", "small.png"],
    "lora": ["a cat", *TINY, "tiny", "--lora", "lora.safetensors"],
    "few": ["a cat", *SEED, "--model", "few", "--steps", "2"],
    "euler": ["a dog", *SEED, "--negative-prompt", "x", "--guidance", "2", "--solver", "euler"],
}


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def prepare(folder: Path) -> None:
    """Tiny pictures, caches, models and recipes."""
    torch.set_num_threads(1)
    pictures(folder / "pictures")
    caches(folder)
    clip_set(folder / "emoji")
    for name, changes in {"base": {}, "teacher": {"qk_norm": "rms_norm_across_heads"}}.items():
        model = Transformer(TransformerConfig.from_dict({**TRANSFORMER, **changes}))
        initialise(model, seeded(7), caption_norm=1.0)
        write_transformer(model, folder / name)
    models(folder)
    for name, values in recipes().items():
        recipe = build(KINDS[values["kind"]], values, where=name)
        (folder / f"{name}.toml").write_text(to_toml(recipe))


def pictures(folder: Path) -> None:
    folder.mkdir()
    coarse = np.random.default_rng(1).integers(0, 256, (10, 4, 4, 4)).astype(np.uint8)
    np.save(folder / "pictures.npy", coarse.repeat(8, axis=1).repeat(8, axis=2))
    splits = ["train"] * 8 + ["held_out"] * 2
    lines = (json.dumps({"hexcode": f"P{i}", "split": split}) for i, split in enumerate(splits))
    (folder / "records.jsonl").write_text("".join(line + "\n" for line in lines))


def caches(folder: Path) -> None:
    draw = np.random.default_rng(2)
    null, *states = (draw.standard_normal((2 + i % 3, 12)).astype(np.float32) for i in range(17))
    with write_text(folder / "text", keys=dict.fromkeys(TEXT_KEYS, "x"), null=null) as text:
        text.add([f"caption {i}" for i in range(16)], states)
    latents = torch.randn(8, 4, 2, 2, generator=seeded(3))
    others = torch.randn(5, 4, 1, 4, generator=seeded(8))
    own = [Sample(str(i), (2 * i, 2 * i + 1), (3.0, 1.0)) for i in range(8)]
    alone = [Sample(str(i), (i,), (1.0,)) for i in range(8)]
    sets = {"all": (latents, own), "classes": (others, alone[:5]), "edges": (-latents, alone)}
    for name, (tensors, samples) in sets.items():
        with write_features(folder / name, keys={}, text=folder / "text") as cache:
            cache.add(tensors, samples)


def clip_set(folder: Path) -> None:
    folder.mkdir()
    draw = np.random.default_rng(0)
    rgba = np.full((COUNT, 32, 32, 4), 255, np.uint8)
    rgba[..., :3] = draw.integers(0, 256, (COUNT, 1, 1, 3))
    np.save(folder / "pictures.npy", rgba)
    lines = "".join(json.dumps(record(index)) + "\n" for index in range(COUNT))
    (folder / "records.jsonl").write_text(lines)
    (folder / "manifest.json").write_text(json.dumps({"version": VERSION}))
    texts = [f"{source} {i}" for i in range(COUNT) for source in ("label", "tags", "github")]
    states = [draw.standard_normal((3, 16)).astype(np.float32) for _ in texts]
    keys: dict[str, Any] = dict.fromkeys(TEXT_KEYS, "x")
    with write_text(folder / "text", keys=keys, null=np.zeros((1, 16), np.float32)) as writer:
        writer.add(texts, states)


def models(folder: Path) -> None:
    sana = tiny.sana()
    sana.save(folder / "tiny")
    replace(sana, few_step=tiny.transformer(tiny.SPRINT)).save(folder / "few")
    control = ControlNet(control_config(sana.transformer.config, 1)).eval()
    tiny.randomise(control, 5)
    write_controlnet(control, folder / "control")
    layer = "transformer.transformer_blocks.0.attn1.to_q"
    thin = {
        f"{layer}.lora_{name}.weight": torch.randn(shape, generator=seeded(9))
        for name, shape in {"A": (4, 16), "B": (16, 4)}.items()
    }
    save_file(thin, folder / "lora.safetensors")
    image = Image.new("RGB", (256, 256), "white")
    ImageDraw.Draw(image).ellipse((60, 60, 200, 200), fill=(200, 30, 30))
    image.save(folder / "image.png")
    image.resize((64, 64)).save(folder / "small.png")
    mask = Image.new("L", image.size, 0)
    ImageDraw.Draw(mask).rectangle((64, 64, 160, 200), fill=255)
    mask.save(folder / "mask.png")


def recipes() -> dict[str, dict[str, Any]]:
    """One of every kind, phase and way of training, the first for others to start from."""
    common = {**COMMON, "console_seconds": 0.0, "steps": 10, "batch": 4, "name": "tiny"}
    pixels = {"folder": "pictures", "crop": 16}
    samples = {"every": 10}
    ae = {
        **common,
        "kind": "autoencoder",
        "data": pixels,
        "samples": {**samples, "pictures": 2},
        "evaluate": {**COMMON["evaluate"], "size": 32},
    }
    later = {**ae, "initial": "runs/ae-full/export"}
    gan = {"mse": 1.0, "l1": 0.1, "gradient": 0.1, "gan": 0.1, "gan_start": 2}
    judge = {"width": 8, "depth": 2}
    data = {"folder": "all", **BY_WEIGHT}
    flow = {**common, "kind": "transformer", "data": data, "samples": samples}
    based = {**flow, "initial": "base"}
    clip = {"size": 8, "widths": [8, 16], "text_channels": 16, "text_width": 16, "dim": 8}
    found: dict[str, dict[str, Any]] = {
        "ae-full": {**ae, "model": AUTOENCODER},
        "ae-latent": {**later, "phase": "latent"},
        "ae-refine": {**later, "phase": "refine", "loss": gan, "discriminator": judge},
        "ae-decoder": {**later, "phase": "decoder", "scaling": "kept"},
        "plain": {**flow, "model": TRANSFORMER, "accumulate": 2},
        "came": {**flow, "model": TRANSFORMER, "optimizer": {"name": "came", "lr": 1e-3}},
        "initial": based,
        "lora": {**based, "lora": LORA},
        "prior": {**based, "lora": LORA, "prior": {"folder": "classes", "weight": 0.5}},
        "controlnet": {
            **based,
            "kind": "controlnet",
            "blocks": 1,
            "data": {**data, "condition": "edges"},
        },
        "distillation": {
            **flow,
            "kind": "distillation",
            "initial": "teacher",
            "data": {**data, "dropout": 0.0},
            "consistency": {"guidance": [1.0, 2.0], "warmup": 4},
            "adversary": {"blocks": [0, 1], "width": 32},
        },
        "clip": {
            **common,
            "kind": "clip",
            "batch": 8,
            "model": clip,
            "optimizer": {"lr": 1e-2},
            "data": {"folder": "emoji", "text": "emoji/text", "white": 1.0},
        },
    }
    return {name: {**values, "run": f"runs/{name}"} for name, values in found.items()}


def opensana(folder: Path, *words: str) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "opensana.cli", *words]
    subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True)


def trained(folder: Path, name: str) -> str:
    """The digest of what a run reported, without times, and of the weights that it exported."""
    opensana(folder, "train", f"{name}.toml")
    digest, run = hashlib.sha256(), folder / "runs" / name
    for line in (run / "metrics.jsonl").read_text().splitlines():
        kept = {k: v for k, v in json.loads(line).items() if not any(t in k for t in OF_THE_CLOCK)}
        digest.update(json.dumps(kept, sort_keys=True).encode())
    for file in sorted((run / "export").rglob("*.safetensors")):
        for key, tensor in sorted(load_file(file).items()):
            digest.update(key.encode() + tensor.contiguous().view(-1).numpy().tobytes())
    return digest.hexdigest()


def drawn(folder: Path, name: str) -> str:
    """The digest of a PNG, with all that it records."""
    opensana(folder, "generate", *PICTURES[name], "--output", f"{name}-drawn.png")
    return hashlib.sha256((folder / f"{name}-drawn.png").read_bytes()).hexdigest()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--to", type=Path, help="write the digests here")
    parser.add_argument("--against", type=Path, help="compare with digests written before")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        prepare(folder)
        found = {name: trained(folder, name) for name in recipes()}
        found |= {f"picture {name}": drawn(folder, name) for name in PICTURES}
    if arguments.to:
        arguments.to.write_text(json.dumps(found, indent=1) + "\n")
    known = json.loads(arguments.against.read_text()) if arguments.against else found
    other = sorted(name for name in {*found, *known} if found.get(name) != known.get(name))
    print(json.dumps({"compared": len(known), "changed": other}))
    return 1 if other else 0


if __name__ == "__main__":
    sys.exit(main())
