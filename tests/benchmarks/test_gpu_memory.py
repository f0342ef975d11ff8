"""The plan of a GPU's memory counts what is alive: on a CPU, where parts come and go as there."""

from dataclasses import replace

import pytest
import torch

from benchmarks.gpu_memory import peaks
from opensana.drawing.solving import encode, job_noises, solve
from opensana.pipeline import Sana
from opensana.request import Request
from opensana.runtime.offload import Turns
from tests import tiny
from tests.live import Live, peak_of

SIDE = 32
REQUEST = Request("a cat", seed=1, steps=2, width=SIDE, height=SIDE)


def parts(sana: Sana) -> dict[str, torch.nn.Module]:
    return {"text": sana.text.model, "transformer": sana.transformer, "vae": sana.autoencoder}


@pytest.mark.parametrize("mode", ["none", "text", "all"])
def test_the_plan_is_what_is_alive_at_once(mode: str) -> None:
    """Of a model whose weights are copied to the stand-in for a GPU, and whose works are real."""
    plain, sana, turns = tiny.sana(), tiny.sana(), Turns(torch.device("cpu"))
    job = plain.job(REQUEST)
    with torch.inference_mode():
        texts = encode(plain, job)
        latent = solve(plain, job, texts, job_noises(plain, job))
        works = {
            "text": peak_of(lambda: encode(plain, job)),
            "transformer": peak_of(lambda: solve(plain, job, texts, job_noises(plain, job))),
            "vae": peak_of(lambda: plain.autoencoder.decode(latent)),
        }
    for name, network in parts(sana).items():
        turns.add(network, stays=mode == "none" or (mode == "text" and name != "text"))
    weights = {name: turns._guests[network].bytes for name, network in parts(sana).items()}
    expected = peaks(weights, works)[mode]
    with torch.inference_mode():
        encode(sana, job)  # keeps the states of its instruction
    sana = replace(sana, turns=turns)
    with Live() as live:
        if mode == "none":
            turns.begin(*parts(sana).values())
        sana.generate(REQUEST)
    assert expected <= live.peak <= 1.05 * expected
