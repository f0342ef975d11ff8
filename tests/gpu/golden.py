"""What emoji-256 draws on a CPU in float32, kept to be compared with: its text states, latents and
pictures, so that no text encoder is needed where they are drawn again.

    python -m tests.gpu.golden

writes both files anew. Needs the package of the text encoder (`demo` extra).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from opensana.drawing.solving import job_noises
from opensana.models.index import read_info
from opensana.models.load import load_autoencoder, load_transformer
from opensana.pictures.sheet import grid
from opensana.pipeline import Sana
from opensana.request import Request
from opensana.runtime.placing import part_dtype, prepare_for_inference
from opensana.runtime.tf32 import settle_float32
from opensana.text.encoder import TextEncoder, TextStates
from opensana.weights.locate import locate
from opensana.weights.safetensors import read_safetensors, write_safetensors

HERE = Path(__file__).parent
STEM = "golden"
TEXT = "text: "
"""Before the prompt, in the names of tensors."""
PICTURES = HERE / f"{STEM}.png"
MODEL = "emoji-256"
SIDE = 256
REQUESTS = (
    Request("a red apple", seed=1),
    Request("a cat face on a green background", seed=2),
    Request("three yellow stars", seed=3),
    Request("a dog left of a car", seed=4),
    Request("una manzana verde", seed=5),
    Request("a house at night", seed=6),
    Request("a violin", seed=7, steps=20, guidance=3.0),
    Request("a blue car", seed=8, steps=14, guidance=3.0, solver="euler"),
)
"""As the model recommends, and guided in many steps."""


class KeptTexts:
    """The text encoder's answers to the prompts above."""

    def __init__(self, kept: dict[str, Tensor]) -> None:
        self.kept = kept
        self.model = torch.nn.Module()  # no weights: nothing is moved

    def encode(self, prompts: Sequence[str]) -> TextStates:
        [prompt] = prompts
        states = self.kept[prompt].float()[None]
        return TextStates(states, torch.ones(states.shape[:2], dtype=torch.bool))

    encode_plain = encode

    def truncated(self, prompt: str, *, plain: bool = False) -> None:
        del prompt, plain


@dataclass(frozen=True)
class Golden:
    """Text states [N, D] by prompt, float16; latents [8, C, h, w]; pictures uint8 [8, H, W, 3]."""

    texts: dict[str, Tensor]
    noises: Tensor
    latents: Tensor
    pictures: np.ndarray

    @classmethod
    def read(cls) -> "Golden":
        tensors = read_safetensors(HERE / f"{STEM}.safetensors")
        texts = {k.removeprefix(TEXT): v for k, v in tensors.items() if k.startswith(TEXT)}
        sheet = np.asarray(Image.open(PICTURES).convert("RGB"))
        pictures = sheet.reshape(SIDE, len(REQUESTS), SIDE, 3).swapaxes(0, 1)
        return cls(texts, tensors["noises"], tensors["latents"], pictures)


def model(
    texts: dict[str, Tensor],
    device: torch.device,
    dtype: torch.dtype,
    *,
    others: torch.dtype | None = None,
) -> Sana:
    """emoji-256 as it is loaded there, with kept texts for a text encoder."""
    folder = locate(MODEL)
    others = others or part_dtype(device, dtype)
    settle_float32(device, full=dtype == torch.float32)
    return Sana(
        cast(TextEncoder, KeptTexts(texts)),
        prepare_for_inference(load_transformer(folder), device, dtype),
        prepare_for_inference(load_autoencoder(folder), device, others),
        read_info(folder, name=MODEL),
    )


def drawn(sana: Sana, request: Request) -> tuple[Tensor, np.ndarray]:
    """The latent [C, h, w] of a request, and its picture [H, W, 3]."""
    latent = sana.draw_latents(request)[0].float().cpu()
    [picture] = sana.generate(request)
    return latent, np.asarray(picture.image.convert("RGB"))


def noise(sana: Sana, request: Request) -> Tensor:
    return next(job_noises(sana, sana.job(request)))[0].cpu()


def decibels(one: np.ndarray, other: np.ndarray) -> float:
    """PSNR of two pictures; infinite if they are the same."""
    error = np.square(one.astype(float) - other.astype(float)).mean()
    return float("inf") if error == 0 else float(10 * np.log10(255**2 / error))


def main() -> None:
    encoder = Sana.load(MODEL, device="cpu", dtype="float32").text
    texts = {request.prompt: encoder.encode([request.prompt]).states[0] for request in REQUESTS}
    texts[""] = encoder.encode_plain([""]).states[0]
    texts = {name: states.half() for name, states in texts.items()}
    sana = model(texts, torch.device("cpu"), torch.float32)
    made = [drawn(sana, request) for request in REQUESTS]
    tensors = {TEXT + name: states for name, states in texts.items()}
    tensors["noises"] = torch.stack([noise(sana, request) for request in REQUESTS])
    tensors["latents"] = torch.stack([latent for latent, _ in made])
    files = write_safetensors(tensors, HERE, name=STEM)
    sheet = grid(np.stack([picture for _, picture in made]), columns=len(REQUESTS))
    sheet.save(PICTURES, optimize=True)
    for file in (*files, PICTURES):
        print(f"{file}: {file.stat().st_size / 1000:.0f} KB")


if __name__ == "__main__":
    main()
