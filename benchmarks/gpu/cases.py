"""What must come out alike on every device: networks and layers with random weights and inputs.

Each case is made on the CPU in float32 from a seed. What is expected of it is computed there in
float64; the cores that are float32 by design stay so.
"""

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from benchmarks.random_model import (
    TINY_TEXT,
    autoencoder_config,
    fill,
    tokenizer,
    transformer_config,
)
from opensana.autoencoder.model import Autoencoder
from opensana.autoencoder.plan import decoder_chain
from opensana.autoencoder.streaming import decode_bands
from opensana.flow.guidance import guided_velocity
from opensana.flow.solvers import SOLVERS
from opensana.layers.linear_attention import relu_linear_attention
from opensana.layers.mix_ffn import MixFFN
from opensana.runtime.placing import prepare_for_inference
from opensana.runtime.triton_blocks import use_triton
from opensana.text.encoder import TextEncoder
from opensana.text.gemma3 import Gemma3TextModel
from opensana.text.gemma3_config import Gemma3Config
from opensana.transformer.config import TransformerConfig
from opensana.transformer.controlnet import Controlled, ControlNet
from opensana.transformer.model import Transformer

SPREAD = 0.05
DEEP = 2.0
LATENT_SIDE, TEXT_TOKENS = 16, 30
PROMPT = "a red fox in the snow"


@dataclass(frozen=True)
class Case:
    """A module, its inputs, and what is computed: output = forward(module, inputs)."""

    module: nn.Module
    inputs: Mapping[str, Tensor]
    forward: Callable[[Any, Mapping[str, Tensor]], Tensor]
    halves: bool = True
    """Whether float16 is a format for it: a text encoder or an autoencoder overflows."""
    slack: float = 1.0
    """Times the usual bounds: in a deep network more roundings add up."""
    in_triton: bool = False
    """Whether the kernels in Triton run, for CUDA alone."""

    @torch.inference_mode()
    def expected(self) -> Tensor:
        cpu = torch.device("cpu")
        return self.forward(deepcopy(self.module).double(), moved(self.inputs, cpu, torch.float64))

    @torch.inference_mode()
    def found(self, device: torch.device, dtype: torch.dtype) -> Tensor:
        """As the device computes it, placed as a loaded model is."""
        module = prepare_for_inference(deepcopy(self.module), device, dtype)
        if self.in_triton:
            use_triton(module, device)
        poison(device)
        return self.forward(module, moved(self.inputs, device, dtype))


def moved(
    inputs: Mapping[str, Tensor], device: torch.device, dtype: torch.dtype
) -> dict[str, Tensor]:
    def move(x: Tensor) -> Tensor:
        return x.to(device, dtype) if x.is_floating_point() else x.to(device)

    return tree_map(move, dict(inputs))


def poison(device: torch.device) -> None:
    """Leave NaN in the memory that is handed out next: an output that is not written shows."""
    for size in (1 << 10, 1 << 16, 1 << 20, 1 << 24):
        torch.full((size,), torch.nan, device=device)


