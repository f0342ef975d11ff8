"""What a GPU needs to hold, by model, size, number format and `--offload`: counted, not measured.

    python -m benchmarks.gpu_memory

Bytes of weights are those of the shapes; a step's are those of the tensors that are alive at once,
counted on torch's `meta` device with fused blocks and both halves of guidance; decoding is the plan
of `autoencoder/plan.py` within 1 GiB, in bands where it must be. A table in Markdown.
"""

from collections.abc import Mapping
from dataclasses import replace

import torch

from opensana.autoencoder.model import Autoencoder
from opensana.autoencoder.plan import decoder_chain
from opensana.models.describe import GEMMA_2_2B
from opensana.models.presets import autoencoder_preset, transformer_preset
from opensana.models.schemes import bytes_in_8_bits, transformer_bytes
from opensana.runtime.fused import fuse
from opensana.runtime.quantize import Quantization, quantize
from opensana.transformer.config import TransformerConfig
from opensana.transformer.model import Transformer
from tests.live import peak_of

PRESETS = ("sana_600m_1024", "sana_1600m_1024", "sana_1_5_4800m", "sprint_600m", "sprint_1600m")
SIDES = (512, 1024, 2048, 4096)
FORMATS = {"bfloat16": None, "8 bits": Quantization("fp8")}
GIB, DECODING, TOKENS = 2**30, 2**30, 300


def peaks(weights: Mapping[str, int], works: Mapping[str, int]) -> dict[str, int]:
    """Bytes at once by `--offload`, of the parts text, transformer and vae and their works."""
    text, rest = weights["text"], weights["transformer"] + weights["vae"]
    drawing = max(works["transformer"], works["vae"])
    return {
        "none": text + rest + max(drawing, works["text"]),
        "text": max(text + works["text"], rest + drawing),
        "all": max(weights[name] + works[name] for name in weights),
    }


@torch.inference_mode()
def step(config: TransformerConfig, side: int, quantization: Quantization | None) -> int:
    """Bytes alive at once in a step; all blocks are alike, and two are counted."""
    with torch.device("meta"):
        network = Transformer(replace(config, num_layers=2)).requires_grad_(False)
        if quantization is not None:
            quantize(network, quantization)
    fuse(network.bfloat16())
    halves = [TOKENS] if config.guidance_embeds else [TOKENS, 2]
    widths = (torch.empty(1, n, config.caption_channels, device="meta") for n in halves)
    texts = network.together(
        [network.fold(network.prepare_text(states)) for states in widths], [1] * len(halves)
    )
    embedded = torch.tensor([4.5]) if config.guidance_embeds else None
    moment = network.moment(torch.tensor([500.0]), embedded)
    x = torch.empty(len(halves), config.in_channels, side // 32, side // 32, device="meta")
    return peak_of(lambda: network.velocity(x, moment, texts))


def rows() -> list[list[str]]:
    found = []
    with torch.device("meta"):
        autoencoder = Autoencoder(autoencoder_preset("dc_ae_f32c32_sana_1_1")).bfloat16()
    vae = sum(x.nbytes for x in autoencoder.parameters())
    for preset in PRESETS:
        config = transformer_preset(preset)
        with torch.device("meta"):
            network = Transformer(config)
        for side in SIDES:
            row = [preset, str(side)]
            chain = decoder_chain(autoencoder, 1, side // 32, side // 32)
            decoding = min(chain.one_band_memory, max(chain.least_memory, DECODING))
            for quantization in FORMATS.values():
                eighth = quantization is not None
                weights = {
                    "text": bytes_in_8_bits(GEMMA_2_2B) if eighth else 2 * GEMMA_2_2B,
                    "transformer": transformer_bytes(network, quantization, torch.bfloat16),
                    "vae": vae,
                }
                works = {
                    "text": 0,
                    "transformer": step(config, side, quantization),
                    "vae": decoding,
                }
                row += [f"{size / GIB:.1f}" for size in peaks(weights, works).values()]
            found.append(row)
    return found


def main() -> None:
    ways = [f"{name}, {mode}" for name in FORMATS for mode in ("all there", "text", "all")]
    table = [["model", "pixels", *ways], ["---"] * (2 + len(ways)), *rows()]
    for row in table:
        print(f"| {' | '.join(row)} |")


if __name__ == "__main__":
    main()
