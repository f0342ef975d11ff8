"""The solver loop with its steps as CUDA graphs and without, and whether the bits are the same."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch

from benchmarks.gpu.measuring import attempt, milliseconds, short
from benchmarks.gpu.parts import Note, Setting
from benchmarks.random_model import PROMPT, random_sana
from opensana.drawing.solving import encode, job_noises, solve
from opensana.pipeline import Sana
from opensana.request import Request
from opensana.runtime.graphs import Graphs

SIDES = (512, 1024)


def run(setting: Setting, note: Note) -> None:
    model = random_sana("sana_600m_1024", setting.device, setting.dtype, tiny=setting.tiny)
    wrong: list[str] = []
    for side in (64,) if setting.tiny else SIDES:
        for guidance in (4.5, 1.0):
            name = f"{side}_guided" if guidance > 1 else f"{side}"
            found = attempt(setting, lambda s=side, g=guidance: compared(setting, model, s, g))
            note(name, found)
            if isinstance(found, dict) and not found["same_bits"]:
                wrong.append(f"{name}: not the bits of the same kernels one by one")
    note("wrong", wrong)


@torch.inference_mode()
def compared(setting: Setting, model: Sana, side: int, guidance: float) -> dict[str, Any]:
    """Milliseconds of a loop both ways, and of the first picture, which records."""
    if setting.device.type != "cuda":
        raise NotImplementedError("CUDA graphs are for CUDA")
    steps = 2 if setting.tiny else 20
    request = Request(PROMPT, width=side, height=side, steps=steps, guidance=guidance, seed=1)
    graphs = Graphs()
    recorded = replace(model, graphs=graphs)
    job = model.job(request)
    texts, noises = encode(recorded, job), [next(job_noises(model, job))]

    def first() -> object:
        graphs.forget()
        return solve(recorded, job, texts, noises)

    calls: dict[str, Callable[[], object]] = {
        "with_graph": lambda: solve(recorded, job, texts, noises),
        "without": lambda: solve(model, job, texts, noises),
    }
    found: dict[str, Any] = dict(milliseconds(setting, calls))
    found |= milliseconds(setting, {"recording": first}, repeats=2)
    found["speedup"] = short(found["without"] / found["with_graph"])
    one, other = (solve(sana, job, texts, noises) for sana in (recorded, model))
    return {**found, "same_bits": torch.equal(one, other)}
