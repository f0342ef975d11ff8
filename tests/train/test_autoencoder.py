"""The three phases of the autoencoder: what trains, what resumes, what is exported.

Also tests `train/autoencoder/task.py`, `train/autoencoder/phases.py`,
`train/autoencoder/losses.py`, `train/autoencoder/discriminator.py` and
`train/autoencoder/patch_gan.py`.
"""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from opensana.autoencoder import Autoencoder, AutoencoderConfig
from opensana.datasets.rewrite import convert
from opensana.datasets.sources import open_source
from opensana.device import cpu_has_bfloat16
from opensana.errors import CheckpointError, ConfigError, NumericsError, WeightsError
from opensana.files.writing import read_json
from opensana.metrics.lpips import Lpips
from opensana.metrics.reconstruction import psnr
from opensana.models import find as finding
from opensana.train.autoencoder.losses import ReconstructionLoss
from opensana.train.autoencoder.task import AutoencoderTask, train_autoencoder
from opensana.train.engine import precision
from opensana.weights.safetensors import load_into, read_safetensors, write_safetensors
from tests.train.reading import bits, lines

REFINE = {
    "phase": "refine",
    "refine_stages": 2,
    "scaling": "kept",
    "model": None,
    "loss": {"mse": 1.0, "l1": 0.1, "gradient": 0.1, "gan": 0.1, "gan_start": 2},
    "discriminator": {"width": 8, "depth": 2},
}


def exported(run: Path) -> Autoencoder:
    config = AutoencoderConfig.from_dict(read_json(run / "export" / "config.json"))
    model = Autoencoder(config)
    load_into(model, read_safetensors(run / "export"), where=run)
    return model


def test_export_is_the_average_with_latents_of_unit_variance(autoencoder_recipe, tmp_path: Path):
    recipe = autoencoder_recipe()
    train_autoencoder(recipe)
    run, model = tmp_path / "run", exported(tmp_path / "run")
    task = AutoencoderTask(recipe)
    pixels = torch.from_numpy(task.fixed["train"]).float() / 127.5 - 1
    with torch.no_grad():
        assert float(model.encode(pixels).std()) == pytest.approx(1, abs=1e-3)
    average = read_safetensors(run / "checkpoints" / "step-00000010" / "ema.safetensors")
    assert all(torch.equal(average[name], value) for name, value in model.state_dict().items())
    assert (run / "samples" / "step-00000010.png").exists()


@pytest.mark.parametrize("changes", [{}, {"optimizer": {"name": "muon"}, "channels_last": True}])
def test_resuming_is_exact(autoencoder_recipe, tmp_path: Path, changes):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train_autoencoder(autoencoder_recipe(run=str(whole), **changes))
    train_autoencoder(autoencoder_recipe(run=str(parts), steps=5, **changes))
    train_autoencoder(autoencoder_recipe(run=str(parts), **changes))
    assert bits(whole, 10) == bits(parts, 10)


@pytest.mark.parametrize("form", ["folder", "webdataset", "parquet"])
def test_every_form_of_data_resumes_exactly_amid_an_epoch(
    autoencoder_recipe, tmp_path: Path, form: str
):
    """T3: six pictures in batches of four, so that every stop but each third is amid an epoch."""
    source = as_form(tmp_path, form)
    data = {"folder": str(source), "crop": 16}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train_autoencoder(autoencoder_recipe(run=str(whole), steps=7, data=data))
    for steps in (2, 4, 7):
        train_autoencoder(autoencoder_recipe(run=str(parts), steps=steps, data=data))
    assert bits(whole, 7) == bits(parts, 7)


def as_form(folder: Path, form: str) -> Path:
    """Six pictures of noise in a folder, a tar shard or a Parquet file."""
    pictures, draw = folder / "pictures", np.random.default_rng(3)
    pictures.mkdir()
    for index in range(6):
        pixels = draw.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(pictures / f"{index}.png")
        (pictures / f"{index}.txt").write_text(f"picture {index}")
    if form == "folder":
        return pictures
    convert(open_source(pictures), folder / form, form)
    return folder / form


