"""The whole system on tiny random models: against diffusers, seeds, folders, errors, progress.

Also tests `drawing/solving.py`, `models/load.py`, `models/open.py` and `models/save.py`.
"""

import json
import shutil
import threading
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from opensana.autoencoder.plan import decoder_chain
from opensana.autoencoder.preview import Preview
from opensana.drawing.solving import job_noises
from opensana.errors import ConfigError, NumericsError, OpensanaError, RequestError, WeightsError
from opensana.models import load as reading
from opensana.models.describe import describe
from opensana.models.index import ModelDefaults
from opensana.models.save import write_model_without_text
from opensana.pictures.pixels import to_images, to_pixels
from opensana.pipeline import Sana
from opensana.request import Request
from opensana.weights.safetensors import read_safetensors, write_safetensors
from tests import tiny

REQUEST = Request(
    "a Red apple", negative_prompt="blurry", width=96, height=64, steps=20, guidance=4.5, seed=5
)


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def sana() -> Sana:
    return tiny.sana()


@pytest.fixture(scope="module")
def quick() -> Sana:
    """Without the long instruction."""
    return tiny.sana(instruction="none")


@pytest.fixture(scope="module")
def saved(sana: Sana, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sana.save(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    shutil.copytree(saved, tmp_path / "copy")
    return tmp_path / "copy"


def psnr(one: Image.Image, other: Image.Image) -> float:
    error = np.mean((np.asarray(one, float) - np.asarray(other, float)) ** 2)
    return float("inf") if error == 0 else 10 * np.log10(255**2 / error)


# ------------------------------------------------------------------ diffusers


@pytest.fixture
def reference(saved: Path):
    return load_diffusers(saved)


def load_diffusers(saved: Path):
    from diffusers import SanaPipeline  # pyright: ignore[reportPrivateImportUsage]

    pipeline = SanaPipeline.from_pretrained(saved, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def drawn_by_diffusers(pipeline, noise: torch.Tensor, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # diffusers' own, of numpy 2
        return _call(pipeline, noise, **options)


def _call(pipeline, noise: torch.Tensor, **options):
    return pipeline(
        REQUEST.prompt,
        negative_prompt=REQUEST.negative_prompt,
        width=REQUEST.width,
        height=REQUEST.height,
        num_inference_steps=REQUEST.steps,
        guidance_scale=REQUEST.guidance,
        latents=noise,
        use_resolution_binning=False,
        **options,
    ).images


def test_diffusers_loads_what_we_save_and_draws_the_same(sana: Sana, reference) -> None:
    noise = next(job_noises(sana, sana.job(REQUEST)))
    theirs = drawn_by_diffusers(reference, noise, output_type="latent")
    ours = sana.draw_latents(REQUEST)
    assert (ours - theirs).abs().max() < 1e-3 * theirs.abs().max()

    [picture] = sana.generate(REQUEST)
    [image] = drawn_by_diffusers(reference, noise)
    assert picture.image.size == image.size == (96, 64)
    assert np.asarray(image).std() > 5
    assert psnr(picture.image, image) > 50


def test_we_load_what_diffusers_saves(sana: Sana, reference, tmp_path: Path) -> None:
    reference.save_pretrained(tmp_path / "theirs")
    loaded = Sana.load(tmp_path / "theirs", device="cpu")
    assert loaded.shift == 3.0
    assert loaded.info.defaults.instruction == "diffusers"
    torch.testing.assert_close(
        loaded.draw_latents(REQUEST), sana.draw_latents(REQUEST), rtol=1e-4, atol=1e-4
    )


def test_saving_and_loading_keeps_every_bit(sana: Sana, saved: Path, tmp_path: Path) -> None:
    loaded = Sana.load(saved, device="cpu")
    for name, value in sana.transformer.state_dict().items():
        assert torch.equal(loaded.transformer.state_dict()[name], value)
    again = loaded.save(tmp_path / "again")
    for part in ("transformer", "vae", "text_encoder"):
        first, second = read_safetensors(saved / part), read_safetensors(again / part)
        assert first.keys() == second.keys()
        assert all(torch.equal(first[key], second[key]) for key in first)


def test_a_saved_model_keeps_its_previews(folder: Path, tmp_path: Path) -> None:
    assert Sana.load(folder, device="cpu").read_preview() is None
    channels = tiny.AUTOENCODER.latent_channels
    Preview(torch.randn(12, channels, 3, 3), torch.randn(12)).write(folder / "vae")
    loaded = Sana.load(folder, device="cpu")
    again = Sana.load(loaded.save(tmp_path / "again"), device="cpu")
    latents = torch.randn(1, channels, 2, 2)
    first, second = loaded.read_preview(), again.read_preview()
    assert first is not None and second is not None
    assert torch.equal(first(latents), second(latents))


# ------------------------------------------------------------------ seeds and requests


def test_an_image_depends_on_its_seed_alone(quick: Sana) -> None:
    batch = quick.generate("two cats", seed=7, images=5, steps=2)
    assert [picture.request.seed for picture in batch] == [7, 8, 9, 10, 11]
    for index in (1, 4):
        [alone] = quick.generate(batch[index].request)
        assert psnr(alone.image, batch[index].image) > 60
    assert psnr(batch[0].image, batch[1].image) < 40


def test_sizes_and_seeds_are_filled_in(quick: Sana) -> None:
    [picture] = quick.generate("a cat", steps=1)
    assert picture.image.size == (64, 64)
    assert (picture.request.width, picture.request.height) == (64, 64)
    assert picture.request.seed is not None
    [again] = quick.generate(picture.request)
    assert psnr(picture.image, again.image) == float("inf")


def test_what_a_request_leaves_out_the_model_decides(quick: Sana) -> None:
    defaults = replace(quick.info.defaults, steps=7, guidance=2.5)
    own = replace(quick, info=replace(quick.info, defaults=defaults))
    left_out, asked = Request("a cat", seed=1), Request("a cat", seed=1, steps=3, guidance=1.0)
    whole = own.complete(left_out)
    assert (whole.steps, whole.guidance, whole.width) == (7, 2.5, own.native_size)
    assert (own.complete(asked).steps, own.complete(asked).guidance) == (3, 1.0)
    (picture,) = own.generate(left_out)
    assert (picture.request.steps, picture.request.guidance) == (7, 2.5)


def test_guidance_of_one_draws_without_the_negative_prompt(quick: Sana) -> None:
    request = Request("a cat", seed=1, steps=2, guidance=1.0)
    other = replace(request, negative_prompt="ugly")
    assert torch.equal(quick.draw_latents(request), quick.draw_latents(other))
    guided = [replace(r, guidance=4.5) for r in (request, other)]
    assert not torch.equal(quick.draw_latents(guided[0]), quick.draw_latents(guided[1]))


@pytest.mark.parametrize("solver", ["flow_dpm", "euler"])
def test_progress_counts_all_steps_once(quick: Sana, solver: str) -> None:
    seen: list[tuple[int, int]] = []
    quick.generate(
        "a cat",
        lambda step, total, _: seen.append((step, total)),
        steps=3,
        images=5,
        solver=solver,
    )
    assert seen == [(index, 6) for index in range(6)]


def test_a_stop_in_on_step_stops_the_work(quick: Sana) -> None:
    def stop(step: int, _total: int, _latent: torch.Tensor) -> None:
        if step == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        quick.generate("a cat", stop, steps=50)


class Watched:
    """Says stop once so many steps are done."""

    def __init__(self, after: int) -> None:
        self.after = after
        self.done: list[int] = []

    def on_step(self, step: int, _total: int, _latent: torch.Tensor) -> None:
        self.done.append(step)

    def stop(self) -> bool:
        return len(self.done) >= self.after


@pytest.mark.parametrize(
    ("after", "seeds"), [(0, []), (1, []), (3, []), (4, [4, 5, 6, 7]), (5, [4, 5, 6, 7])]
)
@pytest.mark.parametrize("solver", ["flow_dpm", "euler"])
def test_stop_ends_within_a_step_and_leaves_whole_pictures(
    quick: Sana, after: int, seeds: list[int], solver: str
) -> None:
    """Of two batches of 3 steps. That the last step of a batch is followed by stop draws none."""
    watched = Watched(after)
    request = Request("a cat", seed=4, steps=3, images=6, solver=solver)  # pyright: ignore[reportArgumentType]
    pictures = quick.generate(request, watched.on_step, stop=watched.stop)
    assert watched.done == list(range(after))
    assert [picture.request.seed for picture in pictures] == seeds
    for picture, whole in zip(pictures, quick.generate(request), strict=False):
        assert picture.png() == whole.png()


def test_stop_ends_a_sprint_model_too() -> None:
    watched = Watched(1)
    sprint = tiny.sprint(instruction="none")
    assert sprint.generate("a cat", watched.on_step, steps=4, stop=watched.stop) == []
    assert watched.done == [0]


def test_stop_before_the_work_does_none(quick: Sana, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("opensana.pipeline.encode", None)
    assert list(quick.draw("a cat", steps=1, stop=lambda: True)) == []


def test_an_event_that_is_never_set_stops_nothing(quick: Sana) -> None:
    request, event = Request("a cat", seed=1, steps=2), threading.Event()
    [picture] = quick.generate(request, stop=event.is_set)
    assert picture.png() == quick.generate(request)[0].png()


def test_pictures_come_when_their_batch_is_done(quick: Sana) -> None:
    request = Request("a cat", seed=4, steps=2, images=6)
    done: list[int] = []
    drawing = quick.draw(request, lambda step, total, _: done.append(step))
    assert done == []
    assert [next(drawing).request.seed for _ in range(4)] == [4, 5, 6, 7]
    assert done == [0, 1]
    rest = list(drawing)
    assert done == [0, 1, 2, 3]
    for one, other in zip(rest, quick.generate(request)[4:], strict=True):
        assert np.array_equal(np.asarray(one.image), np.asarray(other.image))
        assert one.metadata == other.metadata


def test_inference_mode_ends_at_each_picture(quick: Sana) -> None:
    weight = torch.ones(1, requires_grad=True)
    for _ in quick.draw("a cat", steps=1, images=5):
        assert not torch.is_inference_mode_enabled()
        (weight * 2).backward()  # as a caller that trains between two pictures
    assert weight.grad is not None and weight.grad.item() == 10


def test_closing_the_drawing_ends_the_work(quick: Sana) -> None:
    done: list[int] = []
    drawing = quick.draw("a cat", lambda step, *_: done.append(step), steps=3, images=64)
    next(drawing)
    drawing.close()
    assert done == [0, 1, 2]
    assert list(drawing) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must be"),
        ({"width": 100}, "multiple of 32"),
        ({"solver": "scm"}, "needs a Sprint model"),
        ({"strength": 0.5}, "strength was given without a picture"),
        ({"image": "missing.png"}, "there is no image"),
        ({"image": Image.new("RGB", (64, 64)), "mask": Image.new("L", (8, 8))}, "make them equal"),
        ({"control_image": Image.new("RGB", (64, 64))}, "without a ControlNet"),
    ],
)
def test_what_is_wrong_is_raised_before_the_first_picture_is_asked_for(
    quick: Sana, options: dict, message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        quick.draw("a cat", **options)


def test_a_long_prompt_is_reported(quick: Sana) -> None:
    heard: list[str] = []
    long = "x" * 299 + "lost end"
    quick.generate(long, notice=heard.append, steps=1, guidance=1.0)
    assert len(heard) == 1
    assert "lost end" in heard[0]
    with pytest.warns(UserWarning, match="negative prompt is too long"):
        quick.generate("a cat", negative_prompt=long, steps=1)


def test_a_size_that_does_not_fit_the_model_is_refused(quick: Sana) -> None:
    coarse = replace(tiny.TRANSFORMER, patch_size=2)
    model = replace(quick, transformer=tiny.transformer(coarse))
    with pytest.raises(RequestError, match="multiple of 64"):
        model.generate("a cat", width=96, steps=1)


# ------------------------------------------------------------------ numbers that are none


def test_nan_latents_are_an_error(quick: Sana) -> None:
    broken = tiny.transformer()
    broken.proj_out.bias.fill_(float("nan"))
    with pytest.raises(NumericsError, match="step 1"):
        replace(quick, transformer=broken).generate("a cat", steps=2)


def test_nan_pixels_are_an_error() -> None:
    with pytest.raises(NumericsError, match="decoded picture"):
        to_images(torch.full((1, 3, 4, 4), float("nan")))


def test_pixels_become_bytes_by_rounding() -> None:
    pixels = torch.tensor([-2.0, -1.0, 0.0, 1.0, 9.0]).expand(1, 3, 1, 5)
    [image] = to_images(pixels)
    assert np.asarray(image)[0, :, 0].tolist() == [0, 0, 128, 255, 255]


def test_every_byte_survives_the_way_to_pixels_and_back() -> None:
    image = Image.fromarray(np.arange(256 * 3, dtype=np.uint16).astype(np.uint8).reshape(16, 16, 3))
    [again] = to_images(to_pixels(image))
    assert np.array_equal(np.asarray(again), np.asarray(image))


# ------------------------------------------------------------------ folders and their faults


def test_an_fp16_variant_runs_in_float32_on_a_cpu(sana: Sana, folder: Path) -> None:
    for part in ("transformer", "vae"):
        half = {k: v.half() for k, v in read_safetensors(folder / part).items()}
        (folder / part / "diffusion_pytorch_model.safetensors").unlink()
        write_safetensors(half, folder / part, variant="fp16")
    for variant in ("fp16", None):
        loaded = Sana.load(folder, device="cpu", dtype="fp32", variant=variant)
        assert loaded.transformer.dtype == torch.float32
        assert next(loaded.autoencoder.parameters()).dtype == torch.float32
        assert len(loaded.generate("a cat", steps=1)) == 1
        for name, value in sana.transformer.state_dict().items():
            assert torch.equal(loaded.transformer.state_dict()[name], value.half().float())


def test_float16_on_a_cpu_is_refused(folder: Path) -> None:
    with pytest.raises(ConfigError, match="float32"):
        Sana.load(folder, device="cpu", dtype="fp16")


def edit(path: Path, **changes) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("file", "changes", "message"),
    [
        ("scheduler/scheduler_config.json", {"_class_name": "DDIMScheduler"}, "DDIMScheduler"),
        ("scheduler/scheduler_config.json", {"prediction_type": "epsilon"}, "flow_prediction"),
        ("scheduler/scheduler_config.json", {"flow_shift": -1}, "positive number"),
        ("model_index.json", {"_class_name": "FluxPipeline"}, "FluxPipeline"),
        ("model_index.json", {"_opensana": {"instructon": "none"}}, "did you mean 'instruction'"),
        ("transformer/config.json", {"num_layer": 3}, "did you mean 'num_layers'"),
        ("transformer/config.json", {"num_layers": 10**9}, "num_layers"),
        ("transformer/config.json", {"num_layers": 3}, "missing 'transformer_blocks.2"),
        ("transformer/config.json", {"num_layers": 1}, "unexpected 'transformer_blocks.1"),
        ("vae/config.json", {"_class_name": "AutoencoderKL"}, "AutoencoderKL"),
    ],
)
def test_a_wrong_folder_says_what_is_wrong(
    folder: Path, file: str, changes: dict, message: str
) -> None:
    edit(folder / file, **changes)
    with pytest.raises(OpensanaError, match=message):
        Sana.load(folder, device="cpu")


@pytest.mark.parametrize(
    "file", ["model_index.json", "scheduler/scheduler_config.json", "vae/config.json"]
)
def test_a_missing_file_is_named(folder: Path, file: str) -> None:
    (folder / file).unlink()
    (folder / "config.json").write_text("{}")  # still looks like a model
    with pytest.raises(WeightsError, match=Path(file).name):
        Sana.load(folder, device="cpu")


EULER = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 2.5}


def test_a_folder_with_eulers_scheduler_is_drawn_with_euler_and_stays_one(
    folder: Path, tmp_path: Path
) -> None:
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(EULER))
    edit(folder / "model_index.json", scheduler=["diffusers", EULER["_class_name"]])
    loaded = Sana.load(folder, device="cpu")
    assert loaded.shift == 2.5
    assert loaded.complete(REQUEST).solver == "euler"
    assert loaded.complete(replace(REQUEST, solver="flow_dpm")).solver == "flow_dpm"

    again = loaded.save(tmp_path / "again")
    saved = Sana.load(again, device="cpu")
    assert (saved.shift, saved.info.solver) == (2.5, "euler")
    theirs = drawn_by_diffusers(
        load_diffusers(again), next(job_noises(saved, saved.job(REQUEST))), output_type="latent"
    )
    ours = saved.draw_latents(REQUEST)
    assert (ours - theirs).abs().max() < 1e-3 * theirs.abs().max()
    assert not torch.allclose(ours, saved.draw_latents(replace(REQUEST, solver="flow_dpm")))


@pytest.mark.parametrize("name", ["use_dynamic_shifting", "use_karras_sigmas", "shift_terminal"])
def test_noise_levels_that_are_not_ours_are_refused(folder: Path, name: str) -> None:
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(EULER | {name: None}))
    assert Sana.load(folder, device="cpu").shift == 2.5
    path.write_text(json.dumps(EULER | {name: 0.1}))
    with pytest.raises(WeightsError, match=f"{name} is not supported, got 0.1"):
        Sana.load(folder, device="cpu")