def randomised(module: nn.Module, seed: int = 0, spread: float = SPREAD) -> nn.Module:
    """Every weight random, those that are new at zero or one too: each term matters."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in module.parameters():
            weight.add_(spread * torch.randn(weight.shape, generator=generator))
    return module.eval().requires_grad_(False)


def random(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# ------------------------------------------------------------------ the transformer


def shape(preset: str, *, tiny: bool, **changes: Any) -> TransformerConfig:
    """Two blocks of a published shape, or of a tiny one of its kind."""
    config = transformer_config(preset, tiny=tiny)
    return replace(config, num_layers=2, sample_size=LATENT_SIDE, **changes)


def velocity(preset: str, *, tiny: bool, folded: bool = False, **changes: Any) -> Case:
    """Two latents with one text each, the second text shorter."""
    config = shape(preset, tiny=tiny, **changes)
    mask = torch.ones(2, TEXT_TOKENS, dtype=torch.bool)
    mask[1, TEXT_TOKENS // 2 :] = False
    texts = slice(0, 1) if folded else slice(None)  # a short text is folded

    def forward(network: Transformer, inputs: Mapping[str, Tensor]) -> Tensor:
        states, kept = inputs["states"][texts], inputs["mask"][texts]
        text = network.prepare_text(states, kept)
        text = network.fold(text) if folded else text
        guidance = inputs["guidance"] if config.guidance_embeds else None
        return network.velocity(inputs["latent"], inputs["timestep"], text, guidance=guidance)

    return Case(
        randomised(Transformer(config)),
        {
            "latent": random(2, config.in_channels, LATENT_SIDE, LATENT_SIDE),
            "states": random(2, 2 if folded else TEXT_TOKENS, config.caption_channels, seed=2),
            "mask": mask[:, :2] if folded else mask,
            "timestep": torch.tensor([900, 30]),
            "guidance": torch.tensor([4.5, 3.0]),
        },
        forward,
    )


def control(*, tiny: bool) -> Case:
    config = shape("sana_600m_1024", tiny=tiny)
    transformer = Transformer(config)
    module = randomised(Controlled(transformer, ControlNet.of(transformer, 1)))

    def forward(network: Controlled, inputs: Mapping[str, Tensor]) -> Tensor:
        prepared = network.prepare(inputs["states"], None, inputs["condition"], scale=0.7)
        return network.velocity(inputs["latent"], inputs["timestep"], prepared)

    latent = (1, config.in_channels, LATENT_SIDE, LATENT_SIDE)
    inputs = {
        "latent": random(*latent),
        "condition": random(*latent, seed=3),
        "states": random(1, TEXT_TOKENS, config.caption_channels, seed=2),
        "timestep": torch.tensor([500]),
    }
    return Case(module, inputs, forward)


def steps(solver: str, *, tiny: bool) -> Case:
    """Four guided steps; the solver's state is float32 in every format, as in a drawing."""
    config = shape("sana_600m_1024", tiny=tiny)

    def forward(network: Transformer, inputs: Mapping[str, Tensor]) -> Tensor:
        states = inputs["states"].split(1)
        texts = [network.fold(network.prepare_text(part)) for part in states]
        velocities = [
            lambda x, t, text=text: network.velocity(x, t.expand(len(x)), text) for text in texts
        ]
        chosen = SOLVERS[solver]
        noise = inputs["noise"].float()
        return chosen.solve(guided_velocity(velocities, 4.5), noise, chosen.sigmas(4, 3.0))

    inputs = {
        "noise": random(1, config.in_channels, LATENT_SIDE, LATENT_SIDE),
        "states": random(2, TEXT_TOKENS, config.caption_channels, seed=2),
    }
    return Case(randomised(Transformer(config), spread=0.02), inputs, forward)


# ------------------------------------------------------------------ layers


def linear_attention(tokens: int) -> Case:
    names = ("query", "key", "value")
    inputs = {name: random(2, 4, tokens, 32, seed=seed) for seed, name in enumerate(names)}

    def forward(_: nn.Module, inputs: Mapping[str, Tensor]) -> Tensor:
        return relu_linear_attention(*(inputs[name] for name in names))

    return Case(nn.Identity(), inputs, forward)


