"""Peak resident memory of drawing with 8-bit transformer and text encoder, all of it loaded.

    python -m benchmarks.quantized_memory [--preset sana_600m_1024] [--steps 2] [--kernels]
        [--memory 256MiB] [--offload]

A model folder in exact shape with random numbers, as `opensana quantize --scheme w8a8 --parts
transformer,text` writes it: Gemma 2 2B's shape for the text, one word a token, sana-1.1's
autoencoder in float32. A new process loads it and draws one picture, guided, decoded in bands
within --memory. Resident memory counts everything: Python, torch, weights and what a file's map
holds. The last line is JSON.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Gemma2Model

from benchmarks.decode_memory import peak_memory
from benchmarks.random_model import GEMMA_2_2B, PROMPT, SPREAD, tokenizer
from benchmarks.timing import machine
from opensana.autoencoder import Autoencoder, AutoencoderConfig
from opensana.device import format_bytes
from opensana.files.writing import write_json
from opensana.models.index import INDEX, ModelDefaults, model_index
from opensana.models.parts import QUANTIZATION
from opensana.models.presets import transformer_preset
from opensana.models.save import write_autoencoder, write_transformer
from opensana.models.scheduler import DPM, write_scheduler
from opensana.models.schemes import TEXT_GROUP
from opensana.pipeline import Sana
from opensana.runtime.quantize import Quantization, quantize
from opensana.text.demo_encoder import METHOD
from opensana.transformer.model import Transformer
from opensana.weights.aligned import align
from opensana.weights.safetensors import write_safetensors

PRESETS = ("sana_600m_1024", "sana_1600m_1024")


def random_state(module: nn.Module) -> dict[str, Tensor]:
    """Numbers in the shapes and formats of a module on `meta`."""
    state = {}
    for name, tensor in module.state_dict().items():
        if not tensor.is_floating_point():
            state[name] = torch.randint(-127, 128, tensor.shape, dtype=tensor.dtype)
        elif name.endswith("_scale"):
            state[name] = torch.full(tensor.shape, SPREAD / 64)
        elif tensor.ndim == 1 and "norm" in name and name.endswith("weight"):
            state[name] = torch.ones(tensor.shape)
        else:
            state[name] = SPREAD * torch.randn(tensor.shape)
    return state


def write_folder(preset: str, folder: Path) -> None:
    """The model's files, a part at a time, so that making it takes less memory than drawing."""
    torch.manual_seed(0)
    with torch.device("meta"):
        transformer = Transformer(transformer_preset(preset))
        autoencoder = Autoencoder(AutoencoderConfig())
        text = Gemma2Model(GEMMA_2_2B)
    quantize(transformer, Quantization("w8a8"))
    transformer.load_state_dict(random_state(transformer), assign=True)
    write_transformer(transformer, folder / "transformer")
    del transformer
    autoencoder.load_state_dict(random_state(autoencoder), assign=True)
    write_autoencoder(autoencoder, folder / "vae")
    del autoencoder
    write_text(text, folder / "text_encoder")
    tokenizer().save_pretrained(folder / "tokenizer")
    write_scheduler(folder, 3.0, DPM)
    classes = ("Gemma2Model", "PreTrainedTokenizerFast")
    write_json(folder / INDEX, model_index(*classes, defaults=ModelDefaults(), scheduler=DPM))


def write_text(module: nn.Module, part: Path) -> None:
    state: dict[str, Tensor] = {}
    for name, tensor in module.state_dict().items():
        if tensor.ndim == 2:
            state[name] = torch.randint(-127, 128, (tensor.numel(),), dtype=torch.int8)
            groups = tensor.shape[1] // TEXT_GROUP
            state[f"{name}_scale"] = torch.full((len(tensor), groups), SPREAD / 64)
        else:
            state[name] = torch.zeros(tensor.shape)
    part.mkdir()
    [plain] = write_safetensors(state, part, name="plain")
    align(plain, part / "model.safetensors")
    plain.unlink()
    write_json(part / "config.json", {**GEMMA_2_2B.to_dict(), QUANTIZATION: METHOD})


def draw(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Load and draw in this process; the most bytes that were resident until each was done."""
    found, start = {"torch": peak_memory()}, time.monotonic()
    sana = Sana.load(folder, device="cpu", memory=options.memory, kernels=options.kernels)
    found["loaded"], loaded = peak_memory(), time.monotonic()
    if options.offload:
        sana.text.drop_weights([PROMPT], [""])
    [picture] = sana.generate(PROMPT, seed=0, steps=options.steps)
    seconds = {"load": loaded - start, "draw": time.monotonic() - loaded}
    return {
        "size": picture.image.size,
        "peak": found | {"drawn": peak_memory()},
        "seconds": seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Memory of a whole model in 8 bits.")
    parser.add_argument("--preset", choices=PRESETS, default=PRESETS[0])
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--memory", default="256MiB", help="of decoding, beside the weights")
    parser.add_argument("--kernels", action="store_true")
    parser.add_argument("--offload", action="store_true", help="drop the text encoder once read")
    parser.add_argument("--here", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here:
        print(json.dumps(draw(options.here, options)))
        return
    with tempfile.TemporaryDirectory() as name:
        write_folder(options.preset, Path(name))
        command = [sys.executable, "-m", "benchmarks.quantized_memory", *sys.argv[1:]]
        command += ["--here", name]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found = json.loads(done.stdout.splitlines()[-1])
    for moment, taken in found["peak"].items():
        print(f"{moment}: {format_bytes(taken)} resident at most")
    print(json.dumps({"machine": machine(), "preset": options.preset, "results": found}))


if __name__ == "__main__":
    main()
