"""Text states of a 30-token prompt behind the instruction: this project against diffusers.

    python -m benchmarks.text_encoding [--repeats 5]

The real Gemma 3 270M of the `demo` extra on both sides, float32. diffusers pads prompt and
instruction to 507 tokens and the negative prompt to 300, as its pipeline does; here padding is not
computed, and the instruction's keys and values and the empty prompt's states are kept. The last
line is JSON.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from diffusers.pipelines.sana.pipeline_sana import SanaPipeline
from torch import Tensor
from transformers import AutoModel, AutoTokenizer

from benchmarks.timing import machine, medians
from opensana.runtime.placing import prepare_for_inference
from opensana.text.demo_encoder import gemma3_270m_folder
from opensana.text.encoder import TextEncoder, TextStates

PROMPT = (
    "a photograph of a red apple and two green pears on an old wooden table by a window, soft"
    " morning light, shallow depth of field, very detailed"
)


def main() -> None:
    parser = argparse.ArgumentParser(description="Text encoding against diffusers.")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    encoder = TextEncoder.load(gemma3_270m_folder(), dtype=torch.float32)
    prepare_for_inference(encoder.model, torch.device("cpu"), torch.float32)
    parts: Any = {"vae": None, "transformer": None, "scheduler": None}
    with tempfile.TemporaryDirectory() as folder:  # the same weights as plain numbers
        for part in (encoder.model, encoder.tokenizer):
            part.save_pretrained(Path(folder))
        pipeline: Any = SanaPipeline(
            AutoTokenizer.from_pretrained(folder),
            AutoModel.from_pretrained(folder, dtype=torch.float32),
            **parts,
        )
    lines = encoder.instruction.split("\n")

    def fast() -> tuple[TextStates, TextStates]:
        return encoder.encode([PROMPT]), encoder.encode_plain([""])

    @torch.inference_mode()
    def plain() -> tuple[Tensor, ...]:
        return pipeline.encode_prompt(
            PROMPT,
            negative_prompt="",
            device=torch.device("cpu"),
            complex_human_instruction=lines,
        )

    states, mask, negative, negative_mask = plain()
    ours, ours_negative = fast()
    pairs = (
        (ours.states[0], states[mask.bool()]),
        (ours_negative.states[0], negative[negative_mask.bool()]),
    )
    error = max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)
    mine, other = medians([fast, plain], arguments.repeats)
    figures = {
        "tokens": int(mask.sum()),
        "ratio": round(other / mine, 2),
        "opensana_seconds": round(mine, 4),
        "diffusers_seconds": round(other, 3),
        "relative_error": error,
    }
    print(json.dumps({"machine": machine(), "results": figures}))


if __name__ == "__main__":
    main()