def mix_ffn(*, tiny: bool) -> Case:
    channels = 32 if tiny else 1152
    module = randomised(MixFFN(channels, 5 * channels // 2))
    tokens = {"map": random(2, channels, 16, 24).contiguous(memory_format=torch.channels_last)}
    return Case(module, tokens, lambda ffn, inputs: ffn(inputs["map"]))


# ------------------------------------------------------------------ autoencoder and text


@cache
def dc_ae(tiny: bool) -> Autoencoder:
    """One for all ways: its 300 million numbers take seconds to draw."""
    network = Autoencoder(autoencoder_config(tiny=tiny))
    randomised(network, spread=0.01)
    return network


def autoencoder(way: str, *, tiny: bool) -> Case:
    """Encoding, decoding, or decoding in bands of rows, of a picture of 128 pixels."""
    module = dc_ae(tiny)
    config = module.config
    if way == "encode":
        return Case(
            module,
            {"pixels": random(1, 3, 128, 128)},
            lambda m, x: m.encode(x["pixels"]),
            halves=False,
            slack=DEEP,
        )

    def in_bands(network: Autoencoder, inputs: Mapping[str, Tensor]) -> Tensor:
        chain = decoder_chain(network, 1, *inputs["latent"].shape[2:])
        memory = (chain.least_memory + chain.one_band_memory) // 2
        return torch.cat(list(decode_bands(network, inputs["latent"], memory=memory)), dim=2)

    latent = {"latent": random(1, config.latent_channels, 4, 4)}
    forward = in_bands if way == "decode in bands" else lambda m, x: m.decode(x["latent"])
    return Case(module, latent, forward, halves=False, slack=DEEP)


def gemma2() -> Case:
    """Large logits: without the caps of Gemma 2 the states are others."""
    from transformers import Gemma2Config, Gemma2Model

    from opensana.text.loading import attention_kernel

    words = tokenizer()
    config = Gemma2Config(**TINY_TEXT, vocab_size=len(words), attn_logit_softcapping=2.0)
    kernel = attention_kernel(config.to_dict())
    model: Any = Gemma2Model._from_config(config, attn_implementation=kernel)
    return text_case(randomised(model, spread=0.5), words)


def gemma3() -> Case:
    from transformers import Gemma3TextConfig

    words = tokenizer()
    values = Gemma3TextConfig(**TINY_TEXT, vocab_size=len(words)).to_dict()
    config = Gemma3Config.from_dict(values)
    assert config is not None, "our own Gemma 3 does not read this shape"
    model = Gemma3TextModel(config)
    fill(model)  # a new one's numbers are arbitrary
    return text_case(randomised(model), words)


def text_case(model: nn.Module, words: Any) -> Case:
    def forward(module: nn.Module, _: Mapping[str, Tensor]) -> Tensor:
        return TextEncoder(module, words).encode([PROMPT, PROMPT + ", at night"]).states

    return Case(model, {}, forward, halves=False)


def cases(*, tiny: bool = False, triton: bool = False) -> dict[str, Callable[[], Case]]:
    """By name, with `triton` those of its kernels too.

    Each is made when it is called, of the same numbers each time.
    """
    plain, grown = "sana_600m_1024", "sana_1600m_1024"
    makers: dict[str, Callable[[], Case]] = {
        "0.6B": partial(velocity, plain, tiny=tiny),
        "0.6B, text folded": partial(velocity, plain, tiny=tiny, folded=True),
        "1.6B": partial(velocity, grown, tiny=tiny),
        "1.5, normed queries": partial(velocity, "sana_1_5_1600m", tiny=tiny),
        "Sprint": partial(velocity, "sprint_600m", tiny=tiny),
        "2K, positions": partial(velocity, "sana_1600m_2k", tiny=tiny),
        "ControlNet": partial(control, tiny=tiny),
        "flow_dpm": partial(steps, "flow_dpm", tiny=tiny),
        "euler": partial(steps, "euler", tiny=tiny),
        **{
            f"linear attention, {count} tokens": partial(linear_attention, count)
            for count in ((64,) if tiny else (64, 1024, 16384))
        },
        "Mix-FFN": partial(mix_ffn, tiny=tiny),
        **{
            f"DC-AE, {way}": partial(autoencoder, way, tiny=tiny)
            for way in ("encode", "decode", "decode in bands")
        },
        "Gemma 2, capped": gemma2,
        "Gemma 3": gemma3,
    }
    if triton:
        for name in ("0.6B", "1.6B", "1.5, normed queries", "Mix-FFN"):
            makers[f"{name}, in Triton"] = partial(fused, makers[name])
    return {name: partial(seeded, make) for name, make in makers.items()}


def fused(make: Callable[[], Case]) -> Case:
    return replace(make(), in_triton=True)


def seeded(make: Callable[[], Case]) -> Case:
    """A new module's own numbers are drawn from torch's generator."""
    torch.manual_seed(0)
    return make()
