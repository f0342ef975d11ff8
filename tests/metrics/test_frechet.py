import math
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from opensana.errors import DataError, WeightsError
from opensana.metrics.frechet import (
    Moments,
    clip_features,
    frechet_distance,
    frechet_of_roots,
    root_of,
)
from opensana.metrics.small_clip import Clip, ClipConfig
from opensana.train.checkpoints.export import Export


def normal(count: int, *shape: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, *shape, generator=generator, dtype=torch.float64)


def moments(*batches: Tensor) -> Moments:
    found = Moments()
    for batch in batches:
        found.add(batch)
    return found


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=16,
        patch_size=8,
        projection_dim=6,
    )
    folder = tmp_path_factory.mktemp("clip")
    CLIPVisionModelWithProjection(config).save_pretrained(folder)
    return folder


def test_moments_do_not_depend_on_batches() -> None:
    features = normal(50, 4, seed=1) + 3
    whole, parts = moments(features), moments(features[:7], features[7:30], features[30:])
    torch.testing.assert_close(whole.mean, features.mean(0))
    torch.testing.assert_close(whole.covariance, torch.cov(features.T))
    torch.testing.assert_close(parts.covariance, whole.covariance)


def test_the_distance_is_that_of_normal_distributions() -> None:
    """Against the formula with a matrix root written out by eigenvectors of the product."""
    first = normal(400, 5, seed=2) @ normal(5, 5, seed=3)
    second = normal(400, 5, seed=4) @ normal(5, 5, seed=5) + 1
    one, other = torch.cov(first.T), torch.cov(second.T)
    values, vectors = torch.linalg.eig(one @ other)
    root = vectors @ torch.diag(values.sqrt()) @ torch.linalg.inv(vectors)
    gap = (first.mean(0) - second.mean(0)).square().sum()
    expected = gap + (one + other - 2 * root.real).trace()
    found = frechet_distance(moments(first), moments(second))
    assert found == pytest.approx(float(expected), rel=1e-9)
    assert frechet_distance(moments(second), moments(first)) == pytest.approx(found, rel=1e-9)


def test_few_pictures_need_no_covariance() -> None:
    """Roots of a covariance of low rank are rounded, those of products are not."""
    first, second = normal(9, 30, seed=11), 2 * normal(14, 30, seed=12) + 1
    expected = frechet_distance(moments(first), moments(second))
    found = frechet_of_roots(root_of(first), root_of(second))
    assert found == pytest.approx(expected, rel=1e-7)
    counts = torch.tensor([3, 0, 1, 1, 0, 2, 0, 1, 1])
    often = moments(first.repeat_interleave(counts, 0))
    found = frechet_of_roots(root_of(first, counts), root_of(second))
    assert found == pytest.approx(frechet_distance(often, moments(second)), rel=1e-7)
    with pytest.raises(DataError, match="2 pictures or more, got 1"):
        root_of(first[:1])


def test_known_distances() -> None:
    features = normal(100, 3, seed=6)
    same = moments(features)
    assert frechet_distance(same, same) == pytest.approx(0, abs=1e-9)
    assert frechet_distance(same, moments(features + 2)) == pytest.approx(12)
    # Twice as wide in each direction: the trace of the covariance once more.
    centred = features - features.mean(0)
    trace = float(torch.cov(features.T).trace())
    assert frechet_distance(moments(centred), moments(2 * centred)) == pytest.approx(trace)
    few = normal(3, 40, seed=7)
    assert math.isfinite(frechet_distance(moments(few), moments(few + 1)))
    with pytest.raises(DataError, match="2 pictures or more, got 1"):
        frechet_distance(moments(features[:1]), same)


def test_clip_sees_differences_and_its_input_is_what_it_was_trained_on(clip: Path) -> None:
    extract = clip_features(clip, torch.device("cpu"))
    pictures = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(8))
    model = CLIPVisionModelWithProjection.from_pretrained(clip).eval()
    mean = torch.tensor([0.48145466, 0.4578275, 0.40821073]).view(1, 3, 1, 1)
    deviation = torch.tensor([0.26862954, 0.26130258, 0.27577711]).view(1, 3, 1, 1)
    with torch.inference_mode():
        expected = model(pixel_values=(pictures - mean) / deviation).image_embeds
    torch.testing.assert_close(extract(pictures), expected)
    larger = pictures.repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert extract(larger).shape == (3, 6)


def test_a_small_clip_gives_its_embeddings_too(tmp_path: Path) -> None:
    torch.manual_seed(0)
    clip = Clip(ClipConfig(size=8, widths=(8,), text_channels=4, text_width=8, dim=4))
    Export(tmp_path, clip.config.to_dict(), clip.state_dict()).write()
    pictures = torch.rand(3, 3, 8, 8)
    with torch.inference_mode():
        expected = clip.eval().embed_images(2 * pictures - 1)
    torch.testing.assert_close(clip_features(tmp_path, torch.device("cpu"))(pictures), expected)


def test_what_is_not_clip_is_refused(clip: Path, tmp_path: Path) -> None:
    cpu = torch.device("cpu")
    with pytest.raises(WeightsError, match="missing"):
        clip_features(tmp_path, cpu)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(WeightsError, match="holds a bert model, expected CLIP"):
        clip_features(tmp_path, cpu)
    (tmp_path / "config.json").write_text((clip / "config.json").read_text())
    with pytest.raises(WeightsError, match="cannot read the model in"):
        clip_features(tmp_path, cpu)
