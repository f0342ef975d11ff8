"""A request becomes a job once: all is decided there, and drawing reads nothing else."""

import sys
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from opensana.autoencoder.plan import decoder_chain
from opensana.drawing.batches import IMAGES_AT_ONCE, MOST_AT_ONCE, batches_of
from opensana.drawing.control_image import ControlImage
from opensana.drawing.init_image import InitImage
from opensana.drawing.job import make_job
from opensana.drawing.solving import encode, job_noises, solve
from opensana.errors import RequestError
from opensana.pipeline import Sana
from opensana.request import DRAWN_SEEDS, Request
from tests import tiny

pytestmark = pytest.mark.usefixtures("one_thread")

PAINTED = Image.fromarray(np.random.default_rng(1).integers(256, size=(70, 130, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def sana() -> Sana:
    return tiny.sana(instruction="none")


def test_nothing_is_left_out(sana: Sana) -> None:
    job = make_job(Request("a fox"), sana)
    left_out = {field.name for field in fields(Request) if getattr(job.request, field.name) is None}
    assert left_out == {"strength"}, "which belongs to an init image"
    assert (job.size, job.drawn_size, job.latent_size) == ((64, 64), (64, 64), (2, 2))
    assert (job.steps, job.guidance, job.solver) == (20, 4.5, "flow_dpm")
    assert (job.steps, job.guidance, job.solver) == (
        job.request.steps, job.request.guidance, job.request.solver
    )  # fmt: skip
    assert job.seeds == (job.request.seed,) and job.strength == 1.0
    assert not job.provenance and not job.notes and job.cut_to is None


def test_what_is_decided_stays(sana: Sana) -> None:
    """The request of a job is decided to itself, and Sana.complete gives just that."""
    asked = Request("a fox", width=96, steps=3, guidance=0, seed=7, images=2, solver="euler")
    job = make_job(asked, sana)
    assert make_job(job.request, sana) == job
    assert sana.complete(asked) == job.request == replace(asked, height=64)
    assert job.latent_size == (2, 3) and job.seeds == (7, 8)


def test_a_seed_is_drawn_only_when_none_was_given(sana: Sana) -> None:
    assert make_job(Request("a fox", seed=5), sana).seeds == (5,)
    drawn = {make_job(Request("a fox"), sana).seeds[0] for _ in range(8)}
    assert len(drawn) > 1
    assert all(0 <= seed < DRAWN_SEEDS for seed in drawn)


def test_seeds_are_drawn_a_batch_at_a_time(sana: Sana) -> None:
    job = make_job(Request("a fox", seed=0, images=2 * IMAGES_AT_ONCE + 1), sana)
    batches = batches_of(sana, job, memory=sys.maxsize)
    assert [len(batch) for batch in batches] == [IMAGES_AT_ONCE, IMAGES_AT_ONCE, 1]
    assert sum(batches, ()) == job.seeds


def test_a_gpu_draws_as_many_at_once_as_it_decodes() -> None:
    sana = tiny.sana(instruction="none")
    sana.transformer.to("meta")
    job = make_job(Request("a fox", seed=0, images=40), sana)

    def sizes(memory: int) -> list[int]:
        return [len(batch) for batch in batches_of(sana, job, memory=memory)]

    six = decoder_chain(sana.autoencoder, 6, *job.latent_size).one_band_memory
    assert sizes(six) == [6] * 6 + [4]
    assert sizes(sys.maxsize) == [MOST_AT_ONCE, MOST_AT_ONCE, 8]
    assert sizes(1) == [IMAGES_AT_ONCE] * 10, "what is too much is halved, or decoded in bands"


def test_guidance_counts_above_1(sana: Sana) -> None:
    assert [make_job(Request("a", guidance=g), sana).guided for g in (0, 1, 1.1)] == [
        False, False, True
    ]  # fmt: skip
    sprint = tiny.sprint(instruction="none")
    assert not make_job(Request("a", guidance=4.5), sprint).guided


def test_an_init_image_decides_size_and_strength(sana: Sana) -> None:
    mask = Image.new("L", PAINTED.size, 255)
    for image, strength in ((InitImage(PAINTED), 0.6), (InitImage(PAINTED, mask), 1.0)):
        job = make_job(Request("a fox"), sana, image)
        assert job.size == (job.request.width, job.request.height) == (128, 64)
        assert job.strength == job.request.strength == strength
        assert job.init_image is not None and job.init_image.image.size == (128, 64)
        assert job.provenance == image.provenance
        assert any("was scaled and cut to 128 x 64" in note for note in job.notes)
    job = make_job(Request("a fox", height=128, strength=0.2), sana, InitImage(PAINTED))
    assert (job.size, job.strength, job.latent_size) == ((224, 128), 0.2, (4, 7))


def test_a_control_image_is_fitted_to_what_is_drawn(sana: Sana) -> None:
    control = ControlImage(PAINTED, 0.5)
    job = make_job(Request("a fox"), sana, InitImage(PAINTED), control)
    assert job.control_image is not None and job.control_image.image.size == job.drawn_size
    assert job.control_image.scale == 0.5
    assert list(job.provenance) == ["image_sha256", "control_image_sha256", "control_scale"]
    assert job.provenance["control_image_sha256"] == control.provenance["control_image_sha256"]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"solver": "euler"}, "draws with solver scm alone, got 'euler'; leave solver out"),
        ({"steps": 5}, "in 1 to 4 steps and gains nothing from more, got 5 steps; try 2"),
        ({"negative_prompt": "x"}, "takes no negative prompt"),
        ({"strength": 0.5}, "draws from text alone so far"),
    ],
)
def test_what_a_sprint_model_cannot_do_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        make_job(Request("a fox", **fields), tiny.sprint(instruction="none"))


def test_drawing_a_job_is_drawing_its_request(sana: Sana) -> None:
    request = Request("a fox", seed=3, steps=2, images=2)
    job = sana.job(request)
    with torch.inference_mode():
        latent = solve(sana, job, encode(sana, job), job_noises(sana, job))
    assert torch.equal(latent, sana.draw_latents(request))
    one, other = sana.generate(request), sana.generate(job.request)
    assert [picture.png() for picture in one] == [picture.png() for picture in other]
    assert [picture.request for picture in one] == [
        replace(job.request, seed=seed, images=1) for seed in job.seeds
    ]
