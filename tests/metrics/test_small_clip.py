"""The loss, the towers and the folder of a small CLIP."""

import json
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from opensana.errors import ConfigError, WeightsError
from opensana.metrics.small_clip import Clip, ClipConfig, contrastive_loss, load_clip
from opensana.train.checkpoints.export import Export

TINY = ClipConfig(size=16, widths=(8, 16), text_channels=6, text_width=8, dim=4)


@pytest.fixture
def clip() -> Clip:
    torch.manual_seed(0)
    return Clip(TINY).eval()


def test_without_duplicates_the_loss_is_cross_entropy_both_ways() -> None:
    logits = torch.randn(5, 5, generator=torch.Generator().manual_seed(1))
    places = torch.arange(5)
    wanted = functional.cross_entropy(logits, places) + functional.cross_entropy(logits.T, places)
    loss = contrastive_loss(logits, torch.eye(5, dtype=torch.bool))
    torch.testing.assert_close(loss, wanted / 2)


def test_captions_of_one_picture_do_not_push_each_other_away() -> None:
    positive = torch.tensor([[1, 0, 1, 0], [0, 1, 0, 1]]).bool()
    perfect = torch.where(positive, 20.0, -20.0).requires_grad_()
    contrastive_loss(perfect, positive).backward()
    assert perfect.grad is not None
    assert perfect.grad.abs().max() < 1e-6, "nothing is left to improve"
    alone = torch.tensor([[1, 0, 0, 0], [0, 1, 0, 0]]).bool()
    logits = perfect.detach().requires_grad_()
    (gradient,) = torch.autograd.grad((logits.log_softmax(1) * alone).sum(), logits)
    assert gradient[0, 2] < -0.1, "as a negative the second caption would be"


def test_embeddings_are_unit_vectors_and_padding_is_not_read(clip: Clip) -> None:
    states, mask = torch.randn(3, 5, 6), torch.tensor([[1, 1, 1, 0, 0]] * 3).bool()
    embedded = clip.embed_texts(states, mask)
    torch.testing.assert_close(embedded.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(clip.embed_texts(states[:, :3], mask[:, :3]), embedded)
    changed = states.clone()
    changed[:, 2] += 1
    assert not torch.allclose(clip.embed_texts(changed, mask), embedded)


def test_pictures_of_any_size_are_averaged_over_areas(clip: Clip) -> None:
    pixels = torch.rand(2, 3, 16, 16) * 2 - 1
    large = pixels.repeat_interleave(3, 2).repeat_interleave(3, 3)
    features = clip.image_features(pixels)
    assert features.shape == (2, 16)
    torch.testing.assert_close(clip.image_features(large), features)


def test_a_folder_gives_the_same_clip_in_float32(clip: Clip, tmp_path: Path) -> None:
    half = {name: value.half() for name, value in clip.state_dict().items()}
    Export(tmp_path, TINY.to_dict(), half).write()
    loaded = load_clip(tmp_path)
    assert loaded.config == TINY
    pixels = torch.rand(2, 3, 16, 16)
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    torch.testing.assert_close(
        loaded.embed_images(pixels), clip.embed_images(pixels), atol=2e-3, rtol=0
    )


def test_folders_of_others_are_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"_class_name": "AutoencoderDC"}))
    with pytest.raises(WeightsError, match=r"recipes/emoji/clip\.toml"):
        load_clip(tmp_path)
    config = TINY.to_dict() | {"widths": [8, 1 << 30]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match="1 to 4096"):
        load_clip(tmp_path)


@pytest.mark.parametrize("change", [{"size": 10}, {"widths": (12,)}, {"dropout": 1.0}])
def test_impossible_sizes_are_refused(change: dict) -> None:
    with pytest.raises(ConfigError):
        ClipConfig(**({"size": 16, "widths": (8, 16)} | change))


def test_logits_are_not_rounded_under_autocast(clip: Clip) -> None:
    pixels, states = torch.rand(6, 3, 64, 64) * 2 - 1, torch.randn(5, 3, clip.config.text_channels)
    mask = torch.ones(5, 3, dtype=torch.bool)
    torch.nn.init.constant_(clip.log_scale, 4.6)  # near 100
    with torch.autocast("cpu", torch.bfloat16):
        logits = clip(pixels, states, mask)
        images, texts = clip.embed_images(pixels), clip.embed_texts(states, mask)
    expected = clip.log_scale.exp() * images @ texts.T
    assert logits.dtype == torch.float32
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-4)
