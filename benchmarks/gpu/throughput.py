"""Pictures a second in growing batches: guided steps and decoding, texts read once."""

import torch

from benchmarks.gpu.measuring import attempt, milliseconds, peak_memory, short
from benchmarks.gpu.parts import Note, Setting
from benchmarks.random_model import PROMPT, random_sana
from opensana.drawing.decoding import decode_images
from opensana.drawing.solving import encode, job_noises, solve
from opensana.pipeline import Sana
from opensana.request import Request

BATCHES = (1, 2, 4, 8, 16, 32, 64)
GAIN = 1.03
"""A batch twice as large that is not faster by this is the last."""


def run(setting: Setting, note: Note) -> None:
    model = random_sana("sana_600m_1024", setting.device, setting.dtype, tiny=setting.tiny)
    side, best = 64 if setting.tiny else 1024, 0.0
    for batch in BATCHES[:2] if setting.tiny else BATCHES:
        found = attempt(
            setting, lambda batch=batch: pictures_per_second(setting, model, side, batch)
        )
        note(f"batch_{batch}", found)
        if not isinstance(found, dict):
            return
        if found["pictures_per_second"] < GAIN * best:
            return
        best = found["pictures_per_second"]


@torch.inference_mode()
def pictures_per_second(setting: Setting, model: Sana, side: int, batch: int) -> dict[str, float]:
    steps = 2 if setting.tiny else 20
    job = model.job(Request(PROMPT, width=side, height=side, steps=steps, guidance=4.5, seed=1))
    texts = encode(model, job)
    noises = [next(job_noises(model, job, range(batch)))]

    def draw() -> object:
        latent = solve(model, job, texts, noises)
        return decode_images(model.autoencoder, latent, memory=None)

    taken = milliseconds(setting, {"draw": draw}, repeats=3)["draw"]
    found = {"pictures_per_second": short(1000 * batch / taken)}
    peak = peak_memory(setting.device, draw)
    return found if peak is None else {**found, "peak_gib": short(peak / 2**30)}
