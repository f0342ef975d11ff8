"""Linear against softmax attention inside one block of the Sana 0.6B shape, by number of tokens.

    python -m benchmarks.linear_attention [--tokens 256 1024 4096 16384] [--plot FILE.png]

Same projections and the same Mix-FFN around both; only the core differs: ReLU linear attention, or
torch's fused softmax attention. Blocks alternate in one process. The last line is JSON.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.timing import machine, medians
from opensana.models.presets import transformer_preset
from opensana.transformer.attention import SelfAttention, join_heads, split_heads
from opensana.transformer.block import Block

SOFTMAX_HEADS = 16  # heads of 72 channels, as in the cross-attention


def softmax_attention(layer: SelfAttention, tokens: Tensor) -> Tensor:
    """The layer's projections with softmax between them, [B, N, C] in and out."""
    parts = (layer.to_q(tokens), layer.to_k(tokens), layer.to_v(tokens))
    query, key, value = (split_heads(part, SOFTMAX_HEADS) for part in parts)
    out = join_heads(F.scaled_dot_product_attention(query, key, value))
    return layer.to_out[0](out)


def compare(count: int, repeats: int) -> dict[str, float]:
    config = transformer_preset("sana_600m_1024")
    torch.manual_seed(0)
    block = Block(config).eval().requires_grad_(False)
    side = int(count**0.5)
    tokens = torch.randn(1, side * side, config.width)

    def mixed(attended: Tensor) -> Tensor:
        return block._mix(tokens + attended, (side, side))

    sides = [
        lambda: block.attn1(tokens),
        lambda: softmax_attention(block.attn1, tokens),
        lambda: mixed(block.attn1(tokens)),
        lambda: mixed(softmax_attention(block.attn1, tokens)),
    ]
    with torch.inference_mode():
        linear, softmax, whole_linear, whole_softmax = medians(sides, repeats)
    return {
        "linear_seconds": round(linear, 4),
        "softmax_seconds": round(softmax, 4),
        "attention_ratio": round(softmax / linear, 2),
        "with_mix_ffn_ratio": round(whole_softmax / whole_linear, 2),
    }


def plot(results: Mapping[int, Mapping[str, float]], path: Path) -> None:
    """Seconds against tokens, both axes logarithmic."""
    from PIL import Image, ImageDraw

    width, height, margin = 640, 420, 60
    image = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(image)
    tokens = sorted(results)
    seconds = [results[n][f"{kind}_seconds"] for n in tokens for kind in ("linear", "softmax")]
    place = _scale(tokens, seconds, width, height, margin)
    for kind, colour in (("linear", "#1a7f37"), ("softmax", "#cf222e")):
        points = [place(n, results[n][f"{kind}_seconds"]) for n in tokens]
        pen.line(points, fill=colour, width=3)
        for (x, y), n in zip(points, tokens, strict=True):
            pen.ellipse((x - 4, y - 4, x + 4, y + 4), fill=colour)
            value = f"{results[n][f'{kind}_seconds']:.2g} s"
            pen.text((x, y - 20 if kind == "softmax" else y + 8), value, fill=colour, anchor="ma")
        pen.text((points[-1][0] - 8, points[-1][1] - 34), kind, fill=colour, anchor="ra")
    for n in tokens:
        x, _ = place(n, seconds[0])
        pen.text((x, height - margin + 20), f"{n} tokens", fill="black", anchor="ma")
    image.save(path)


def _scale(tokens: Sequence[int], seconds: Sequence[float], width: int, height: int, margin: int):
    """A function from (tokens, seconds) to a point, logarithmic in both."""
    x, y = torch.tensor(tokens).float().log(), torch.tensor(seconds).log()

    def place(count: int, value: float) -> tuple[float, float]:
        right = (torch.tensor(float(count)).log() - x.min()) / (x.max() - x.min())
        up = (torch.tensor(value).log() - y.min()) / (y.max() - y.min())
        return (
            margin + float(right) * (width - 2 * margin),
            height - margin - float(up) * (height - 2 * margin),
        )

    return place


def main() -> None:
    parser = argparse.ArgumentParser(description="Linear against softmax attention.")
    parser.add_argument("--tokens", type=int, nargs="+", default=[256, 1024, 4096, 16384])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    results = {}
    for count in arguments.tokens:
        results[count] = compare(count, arguments.repeats)
        print(count, results[count], flush=True)
    if arguments.plot is not None:
        plot(results, arguments.plot)
    print(json.dumps({"machine": machine(), "results": results}))


if __name__ == "__main__":
    main()
