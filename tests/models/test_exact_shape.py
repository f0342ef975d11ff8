"""The published 0.6B model in its exact shapes, random weights, written by diffusers and run here.

Only the text encoder is cut to two layers (of Gemma 2 2B's width); transformer and autoencoder are
whole: 4 GB on disk, 8 GB of memory, two minutes on two free cores. `pytest -s` shows the errors.
"""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Gemma2Config, Gemma2Model

from opensana.drawing.solving import job_noises
from opensana.models.presets import autoencoder_preset, transformer_preset
from opensana.pipeline import Sana
from opensana.request import Request
from tests import tiny

STEPS = 4


def write_with_diffusers(folder: Path) -> None:
    import diffusers

    library: Any = diffusers

    torch.manual_seed(0)
    transformer = transformer_preset("sana_600m_512").to_dict()
    autoencoder = autoencoder_preset("dc_ae_f32c32_sana_1_0").to_dict()
    text = Gemma2Config(
        vocab_size=260,
        hidden_size=transformer["caption_channels"],
        intermediate_size=9216,
        num_hidden_layers=2,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=256,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=2,
    )
    scheduler = library.DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    pipeline = library.SanaPipeline(
        tiny.tokenizer(),
        Gemma2Model(text).eval(),
        library.AutoencoderDC(**plain(autoencoder)),
        library.SanaTransformer2DModel(**plain(transformer)),
        scheduler,
    )
    pipeline.save_pretrained(folder)


def plain(config: dict) -> dict:
    return {key: value for key, value in config.items() if not key.startswith("_")}


@pytest.mark.slow
def test_the_published_shape_draws_what_diffusers_draws(tmp_path: Path) -> None:
    from diffusers import SanaPipeline  # pyright: ignore[reportPrivateImportUsage]

    write_with_diffusers(tmp_path)
    request = Request("a red apple", width=512, height=512, steps=STEPS, guidance=4.5, seed=1)
    ours = Sana.load(tmp_path, device="cpu", dtype="float32")
    noise = next(job_noises(ours, ours.job(request)))
    latent, [picture] = ours.draw_latents(request), ours.generate(request)
    del ours

    theirs: Any = SanaPipeline.from_pretrained(tmp_path, dtype=torch.float32)
    theirs.set_progress_bar_config(disable=True)
    options = {
        "prompt": request.prompt,
        "width": 512,
        "height": 512,
        "num_inference_steps": STEPS,
        "guidance_scale": 4.5,
        "latents": noise,
        "use_resolution_binning": False,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # diffusers' own, of numpy 2
        expected = theirs(**options, output_type="latent").images
        with torch.inference_mode():
            pixels = theirs.vae.decode(expected / theirs.vae.config.scaling_factor).sample
    error = float((latent - expected).abs().max() / expected.abs().max())
    image = np.asarray(picture.image, dtype=float)
    reference = 127.5 * (1 + pixels[0].permute(1, 2, 0).clamp(-1, 1).numpy())
    levels = float(np.abs(image - reference).max())
    print(f"latent: relative error {error:.1e}; picture: at most {levels:.2f} of 255 levels")
    assert error < 1e-3
    assert levels < 2
    assert reference.std() > 2.5