def test_save_replaces_a_model_but_nothing_else(quick: Sana, folder: Path, tmp_path: Path) -> None:
    quick.save(folder)
    assert Sana.load(folder, device="cpu").info.defaults.instruction == "none"
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("years")
    with pytest.raises(OpensanaError, match="not a model folder"):
        quick.save(precious)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["copy", "precious"]


def test_a_models_folder_may_have_the_longest_name(quick: Sana, tmp_path: Path) -> None:
    for _ in range(2):
        quick.save(tmp_path / ("m" * 255))
    assert [path.name for path in tmp_path.iterdir()] == ["m" * 255]


def test_another_transformer_stands_in(saved: Path, quick: Sana, tmp_path: Path) -> None:
    other = tiny.transformer()
    tiny.randomise(other, seed=9)
    replace(quick, transformer=other).save(tmp_path / "run")
    model = Sana.load(saved, device="cpu", dtype="float32", transformer=tmp_path / "run")
    torch.testing.assert_close(model.transformer.state_dict(), other.state_dict())
    [picture] = model.generate(replace(REQUEST, steps=1))
    assert picture.provenance["transformer"] == str(tmp_path / "run")

    narrow = tiny.transformer(replace(tiny.TRANSFORMER, caption_channels=24))
    replace(quick, transformer=narrow).save(tmp_path / "narrow")
    with pytest.raises(WeightsError, match=r"caption_channels 24, .* need 16; name the model"):
        Sana.load(saved, device="cpu", dtype="float32", transformer=tmp_path / "narrow")


