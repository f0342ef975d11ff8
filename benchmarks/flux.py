"""FLUX's blocks beside Sana on one device in one run: how many times as fast a picture is.

    python -m benchmarks.flux [--sizes 1024 4096] [--device auto] [--compile] [--tiny]

One double and one single block of FLUX.1-dev's published shape (`headline_parts`) are timed, and
taken 19 and 38 times in 50 steps. Its embeddings, its VAE and its text encoders are left out, which
favours FLUX; ours is a whole picture of 0.6B, 20 guided steps and the decoding, without its text.
The last line is JSON.
"""

import argparse
import json
from typing import Any

import torch

from benchmarks.gpu.latency import calls
from benchmarks.gpu.measuring import milliseconds, short
from benchmarks.gpu.parts import Setting
from benchmarks.headline_parts import PARTS, flux_double, flux_single
from benchmarks.paper_speed import PRINTED
from benchmarks.random_model import made_in, random_sana
from benchmarks.timing import machine
from opensana.device import resolve_device
from opensana.evaluate.cost.catalogue import PAINTERS
from opensana.pipeline import Sana
from opensana.runtime.compiled import compile_blocks

PEER, OURS, PRESET = "flux-dev", "sana-0.6b", "sana_600m_1024"
SIZES = (1024, 4096)
PAPER = {1024: 39.5, 4096: 104.0}
"""Speed-ups that the paper states for 0.6B, by throughput at 1024 and by latency at 4096."""
BLOCKS = {"flux-dev.double": flux_double, "flux-dev.single": flux_single}
TINY_SIZE, TINY_BLOCK = 64, (64, 2)


def compare(setting: Setting, model: Sana, size: int, *, compiled: bool) -> dict[str, Any]:
    """Seconds of a picture of both, and their ratio."""
    drawing = calls(model, size, steps=2 if setting.tiny else 20)
    ours = milliseconds(setting, {k: drawing[k] for k in ("loop", "decode")}, repeats=3)
    found: dict[str, Any] = {}
    forward = 0.0
    for name in BLOCKS:
        taken = block_milliseconds(setting, name, size, compiled=compiled)
        found[f"{name}_ms"] = taken
        forward += PARTS[name].count * taken
    flux, own = PAINTERS[PEER].steps * forward, ours["loop"] + ours["decode"]
    macs = [PAINTERS[name].picture(size).macs for name in (PEER, OURS)]
    found |= {
        "flux_seconds": short(flux / 1000),
        "seconds": short(own / 1000),
        "ratio": short(flux / own),
        "ratio_without_decoding": short(flux / ours["loop"]),
        "ratio_of_arithmetic": short(macs[0] / macs[1]),
    }
    if size in PAPER:
        printed = PRINTED[size]
        latency = printed[PEER].latency / printed[OURS].latency
        found |= {"paper": PAPER[size], "paper_printed_latencies": short(latency)}
    return found


@torch.inference_mode()
def block_milliseconds(setting: Setting, name: str, size: int, *, compiled: bool) -> float:
    with setting.device, made_in(setting.dtype):
        block, call = BLOCKS[name](*(TINY_BLOCK if setting.tiny else ()))
        block.eval().requires_grad_(False)
        if compiled:
            block.compile()
        run = call(size)
    return milliseconds(setting, {name: run}, repeats=3)[name]


def main() -> None:
    parser = argparse.ArgumentParser(description="FLUX's blocks beside a picture of Sana 0.6B.")
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--compile", action="store_true", help="both sides' blocks")
    parser.add_argument("--tiny", action="store_true", help="small shapes at 64 pixels, once")
    arguments = parser.parse_args()
    setting = Setting(str(resolve_device(arguments.device)), arguments.tiny)
    model = random_sana(PRESET, setting.device, setting.dtype, tiny=setting.tiny)
    if arguments.compile:
        compile_blocks(model.transformer)
    results = {}
    for size in [TINY_SIZE] if arguments.tiny else arguments.sizes:
        results[size] = compare(setting, model, size, compiled=arguments.compile)
        print(size, results[size], flush=True)
    print(json.dumps({"machine": machine(), "results": results}))


if __name__ == "__main__":
    main()