def test_each_phase_trains_its_layers_alone(autoencoder_recipe, tmp_path: Path):
    first = tmp_path / "first"
    train_autoencoder(autoencoder_recipe(run=str(first), steps=2))
    start = exported(first).state_dict()
    for phase, wanted in {
        "latent": (
            "encoder.down_blocks.2.",
            "encoder.conv_out.",
            "decoder.conv_in.",
            "decoder.up_blocks.2.",
        ),
        "refine": (
            "decoder.up_blocks.0.",
            "decoder.up_blocks.1.",
            "decoder.norm_out.",
            "decoder.conv_out.",
        ),
        "decoder": ("decoder.",),
    }.items():
        run = tmp_path / phase
        changes = {"model": None, "initial": str(first / "export"), "phase": phase}
        train_autoencoder(autoencoder_recipe(run=str(run), scaling="kept", **changes))
        assert exported(run).config == exported(first).config
        moved = {n for n, v in exported(run).state_dict().items() if not torch.equal(v, start[n])}
        assert moved == {name for name in start if name.startswith(wanted)}, phase


def test_refining_with_the_discriminator_resumes_exactly(autoencoder_recipe, tmp_path: Path):
    first = tmp_path / "first"
    train_autoencoder(autoencoder_recipe(run=str(first), steps=2))
    refine = {**REFINE, "initial": str(first / "export")}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train_autoencoder(autoencoder_recipe(run=str(whole), **refine))
    train_autoencoder(autoencoder_recipe(run=str(parts), steps=5, **refine))
    train_autoencoder(autoencoder_recipe(run=str(parts), **refine))
    assert bits(whole, 10) == bits(parts, 10)
    assert {"discriminator.safetensors", "discriminator_optimizer.safetensors"} <= set(
        bits(whole, 10)
    )
    steps = [line for line in lines(whole) if "loss" in line]
    assert "gan" not in steps[1] and {"gan", "gan_weight", "judge"} <= set(steps[2])
    kept = exported(first).config.scaling_factor
    assert exported(whole).config.scaling_factor == kept


def test_nan_stops_at_once_and_names_the_samples(autoencoder_recipe, tmp_path, monkeypatch):
    run, real = tmp_path / "run", ReconstructionLoss.terms
    calls = iter(range(100))

    def poisoned(self, output, pixels):
        terms = real(self, output, pixels)
        return {k: v * float("nan") for k, v in terms.items()} if next(calls) == 6 else terms

    monkeypatch.setattr(ReconstructionLoss, "terms", poisoned)
    with pytest.raises(NumericsError, match=r"loss is nan at step 7; samples: P\d, P\d, P\d, P\d"):
        train_autoencoder(autoencoder_recipe())
    assert [p.name for p in (run / "checkpoints").iterdir()] == ["step-00000005"]
    monkeypatch.setattr(ReconstructionLoss, "terms", real)
    train_autoencoder(autoencoder_recipe())
    assert lines(run)[-1]["step"] == 10


def test_a_finished_run_says_so(autoencoder_recipe, capsys):
    train_autoencoder(autoencoder_recipe())
    train_autoencoder(autoencoder_recipe())
    assert "is finished at step 10" in capsys.readouterr().err


def test_a_changed_recipe_is_reported_and_another_model_refused(autoencoder_recipe, capsys):
    train_autoencoder(autoencoder_recipe(steps=5))
    train_autoencoder(autoencoder_recipe(optimizer={"lr": 1e-3}))
    assert "has changed since the checkpoint: optimizer, steps" in capsys.readouterr().err
    wider = {**autoencoder_recipe().model, "encoder_block_out_channels": [8, 8, 24]}
    with pytest.raises(CheckpointError, match="does not fit"):
        train_autoencoder(autoencoder_recipe(model=wider, steps=12))


def test_a_crop_must_fit_the_compression(autoencoder_recipe, pictures: Path):
    with pytest.raises(ConfigError, match="multiple of 4"):
        train_autoencoder(autoencoder_recipe(data={"folder": str(pictures), "crop": 18}))


