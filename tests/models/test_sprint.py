"""SANA-Sprint on tiny random models: against diffusers, folders, and what it refuses."""

import json
import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from opensana.drawing.picture import read_request
from opensana.drawing.solving import job_noises
from opensana.errors import ConfigError, OpensanaError, RequestError
from opensana.evaluate.emoji.nearest import drawer
from opensana.files.writing import read_json
from opensana.models.convert import convert
from opensana.models.describe import describe
from opensana.pipeline import Sana
from opensana.request import Request, seeds_from
from tests import tiny
from tests.weights.test_rename_tables import official_transformer

REQUEST = Request("a Red apple", width=96, height=64, steps=2, guidance=4.5, seed=5, images=2)


@pytest.fixture(scope="module")
def sprint() -> Sana:
    return tiny.sprint()


@pytest.fixture(scope="module")
def quick() -> Sana:
    """Without the long instruction."""
    return tiny.sprint(instruction="none")


@pytest.fixture(scope="module")
def saved(sprint: Sana, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sprint.save(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="module")
def saved_quick(quick: Sana, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return quick.save(tmp_path_factory.mktemp("models") / "quick")


@pytest.fixture
def folder(saved_quick: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    shutil.copytree(saved_quick, tmp_path / "copy")
    return tmp_path / "copy"


# ------------------------------------------------------------------ diffusers


@pytest.fixture(scope="module")
def reference(saved: Path):
    from diffusers import SanaSprintPipeline  # pyright: ignore[reportPrivateImportUsage]

    pipeline = SanaSprintPipeline.from_pretrained(saved, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def drawn_by_diffusers(pipeline, request: Request, **options):
    seeds = seeds_from(request.seed or 0, request.images)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # diffusers' own, of numpy 2
        return pipeline(
            request.prompt,
            width=request.width,
            height=request.height,
            num_inference_steps=request.steps,
            intermediate_timesteps=1.3 if request.steps == 2 else None,
            guidance_scale=request.guidance,
            num_images_per_prompt=request.images,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            use_resolution_binning=False,
            **options,
        ).images


@pytest.mark.parametrize("guidance", [4.5, 1.0])
@pytest.mark.parametrize("steps", [1, 2, 4])
def test_diffusers_loads_what_we_save_and_draws_the_same(
    sprint: Sana, reference, steps: int, guidance: float
) -> None:
    request = replace(REQUEST, steps=steps, guidance=guidance)
    theirs = drawn_by_diffusers(reference, request, output_type="latent")
    ours = sprint.draw_latents(request)
    assert ours.shape == theirs.shape == (2, 8, 2, 3)
    assert (ours - theirs).abs().max() < 1e-5 * theirs.abs().max()


def test_pictures_are_those_of_diffusers(sprint: Sana, reference) -> None:
    theirs = drawn_by_diffusers(reference, REQUEST)
    for picture, image in zip(sprint.generate(REQUEST), theirs, strict=True):
        assert np.asarray(image).std() > 5
        assert np.abs(np.asarray(picture.image, int) - np.asarray(image, int)).max() <= 1


def test_we_load_what_diffusers_saves(sprint: Sana, reference, tmp_path: Path) -> None:
    reference.save_pretrained(tmp_path / "theirs")
    loaded = Sana.load(tmp_path / "theirs", device="cpu")
    assert (loaded.info.defaults.steps, loaded.info.defaults.guidance) == (2, 4.5)
    torch.testing.assert_close(
        loaded.draw_latents(REQUEST), sprint.draw_latents(REQUEST), rtol=1e-4, atol=1e-4
    )


# ------------------------------------------------------------------ drawing


def test_noises_may_be_given(quick: Sana) -> None:
    own = [noise for noise, _ in zip(job_noises(quick, quick.job(REQUEST)), range(2), strict=False)]
    torch.testing.assert_close(
        quick.draw_latents(REQUEST, noises=own), quick.draw_latents(REQUEST), rtol=1e-4, atol=1e-4
    )
    other = [own[0], -own[1]]
    assert not torch.equal(quick.draw_latents(REQUEST, noises=other), quick.draw_latents(REQUEST))


def test_an_image_depends_on_its_seed_alone(quick: Sana) -> None:
    batch = quick.generate("two cats", seed=7, images=5, steps=4)
    for index in (1, 4):
        (alone,) = quick.generate(batch[index].request)
        difference = np.asarray(alone.image, int) - np.asarray(batch[index].image, int)
        assert np.abs(difference).max() <= 1


def test_guidance_is_an_input_even_at_one(quick: Sana) -> None:
    weak, strong = replace(REQUEST, guidance=1.0), replace(REQUEST, guidance=5.0)
    assert not torch.equal(quick.draw_latents(weak), quick.draw_latents(strong))


def test_what_a_request_leaves_out_the_model_decides(quick: Sana, tmp_path: Path) -> None:
    (picture,) = quick.generate("a cat", seed=3)
    request = picture.request
    assert (request.steps, request.guidance, request.solver) == (2, 4.5, "scm")
    assert read_request(picture.save(tmp_path / "one.png")) == request
    (again,) = quick.generate(request)
    assert np.array_equal(np.asarray(again.image), np.asarray(picture.image))
    assert tiny.sana().complete(Request("a cat")).solver == "flow_dpm"


def test_progress_counts_few_steps(quick: Sana) -> None:
    seen: list[tuple[int, int]] = []
    quick.generate("a cat", lambda step, total, _: seen.append((step, total)), steps=3)
    assert seen == [(0, 3), (1, 3), (2, 3)]


def test_different_prompts_are_drawn_in_one_batch(quick: Sana) -> None:
    pictures = drawer(quick)(["a cat", "a longer prompt"], [4, 5])
    (single,) = quick.generate("a longer prompt", seed=5)
    assert np.abs(np.asarray(pictures[1], int) - np.asarray(single.image, int)).max() <= 1


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"negative_prompt": "ugly"}, "takes no negative prompt.*'ugly'; leave it out"),
        ({"steps": 5}, "1 to 4 steps.*got 5 steps; try 2"),
        ({"solver": "flow_dpm"}, "scm alone, got 'flow_dpm'; leave solver out"),
        ({"solver": "euler"}, "scm alone, got 'euler'; leave solver out"),
        ({"image": Image.new("RGB", (64, 64))}, "text alone so far, got an image"),
    ],
)
def test_what_sprint_cannot_do_is_refused(quick: Sana, fields: dict, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        quick.generate("a cat", **fields)


def test_scm_is_for_sprint_models() -> None:
    with pytest.raises(RequestError, match=r"needs a Sprint model.*try flow_dpm"):
        tiny.sana().generate("a cat", solver="scm")


# ------------------------------------------------------------------ folders and their faults


def test_a_folder_says_that_it_is_sprint(saved: Path, sprint: Sana) -> None:
    index = read_json(saved / "model_index.json")
    assert index["_class_name"] == "SanaSprintPipeline"
    assert index["scheduler"] == ["diffusers", "SCMScheduler"]
    scheduler = read_json(saved / "scheduler" / "scheduler_config.json")
    assert (scheduler["prediction_type"], scheduler["sigma_data"]) == ("trigflow", 0.5)
    loaded = Sana.load(saved, device="cpu")
    assert loaded.sprint
    torch.testing.assert_close(
        loaded.draw_latents(REQUEST), sprint.draw_latents(REQUEST), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("name", ["tiny", "Sana_Sprint_0.6B_1024px_diffusers"])
def test_info_recommends_few_steps(folder: Path, name: str) -> None:
    index = read_json(folder / "model_index.json")
    (folder / "model_index.json").write_text(json.dumps(index | {"_opensana": None}))
    found = describe(folder.rename(folder.with_name(name)), device="cpu")
    assert found["scheduler"] == "SCMScheduler"
    assert (found["recommended_steps"], found["recommended_guidance"]) == (2, 4.5)
    assert found["shift"] == 1.0


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("model_index.json", {"_class_name": "SanaPipeline"}, "SanaPipeline with SCMScheduler"),
        ("scheduler/scheduler_config.json", {"prediction_type": "epsilon"}, "'trigflow'"),
        (
            "scheduler/scheduler_config.json",
            {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0},
            "needs SCMScheduler",
        ),
        ("transformer/config.json", {"guidance_embeds": False}, "guidance_embeds False"),
        ("transformer/config.json", {"timestep_scale": 0.001}, "timestep_scale 0.001"),
    ],
)
def test_half_a_sprint_model_is_refused(
    folder: Path, file: str, changes: dict, message: str
) -> None:
    (folder / file).write_text(json.dumps(read_json(folder / file) | changes))
    with pytest.raises(OpensanaError, match=message):
        Sana.load(folder, device="cpu")


