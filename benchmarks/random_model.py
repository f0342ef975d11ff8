"""Whole models with random weights, made where they run: for times and bytes, not for pictures.

The text encoder has the shape of Gemma 2 2B without its vocabulary, and reads one word or sign as
one token, about as many as Gemma's.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn
from transformers import Gemma2Config, Gemma2Model, PreTrainedTokenizerFast

from opensana.autoencoder.config import AutoencoderConfig
from opensana.autoencoder.model import Autoencoder
from opensana.models.index import ModelDefaults, ModelInfo
from opensana.models.presets import autoencoder_preset, transformer_preset
from opensana.models.scheduler import DPM, SCM
from opensana.pipeline import Sana
from opensana.runtime.fused_text import fuse_norms
from opensana.runtime.placing import part_dtype, prepare_for_inference
from opensana.runtime.tf32 import settle_float32
from opensana.runtime.triton_blocks import use_triton
from opensana.text.encoder import TextEncoder
from opensana.transformer.config import TransformerConfig
from opensana.transformer.model import Transformer

AUTOENCODER = "dc_ae_f32c32_sana_1_1"
GEMMA_2_2B = Gemma2Config(
    vocab_size=256000,
    hidden_size=2304,
    intermediate_size=9216,
    num_hidden_layers=26,
    num_attention_heads=8,
    num_key_value_heads=4,
    head_dim=256,
)
SPREAD = 0.02
PROMPT = "a red fox sleeping in the snow under a birch, soft morning light, photograph"
SHIFT = 3.0

TINY_TRANSFORMER = TransformerConfig(
    num_attention_heads=2,
    attention_head_dim=32,
    num_layers=2,
    num_cross_attention_heads=2,
    cross_attention_head_dim=32,
    cross_attention_dim=64,
    caption_channels=64,
    sample_size=2,
)
TINY_AUTOENCODER = AutoencoderConfig(
    encoder_block_out_channels=(16, 16, 16, 32, 32, 32),
    decoder_block_out_channels=(16, 16, 16, 32, 32, 32),
    encoder_layers_per_block=(1,) * 6,
    decoder_layers_per_block=(1,) * 6,
    attention_head_dim=16,
)
TINY_TEXT: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
}


def transformer_config(preset: str, *, tiny: bool = False) -> TransformerConfig:
    """A published shape; with `tiny` the same kind of model, small."""
    published = transformer_preset(preset)
    if not tiny:
        return published
    kind = ("qk_norm", "guidance_embeds", "guidance_embeds_scale", "interpolation_scale")
    return replace(TINY_TRANSFORMER, **{name: getattr(published, name) for name in kind})


def autoencoder_config(*, tiny: bool = False) -> AutoencoderConfig:
    return TINY_AUTOENCODER if tiny else autoencoder_preset(AUTOENCODER)


@contextmanager
def made_in(dtype: torch.dtype) -> Iterator[None]:
    """New tensors that name no number format have this one."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@torch.no_grad()
def fill(module: nn.Module, seed: int = 0) -> None:
    """Normal numbers of a small spread for every weight, near 1 for the norms'."""
    for index, (name, weight) in enumerate(module.named_parameters()):
        generator = torch.Generator(weight.device).manual_seed(seed + index)
        weight.normal_(0, SPREAD, generator=generator)
        if weight.ndim == 1 and "norm" in name and name.endswith("weight"):
            weight.add_(1)


def random_transformer(
    config: TransformerConfig, device: torch.device, dtype: torch.dtype, *, triton: bool = False
) -> Transformer:
    """As a loaded one: filled, placed, packed or fused, and if asked with the kernels in Triton."""
    with device:
        network = Transformer(config).eval().requires_grad_(False)
    fill(network)
    prepare_for_inference(network, device, dtype)
    if triton:
        use_triton(network, device)
    return network


def random_autoencoder(
    config: AutoencoderConfig, device: torch.device, dtype: torch.dtype
) -> Autoencoder:
    with device:
        network = Autoencoder(config).eval().requires_grad_(False)
    fill(network)
    return prepare_for_inference(network, device, dtype)


def random_text(device: torch.device, dtype: torch.dtype, *, tiny: bool = False) -> TextEncoder:
    """Gemma 2 2B in shape, with the words that `tokenizer` knows."""
    words = tokenizer()
    values = {**GEMMA_2_2B.to_dict(), "vocab_size": len(words)}
    if tiny:
        values |= {**TINY_TEXT, "layer_types": None}
    with device, made_in(dtype):  # in float32 it would take twice the memory that it keeps
        model: Any = Gemma2Model._from_config(Gemma2Config(**values), attn_implementation="eager")
    model.to(dtype)
    if device.type == "cuda":
        fuse_norms(model)
    return TextEncoder(model, words)


def tokenizer() -> PreTrainedTokenizerFast:
    """A token a word or sign, <bos> in front: about as many as Gemma's."""
    vocabulary = {"<pad>": 0, "<eos>": 1, "<bos>": 2, "<unk>": 3}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", vocabulary["<bos>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        eos_token="<eos>",
        bos_token="<bos>",
        unk_token="<unk>",
    )


def random_sana(
    preset: str, device: torch.device, dtype: torch.dtype, *, tiny: bool = False
) -> Sana:
    """A model of a published shape, ready to draw."""
    settle_float32(device, full=False)
    transformer = transformer_config(preset, tiny=tiny)
    others = part_dtype(device, dtype)
    few = transformer.guidance_embeds
    defaults = ModelDefaults(steps=2 if few else 20)
    return Sana(
        random_text(device, others, tiny=tiny),
        random_transformer(transformer, device, dtype),
        random_autoencoder(autoencoder_config(tiny=tiny), device, others),
        ModelInfo(preset, SHIFT, defaults, scheduler=SCM if few else DPM),
    )


def diffusers_pipeline(sana: Sana) -> Any:
    """diffusers' eager pipeline with the very weights of a model in bfloat16 or float32.

    The weights of the transformer and the autoencoder are shared where they lie as published; the
    text encoder is, as it runs here.
    """
    from diffusers.models.autoencoders.autoencoder_dc import AutoencoderDC
    from diffusers.models.transformers.sana_transformer import SanaTransformer2DModel
    from diffusers.pipelines.sana.pipeline_sana import SanaPipeline
    from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler

    def same(kind: Any, ours: Transformer | Autoencoder) -> nn.Module:
        values = {k: v for k, v in ours.config.to_dict().items() if not k.startswith("_")}
        with torch.device("meta"):
            theirs = kind(**values).eval()
        theirs.load_state_dict(ours.state_dict(), assign=True)
        return theirs.requires_grad_(False)

    pipeline = SanaPipeline(
        tokenizer=sana.text.tokenizer,
        text_encoder=sana.text.model,
        transformer=same(SanaTransformer2DModel, sana.transformer),  # pyright: ignore
        vae=same(AutoencoderDC, sana.autoencoder),  # pyright: ignore
        scheduler=DPMSolverMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=SHIFT
        ),
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
