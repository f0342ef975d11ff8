"""One guided step of the Linear DiT, Sana 0.6B shape: this project against diffusers.

    python -m benchmarks.transformer_step [--sides 512 1024] [--layers 28] [--repeats 5]

Both hold the same random float32 weights and see the same latent and texts: a prompt of 30 tokens
and the empty negative one, which diffusers pads to 300 as its pipeline does. Steps alternate in one
process; the ratio is that of medians. The last line is JSON.
"""

import argparse
import json
from collections.abc import Callable

import torch
from diffusers import SanaTransformer2DModel  # pyright: ignore[reportPrivateImportUsage]
from torch import Tensor, nn

from benchmarks.timing import machine, medians
from opensana.flow.guidance import guided_velocity
from opensana.models.presets import transformer_preset
from opensana.runtime.packed import PackedLinear, pack
from opensana.transformer.model import Transformer, TransformerConfig

PROMPT, NEGATIVE, PADDED = 30, 2, 300
GUIDANCE = 4.5
PRESETS = {512: "sana_600m_512", 1024: "sana_600m_1024"}


def texts(config: TransformerConfig, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Padded states [2, 300, D] of the negative and the prompt, and their mask."""
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(2, PADDED, config.caption_channels, generator=generator)
    mask = torch.zeros(2, PADDED, dtype=torch.bool)
    mask[0, :NEGATIVE] = mask[1, :PROMPT] = True
    return states, mask


def pair(config: TransformerConfig) -> tuple[Transformer, SanaTransformer2DModel]:
    """The same random weights on both sides."""
    torch.manual_seed(0)
    values = {k: v for k, v in config.to_dict().items() if not k.startswith("_")}
    theirs = SanaTransformer2DModel(**values).eval().requires_grad_(False)
    ours = Transformer(config).eval().requires_grad_(False)
    ours.load_state_dict(theirs.state_dict())
    pack(ours)
    return ours, theirs


def compare(side: int, layers: int | None, repeats: int) -> dict[str, float]:
    preset = transformer_preset(PRESETS[side]).to_dict()
    config = TransformerConfig.from_dict(preset | ({"num_layers": layers} if layers else {}))
    ours, theirs = pair(config)
    states, mask = texts(config)
    latent = torch.randn(1, config.in_channels, side // 32, side // 32)
    timestep = torch.tensor([500.0])
    rows = [slice(1, 2), slice(0, 1)]
    prepared = [ours.fold(ours.prepare_text(states[row], mask[row])) for row in rows]
    velocities = [lambda x, t, text=text: ours.velocity(x, t, text) for text in prepared]

    def fast() -> Tensor:
        return guided_velocity(velocities, GUIDANCE)(latent, timestep)

    def plain() -> Tensor:
        both = torch.cat([latent, latent])
        out = theirs(both, states, timestep.expand(2), encoder_attention_mask=mask.long())[0]
        without, given = out.chunk(2)
        return without + GUIDANCE * (given - without)

    with torch.inference_mode():
        error = float((fast() - plain()).abs().max() / plain().abs().max())
        floor = matrix_products(config, latent)
        mine, other, products = medians([fast, plain, floor], repeats)
    return {
        "ratio": round(other / mine, 3),
        "opensana_seconds": round(mine, 3),
        "diffusers_seconds": round(other, 3),
        "share_of_matrix_products": round(products / mine, 3),
        "relative_error": error,
    }


def matrix_products(config: TransformerConfig, latent: Tensor) -> Callable[[], object]:
    """The matrix products of a guided step and nothing else: what no exact step can undercut."""
    tokens, width, hidden = 2 * latent.shape[2] * latent.shape[3], config.width, config.hidden
    sizes = [(width, width)] * 6 + [(width, 2 * hidden), (hidden, width)]
    layers = [PackedLinear(nn.Linear(k, n, bias=False)) for k, n in sizes]
    inputs = [torch.randn(tokens, k) for k, _ in sizes]

    def run() -> None:
        for _ in range(config.num_layers):
            for layer, x in zip(layers, inputs, strict=True):
                layer(x)

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description="A guided step against diffusers.")
    parser.add_argument("--sides", type=int, nargs="+", choices=PRESETS, default=list(PRESETS))
    parser.add_argument("--layers", type=int, help="fewer than the shape has, to be quick")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    results = {}
    for side in arguments.sides:
        results[side] = compare(side, arguments.layers, arguments.repeats)
        print(side, results[side], flush=True)
    print(json.dumps({"machine": machine(), "results": results}))


if __name__ == "__main__":
    main()
