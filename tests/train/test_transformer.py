"""Flow matching on cached features: it learns, resumes to the bit, and draws.

Also tests `train/transformer/task.py`, `train/transformer/networks.py`,
`train/transformer/batches.py`, `train/transformer/initial.py` and `train/monitor/samples.py`.
"""

from collections import Counter
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from opensana.errors import ConfigError, DataError, NumericsError
from opensana.features.latents import NULL, Features, Sample, write_features
from opensana.features.texts import Texts
from opensana.files.writing import read_json
from opensana.train.autoencoder.task import train_autoencoder
from opensana.train.caption_rule import CaptionRule
from opensana.train.transformer import task as training
from opensana.train.transformer.batches import Stream, choose_caption, drops
from opensana.train.transformer.draws import draw_noise
from opensana.train.transformer.initial import standardise_inputs
from opensana.train.transformer.networks import repeated
from opensana.train.transformer.task import by_band, train_transformer, transformer_task
from opensana.transformer.model import Transformer, TransformerConfig
from opensana.weights.safetensors import load_into, read_safetensors
from tests.train.conftest import BY_WEIGHT
from tests.train.reading import bits, lines


def test_overfits_eight_latents(transformer_recipe, tmp_path: Path):
    train_transformer(
        transformer_recipe(
            steps=100,
            batch=8,
            optimizer={"lr": 1e-2},
            checkpoint={"every": 100, "keep": 1},
            evaluate={"every": 100, "pictures": 8, "batch": 8},
        )
    )
    fixed = [line["fixed_loss"] for line in lines(tmp_path / "run") if "fixed_loss" in line]
    assert len(fixed) == 2 and fixed[1] < 0.6 * fixed[0]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"optimizer": {"name": "muon"}, "flow": {"density": "uniform", "shift": 3.0}},
        {"model": "dropout"},
    ],
)
def test_resuming_is_exact(transformer_recipe, features: Path, tmp_path: Path, changes):
    if changes.get("model") == "dropout":
        changes = {"model": {**transformer_recipe().model, "dropout": 0.2}}
    data = {"folder": str(features), "repeat": 2}
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train_transformer(transformer_recipe(run=str(whole), data=data, **changes))
    train_transformer(transformer_recipe(run=str(parts), steps=5, data=data, **changes))
    train_transformer(transformer_recipe(run=str(parts), data=data, **changes))
    assert bits(whole, 10) == bits(parts, 10)


def test_two_buckets_train_and_resume(transformer_recipe, features: Path, tmp_path: Path):
    """Batches are of one shape, and a run cut in the middle of an epoch ends with the same bits."""
    draw = torch.Generator().manual_seed(4)
    shapes, folder = [(4, 2, 2)] * 5 + [(4, 1, 4)] * 4, tmp_path / "buckets"
    with write_features(folder, keys={"resolution": 8}, text=features / "text") as cache:
        for index, shape in enumerate(shapes):
            latent = torch.randn(1, *shape, generator=draw)
            cache.add(latent, [Sample(str(index), (index, index + 1), (30.0, 27.0))])
    data = {"folder": str(folder), "sampling": "softmax", "expect": {"resolution": 8}}
    evaluate = {"every": 3, "pictures": 9, "batch": 4}
    recipe = partial(transformer_recipe, batch=2, data=data, evaluate=evaluate)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train_transformer(recipe(run=str(whole)))
    train_transformer(recipe(run=str(parts), steps=3))
    train_transformer(recipe(run=str(parts)))
    assert bits(whole, 10) == bits(parts, 10)
    task = transformer_task(recipe())
    assert {
        tuple(part.noise.shape[1:]) for step in range(10) for part in task.prepare(step)
    } == set(shapes)
    assert sum(len(batch.latents) for batch in task.fixed) == 9
    data["expect"] = {"resolution": 512}
    with pytest.raises(DataError, match="its resolution is 8, expected 512"):
        transformer_task(recipe())


def test_standardised_captions_are_seen_with_zero_mean_and_unit_deviation(transformer_recipe):
    model = training.initial_transformer(transformer_recipe())
    layer = model.caption_projection.linear_1
    width = layer.in_features
    rng = np.random.default_rng(0)
    states = (rng.normal(size=(500, width)) * 30 + 100).astype(np.float16)
    before = layer.weight.detach().clone()
    offsets = np.array([0, len(states)])
    standardise_inputs(layer, Texts(["all"], states, offsets, null=states[:0], keys={}))
    x = torch.from_numpy(states.astype(np.float32))
    expected = ((x - x.mean(0)) / x.std(0)) @ before.T
    torch.testing.assert_close(layer(x).detach(), expected, atol=1e-3, rtol=1e-3)


def test_text_noise_is_of_the_place_and_leaves_padding_alone(transformer_recipe, features):
    quiet = transformer_recipe()
    data = {"folder": str(features), **BY_WEIGHT, "text_noise": 0.5}
    noisy = transformer_recipe(data=data)
    plain, disturbed = (Stream.open(recipe) for recipe in (quiet, noisy))
    for step in range(3):
        before, after = (stream.batch(step, range(4)) for stream in (plain, disturbed))
        change = after.states - before.states
        assert torch.equal(change != 0, before.mask[..., None].expand_as(change))
        _, deviation = plain.features.texts.moments
        assert (change / deviation).std() < 0.5
        halves = [disturbed.batch(step, slots).states for slots in (range(2), range(2, 4))]
        for part, whole in zip(halves, after.states.split(2), strict=True):
            assert torch.equal(part, whole[:, : part.shape[1]])