def test_a_folder_may_name_its_text_encoder(
    quick: Sana, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = tmp_path / "text"
    shutil.copytree(folder / "text_encoder", text)
    shutil.copytree(folder / "tokenizer", text, dirs_exist_ok=True)
    monkeypatch.setitem(reading.TEXT_ENCODERS, "gemma3-270m", lambda: text)
    small = write_model_without_text(
        tmp_path / "small",
        transformer=quick.transformer,
        autoencoder=quick.autoencoder,
        shift=2.0,
        defaults=ModelDefaults(text_encoder="gemma3-270m", instruction="none", steps=12),
        dtype=torch.float16,
    )
    loaded = Sana.load(small, device="cpu")
    assert loaded.transformer.dtype == torch.float32
    assert describe(small)["parts"]["text_encoder"]["class"] == "gemma3-270m"

    whole = Sana.load(loaded.save(tmp_path / "whole"), device="cpu")
    assert whole.info.defaults == replace(loaded.info.defaults, text_encoder=None)
    request = replace(REQUEST, steps=3)
    torch.testing.assert_close(
        whole.draw_latents(request), loaded.draw_latents(request), rtol=1e-4, atol=1e-4
    )
    pipeline = load_diffusers(tmp_path / "whole")
    theirs = drawn_by_diffusers(
        pipeline,
        next(job_noises(loaded, loaded.job(REQUEST))),
        output_type="latent",
        complex_human_instruction=None,
    )
    ours = loaded.draw_latents(REQUEST)
    assert (ours - theirs).abs().max() < 1e-3 * theirs.abs().max()


def test_nan_weights_are_not_written(quick: Sana, tmp_path: Path) -> None:
    broken = tiny.transformer()
    broken.proj_out.bias.fill_(float("nan"))
    with pytest.raises(NumericsError, match="proj_out"):
        replace(quick, transformer=broken).save(tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_describe_reads_headers_only(sana: Sana, folder: Path) -> None:
    found = describe(folder, device="cpu")
    parameters = sum(value.numel() for value in sana.transformer.parameters())
    assert found["parts"]["transformer"]["parameters"] == parameters
    assert found["parts"]["text_encoder"]["class"] == "Gemma2Model"
    assert (found["native_size"], found["shift"], found["dtype"]) == (64, 3.0, "F32")
    memory = found["memory"]
    plan = decoder_chain(sana.autoencoder, 1, 2, 2)
    assert memory["decoding"] == plan.one_band_memory > memory["decoding_in_bands"] > 0
    total = sum(part["parameters"] for part in found["parts"].values())
    assert memory["weights"] == 4 * total
    assert memory["total"] == memory["weights"] + max(memory["decoding"], memory["denoising"])
    assert json.dumps(found)


def test_describe_of_an_autoencoder(folder: Path) -> None:
    found = describe(folder / "vae")
    assert found["compression"] == 32
    assert found["latent_channels"] == 8
