"""A whole picture, from prompt to image, Sana 0.6B shape: this project against diffusers.

    python -m benchmarks.end_to_end [--size 512] [--steps 20] [--layers 28] [--repeats 2]

Transformer, autoencoder (sana-1.1) and text encoder hold the same random float32 weights on both
sides; guidance is 4.5 and the noise the same. The text encoder has the width of Gemma 2 2B and
`--text-layers` of its 26 layers: its random weights stand for time, not for meaning. diffusers runs
its eager pipeline as published, without resolution bins. Pictures alternate in one process; the
ratio is that of medians. The last line is JSON.
"""

import argparse
import json
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.models.autoencoders.autoencoder_dc import AutoencoderDC
from diffusers.models.transformers.sana_transformer import SanaTransformer2DModel
from diffusers.pipelines.sana.pipeline_sana import SanaPipeline
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from PIL import Image
from torch import nn
from transformers import Gemma2Config, Gemma2Model

from benchmarks.timing import machine, medians
from opensana.drawing.solving import job_noises
from opensana.models.presets import autoencoder_preset, transformer_preset
from opensana.pipeline import Sana
from opensana.request import Request
from tests import tiny

PROMPT = "a red apple on a wooden table"  # 30 tokens of the random tokenizer, a letter each
AUTOENCODER = "dc_ae_f32c32_sana_1_1"
PRESETS = {512: "sana_600m_512", 1024: "sana_600m_1024"}


def parts(size: int, layers: int | None, text_layers: int) -> dict[str, Any]:
    """The parts of diffusers' pipeline, with random weights that keep numbers moderate."""
    torch.manual_seed(0)
    transformer = transformer_preset(PRESETS[size])
    transformer = replace(transformer, num_layers=layers or transformer.num_layers)
    text = Gemma2Config(
        vocab_size=260,
        hidden_size=transformer.caption_channels,
        intermediate_size=9216,
        num_hidden_layers=text_layers,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=256,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=2,
    )
    networks: dict[str, nn.Module] = {
        "text_encoder": Gemma2Model(text),
        "vae": AutoencoderDC(**plain(autoencoder_preset(AUTOENCODER).to_dict())),
        "transformer": SanaTransformer2DModel(**plain(transformer.to_dict())),
    }
    for network in networks.values():
        network.eval().requires_grad_(False)
    scheduler = DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    return {"tokenizer": tiny.tokenizer(), "scheduler": scheduler, **networks}


def plain(config: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if not key.startswith("_")}


def sides(theirs: Any, ours: Sana, request: Request) -> tuple[Callable[[], Image.Image], ...]:
    """Ours and theirs, each from the prompt to an image."""
    noise = next(job_noises(ours, ours.job(request)))

    def fast() -> Image.Image:
        return ours.generate(request)[0].image

    def eager() -> Image.Image:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # diffusers' own, of numpy 2
            return theirs(
                request.prompt,
                width=request.width,
                height=request.height,
                num_inference_steps=request.steps,
                guidance_scale=request.guidance,
                latents=noise.clone(),
                use_resolution_binning=False,
            ).images[0]

    return fast, eager


def main() -> None:
    parser = argparse.ArgumentParser(description="A whole picture against diffusers.")
    parser.add_argument("--size", type=int, choices=PRESETS, default=512)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--layers", type=int, help="fewer than the shape has, to be quick")
    parser.add_argument("--text-layers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--compile", action="store_true", help="compile our transformer's blocks")
    parser.add_argument("--kernels", action="store_true", help="decode with the C++ convolution")
    arguments = parser.parse_args()
    theirs: Any = SanaPipeline(**parts(arguments.size, arguments.layers, arguments.text_layers))
    theirs.set_progress_bar_config(disable=True)
    with tempfile.TemporaryDirectory() as name:
        theirs.save_pretrained(Path(name))
        ours = Sana.load(
            name,
            device="cpu",
            dtype="float32",
            compile=arguments.compile,
            kernels=arguments.kernels,
        )
    side = arguments.size
    request = Request(PROMPT, width=side, height=side, steps=arguments.steps, guidance=4.5, seed=1)
    fast, eager = sides(theirs, ours, request)
    drawn: dict[str, Image.Image] = {}
    mine, reference = medians(
        [lambda: drawn.update(ours=fast()), lambda: drawn.update(theirs=eager())],
        arguments.repeats,
        warm=False,
    )
    one, other = (np.asarray(drawn[side], dtype=float) for side in ("ours", "theirs"))
    results = {
        "size": arguments.size,
        "steps": arguments.steps,
        "layers": len(ours.transformer.blocks),
        "text_layers": arguments.text_layers,
        "compiled": arguments.compile,
        "kernels": arguments.kernels,
        "ratio": round(reference / mine, 3),
        "opensana_seconds": round(mine, 3),
        "diffusers_seconds": round(reference, 3),
        "largest_difference_of_255": float(np.abs(one - other).max()),
        "deviation_of_255": round(float(other.std()), 2),
    }
    print(json.dumps({"machine": machine(), "results": results}))


if __name__ == "__main__":
    main()