def test_psnr_of_known_errors():
    pixels = torch.zeros(2, 3, 4, 4)
    output = pixels + torch.tensor([0.2, 0.02])[:, None, None, None]
    torch.testing.assert_close(psnr(output, pixels), torch.tensor([20.0, 40.0]))


needs_bfloat16 = pytest.mark.skipif(
    not cpu_has_bfloat16(), reason="this CPU has no bfloat16 products"
)


@needs_bfloat16
@pytest.mark.parametrize("loss", [{"mse": 1.0}, REFINE["loss"]], ids=["plain", "gan"])
def test_bfloat16_in_channels_last_trains_alike(autoencoder_recipe, tmp_path: Path, loss):
    losses = {}
    for dtype, channels_last in (("float32", False), ("bfloat16", True)):
        run = tmp_path / dtype
        changes = {"dtype": dtype, "channels_last": channels_last, "loss": loss, "steps": 20}
        same = {"discriminator": REFINE["discriminator"], "optimizer": {"lr": 1e-3}}
        train_autoencoder(autoencoder_recipe(run=str(run), **changes, **same))
        losses[dtype] = [line["mse"] for line in lines(run) if "mse" in line]
        weights = read_safetensors(run / "checkpoints" / "step-00000020" / "model.safetensors")
        assert all(tensor.dtype == torch.float32 for tensor in weights.values())
    assert losses["bfloat16"] != losses["float32"]
    # A single step of so small a batch moves by more at a rate 0.2 % higher.
    assert losses["bfloat16"][0] == pytest.approx(losses["float32"][0], rel=2e-3)
    means = {dtype: np.mean(values[10:]) for dtype, values in losses.items()}
    assert means["bfloat16"] == pytest.approx(means["float32"], rel=0.05), losses
    assert means["bfloat16"] < 0.7 * losses["bfloat16"][0]


def test_emulated_bfloat16_is_refused(autoencoder_recipe, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(precision, "cpu_has_bfloat16", lambda: False)
    with pytest.raises(ConfigError, match="`dtype` is 'bfloat16'; it must be float32"):
        train_autoencoder(autoencoder_recipe(dtype="bfloat16"))


def test_lpips_is_a_term_of_the_loss(autoencoder_recipe, tmp_path: Path):
    lpips = Lpips()
    for head in lpips.heads:
        head.data.fill_(1.0)
    write_safetensors(lpips.state_dict(), tmp_path / "lpips", name="model")
    loss = {"mse": 1.0, "lpips": 0.5, "lpips_weights": str(tmp_path / "lpips")}
    train_autoencoder(autoencoder_recipe(loss=loss, steps=5))
    steps = [line for line in lines(tmp_path / "run") if "loss" in line]
    assert all(line["loss"] == pytest.approx(line["mse"] + 0.5 * line["lpips"]) for line in steps)
    assert steps[-1]["lpips"] < steps[0]["lpips"]
    missing = {**loss, "lpips_weights": str(tmp_path / "nowhere")}
    with pytest.raises(WeightsError, match="is not there; get AlexNet"):
        train_autoencoder(autoencoder_recipe(loss=missing))


def test_a_decoder_learns_below_a_published_encoder(autoencoder_recipe, monkeypatch, tmp_path):
    """`initial` may be whatever a model can be named by: here a hub id."""
    first = tmp_path / "first"
    train_autoencoder(autoencoder_recipe(run=str(first), steps=2))
    monkeypatch.setattr(finding, "locate", {"owner/dc-ae": first / "export"}.__getitem__)
    changes = {"model": None, "initial": "owner/dc-ae", "phase": "decoder", "scaling": "kept"}
    train_autoencoder(autoencoder_recipe(**changes))
    before, after = exported(first), exported(tmp_path / "run")
    pixels = torch.rand(1, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(before.encode(pixels), after.encode(pixels))
        assert not torch.equal(before(pixels), after(pixels))