def test_an_official_file_becomes_a_model_that_draws(quick: Sana, tmp_path: Path) -> None:
    state = official_transformer(dict(quick.transformer.state_dict()), sprint=True)
    torch.save({"state_dict": state}, tmp_path / "model.pth")
    base = tiny.sana(instruction="none").save(tmp_path / "base")
    made = convert(tmp_path / "model.pth", tmp_path / "made", config=tiny.SPRINT, base=base)
    loaded = Sana.load(made, device="cpu")
    assert loaded.info.defaults.steps == 2
    request = replace(REQUEST, steps=None)
    torch.testing.assert_close(
        loaded.draw_latents(request), quick.draw_latents(request), rtol=1e-4, atol=1e-4
    )
    with pytest.raises(ConfigError, match="no shift, got 3"):
        convert(tmp_path / "model.pth", tmp_path / "other", config=tiny.SPRINT, shift=3.0)
    assert not (tmp_path / "other").exists()


# ------------------------------------------------------------------ a distilled transformer beside


@pytest.fixture(scope="module")
def both(quick: Sana) -> Sana:
    """A model with a distilled transformer beside its own."""
    own = tiny.sana(instruction="none")
    return replace(own, few_step=quick.transformer)


@pytest.mark.parametrize(
    ("fields", "few"),
    [
        ({"steps": 1}, True),
        ({"steps": 4}, True),
        ({"steps": 2, "solver": "scm"}, True),
        ({"solver": "scm"}, True),
        ({"steps": 5}, False),
        ({}, False),
        ({"steps": 2, "solver": "euler"}, False),
        ({"steps": 2, "negative_prompt": "red"}, False),
        ({"steps": 2, "strength": 0.5}, False),
    ],
)
def test_few_steps_are_drawn_by_the_distilled_one(both: Sana, fields: dict, few: bool) -> None:
    drawing = both.for_request(Request("a", **fields))
    assert (drawing.transformer is both.few_step) == drawing.sprint == few
    assert (drawing is both) == (not few)