def test_export_is_the_average(transformer_recipe, tmp_path: Path):
    train_transformer(transformer_recipe())
    folder = tmp_path / "run" / "export" / "transformer"
    model = Transformer(TransformerConfig.from_dict(read_json(folder / "config.json")))
    load_into(model, read_safetensors(folder), where=folder)
    average = read_safetensors(tmp_path / "run" / "checkpoints" / "step-00000010/ema.safetensors")
    assert all(torch.equal(average[name], value) for name, value in model.state_dict().items())


def test_training_starts_from_an_export(transformer_recipe, tmp_path: Path):
    train_transformer(transformer_recipe())
    initial = str(tmp_path / "run" / "export" / "transformer")
    task = transformer_task(transformer_recipe(model=None, initial=initial))
    state = read_safetensors(initial)
    begun = task.network.trained.state_dict()
    assert all(torch.equal(state[name], value) for name, value in begun.items())


def test_pictures_are_drawn(transformer_recipe, autoencoder_recipe, tmp_path: Path):
    first = tmp_path / "autoencoder"
    train_autoencoder(autoencoder_recipe(run=str(first), steps=1))
    samples = {
        "every": 5,
        "autoencoder": str(first / "export"),
        "prompts": ["caption 3", "caption 0"],
        "steps": 3,
    }
    train_transformer(transformer_recipe(samples=samples))
    with Image.open(tmp_path / "run" / "samples" / "step-00000005.png") as sheet:
        assert sheet.size == (8 * 8, 8), "eight columns of pictures of 8 x 8"


def test_a_prompt_that_cannot_be_encoded_is_left_out_with_one_line(
    transformer_recipe, autoencoder_recipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """The mistyped one is named with what is near it; the seed of the other is its place's."""
    first = tmp_path / "autoencoder"
    train_autoencoder(autoencoder_recipe(run=str(first), steps=1))
    capsys.readouterr()
    samples = {"prompts": ["captoin 3", "caption 0"], "autoencoder": str(first / "export")}
    task = transformer_task(transformer_recipe(samples=samples))
    (said,) = capsys.readouterr().err.splitlines()
    assert "1 of 2 are left out" in said and "did you mean 'caption 3'" in said
    assert "does not say which model encoded it" in said
    assert task.drawn.seeds == [1] and len(task.drawn.states) == 1
    assert np.array_equal(task.drawn.states[0], task.features.texts.of(0))


def test_a_model_of_other_channels_is_refused(transformer_recipe):
    model = {**transformer_recipe().model, "caption_channels": 20}
    with pytest.raises(ConfigError, match=r"model\.caption_channels is 20.* have 12"):
        transformer_task(transformer_recipe(model=model))


def test_nan_stops_at_once(transformer_recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    real, calls = training.flow_matching_loss, iter(range(100))

    def poisoned(*given):
        loss = real(*given)
        return loss * float("inf") if next(calls) == 8 else loss

    monkeypatch.setattr(training, "flow_matching_loss", poisoned)
    with pytest.raises(NumericsError, match=r"at step 8; samples: \d \(caption -?\d+\)"):
        train_transformer(transformer_recipe())
    saved = [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()]
    assert saved == ["step-00000005"]


def test_captions_follow_their_weights(features: Path):
    cache = Features.open(features)
    rule = CaptionRule("power", temperature=1.0, threshold=0.0)
    drawn = Counter(choose_caption(cache, rule, 1, epoch, 2) for epoch in range(2000))
    assert set(drawn) == {4, 5} and drawn[4] / 2000 == pytest.approx(0.75, abs=0.03)


def test_caption_dropout_has_its_rate(transformer_recipe, features: Path):
    recipe = transformer_recipe(data={"folder": str(features), "dropout": 0.25})
    rate = np.mean([drops(recipe, step, slot) for step in range(300) for slot in range(4)])
    assert rate == pytest.approx(0.25, abs=0.05)
    always = transformer_recipe(data={"folder": str(features), "dropout": 1.0})
    names = transformer_task(always).prepare(0)[0].names
    assert all(name.endswith(f"(caption {NULL})") for name in names)


def test_a_slot_draws_the_same_in_any_batch(transformer_recipe):
    small, sigma_small = draw_noise(transformer_recipe(batch=2), 7, (4, 2, 2), range(2))
    large, sigma_large = draw_noise(transformer_recipe(batch=6), 7, (4, 2, 2), range(6))
    assert torch.equal(small, large[:2]) and torch.equal(sigma_small, sigma_large[:2])


def test_sharing_the_text_changes_nothing(transformer_recipe):
    model = transformer_task(transformer_recipe()).network.trained
    assert isinstance(model, Transformer)
    text, x = torch.randn(2, 3, 12), torch.randn(6, 4, 2, 2)
    mask = torch.tensor([[True, True, False], [True, True, True]])
    timestep = torch.linspace(10, 900, 6)
    shared = model.velocity(x, timestep, repeated(model.prepare_text(text, mask), 3))
    plain = model(x, timestep, text.repeat_interleave(3, dim=0), mask.repeat_interleave(3, dim=0))
    torch.testing.assert_close(shared, plain, rtol=1e-5, atol=1e-5)


def test_bands():
    losses, sigma = torch.tensor([1.0, 3.0, 5.0]), torch.tensor([0.1, 0.2, 1.0])
    assert by_band(losses, sigma) == {"loss_1of4": 2.0, "loss_4of4": 5.0}
