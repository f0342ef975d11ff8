"""Tiny models with random weights, whole enough to draw: for every test above the layers."""

from dataclasses import replace

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from torch import nn
from transformers import Gemma2Config, Gemma2Model, PreTrainedTokenizerFast

from opensana.autoencoder.config import AutoencoderConfig
from opensana.autoencoder.model import Autoencoder
from opensana.models.index import ModelDefaults, ModelInfo
from opensana.models.scheduler import SCM
from opensana.pipeline import Sana
from opensana.text.encoder import TextEncoder
from opensana.transformer.config import TransformerConfig
from opensana.transformer.model import Transformer

TEXT_WIDTH = 16
AUTOENCODER = AutoencoderConfig(
    latent_channels=8,
    attention_head_dim=8,
    encoder_block_out_channels=(8, 8, 8, 16, 16, 16),
    decoder_block_out_channels=(8, 8, 8, 16, 16, 16),
    encoder_layers_per_block=(1,) * 6,
    decoder_layers_per_block=(1,) * 6,
    scaling_factor=0.5,
)
TRANSFORMER = TransformerConfig(
    in_channels=8,
    out_channels=8,
    num_attention_heads=2,
    attention_head_dim=8,
    num_layers=2,
    num_cross_attention_heads=2,
    cross_attention_head_dim=8,
    cross_attention_dim=16,
    caption_channels=TEXT_WIDTH,
    sample_size=2,
)
SPRINT = replace(TRANSFORMER, guidance_embeds=True, qk_norm="rms_norm_across_heads")


def tokenizer() -> PreTrainedTokenizerFast:
    """One token a byte, <bos> in front."""
    special = ["<pad>", "<eos>", "<bos>", "<unk>"]
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*special, *letters])}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    core.decoder = decoders.ByteLevel()
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


def gemma() -> Gemma2Model:
    torch.manual_seed(3)
    config = Gemma2Config(
        vocab_size=260,
        hidden_size=TEXT_WIDTH,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=4096,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=2,
    )
    return Gemma2Model(config).eval()


def randomise(module: nn.Module, seed: int, scale: float = 0.2) -> None:
    """Every weight random, norms and tables too, so that a wrong name or order shows."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in module.state_dict().items():
            if value.is_floating_point():
                noise = scale * torch.randn(value.shape, generator=generator)
                value.copy_(noise.abs() + 0.5 if "running_var" in name else value + noise)


def transformer(config: TransformerConfig = TRANSFORMER) -> Transformer:
    torch.manual_seed(1)
    module = Transformer(config).eval()
    randomise(module, 1)
    return module.requires_grad_(False)


def autoencoder(config: AutoencoderConfig = AUTOENCODER) -> Autoencoder:
    torch.manual_seed(2)
    module = Autoencoder(config).eval()
    randomise(module, 2, scale=0.05)
    return module.requires_grad_(False)


def sana(*, instruction: str = "diffusers", shift: float = 3.0) -> Sana:
    """A whole model: 64 px native, latents 8 x 2 x 2."""
    text = TextEncoder(gemma(), tokenizer(), instruction=instruction)
    defaults = ModelDefaults(instruction=instruction)  # pyright: ignore[reportArgumentType]
    return Sana(text, transformer(), autoencoder(), ModelInfo("tiny", shift, defaults))


def sprint(*, instruction: str = "diffusers") -> Sana:
    """The same whole model as SANA-Sprint."""
    whole = sana(instruction=instruction, shift=1.0)
    info = replace(whole.info, defaults=replace(whole.info.defaults, steps=2), scheduler=SCM)
    return replace(whole, transformer=transformer(SPRINT), info=info)