def test_both_draw_what_they_draw_alone(both: Sana, quick: Sana) -> None:
    request = Request("a red apple", width=64, height=64, steps=2, guidance=1.5, seed=3)
    assert torch.equal(both.draw_latents(request), quick.draw_latents(request))
    alone = replace(both, few_step=None)
    assert torch.equal(
        both.draw_latents(replace(request, steps=5)), alone.draw_latents(replace(request, steps=5))
    )
    picture, same = both.generate(request)[0], quick.generate(request)[0]
    assert picture.image.tobytes() == same.image.tobytes()
    assert picture.request.solver == "scm"


def test_different_prompts_are_drawn_in_few_steps(both: Sana, quick: Sana) -> None:
    prompts = ["a", "b"]
    ours, theirs = (drawer(model, steps=2)(prompts, [1, 2]) for model in (both, quick))
    assert [one.tobytes() for one in ours] == [other.tobytes() for other in theirs]


def test_both_are_saved_and_loaded(both: Sana, tmp_path: Path) -> None:
    folder = both.save(tmp_path / "both")
    assert "transformer_sprint" in describe(folder)["parts"]
    loaded = Sana.load(folder)
    request = Request("a", width=64, height=64, steps=2, seed=1)
    assert loaded.few_step is not None
    torch.testing.assert_close(loaded.draw_latents(request), both.draw_latents(request))
    image = Image.new("RGB", (64, 64), "red")
    assert loaded.generate(request, image=image)[0].request.solver == "flow_dpm"
    assert Sana.load(folder, transformer=folder / "transformer").few_step is None


def test_a_distilled_transformer_may_stand_in(both: Sana, tmp_path: Path) -> None:
    folder = both.save(tmp_path / "both")
    loaded = Sana.load(folder, transformer=folder / "transformer_sprint")
    assert loaded.sprint
    assert loaded.complete(Request("a")).solver == "scm"
    assert loaded.complete(Request("a")).steps == 2
