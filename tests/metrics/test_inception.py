"""InceptionV3 of published FIDs: names, quirks, conversion.

Its features were compared once with those of torch-fidelity 0.4 on random weights: equal to the bit
(docs/evaluation.md).
"""

from pathlib import Path
from typing import TypeVar

import pytest
import torch
from torch import Tensor, nn

from opensana.errors import ConfigError, WeightsError
from opensana.metrics.inception import (
    BlockA,
    BlockE,
    ConvNorm,
    Inception,
    for_inference,
    inception_of,
    load_inception,
)
from opensana.models.convert import convert


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    """As in the published file: with the classifier, and counters of norms."""
    torch.manual_seed(0)
    network = Inception()
    for name, tensor in network.state_dict().items():
        if "bn." in name:
            tensor.uniform_(0.5, 1.5)
    found = dict(network.state_dict())
    found["fc.weight"], found["fc.bias"] = torch.zeros(1008, 2048), torch.zeros(1008)
    found["Conv2d_1a_3x3.bn.num_batches_tracked"] = torch.tensor(0)
    return found


def test_a_picture_has_2048_features(state: dict[str, Tensor]) -> None:
    network = inception_of(state, where="here")
    pixels = torch.rand(1, 3, 299, 299) * 2 - 1
    with torch.inference_mode():
        features, fused = network(pixels), for_inference(network)(pixels)
    assert features.shape == (1, 2048)
    assert torch.isfinite(features).all() and features.std() > 0
    torch.testing.assert_close(fused, features, rtol=1e-4, atol=1e-5)
    names = {name.rpartition(".")[2] for name in network.state_dict()}
    assert names == {"weight", "bias", "running_mean", "running_var"}, "the original is unchanged"


def test_a_pool_of_means_leaves_padding_out() -> None:
    """Of a constant map every mean is the constant, at the border too."""
    block = for_block(BlockA(4, 8))
    pooled = block(torch.ones(1, 4, 5, 5))[:, -8:]
    assert torch.equal(pooled, pooled[..., :1, :1].expand_as(pooled))


def test_the_last_block_pools_by_the_maximum() -> None:
    torch.manual_seed(0)
    last, other = for_block(BlockE(4, last=True)), for_block(BlockE(4, last=False))
    other.load_state_dict(last.state_dict())
    pixels = torch.rand(1, 4, 5, 5)
    one, two = last(pixels), other(pixels)
    assert torch.equal(one[:, :-192], two[:, :-192])
    largest = torch.nn.functional.max_pool2d(pixels, 3, 1, 1)
    assert torch.equal(one[:, -192:], last.branch_pool(largest))
    assert not torch.equal(one[:, -192:], two[:, -192:])


Block = TypeVar("Block", bound=nn.Module)


def for_block(block: Block) -> Block:
    return block.requires_grad_(False)


def test_a_published_file_is_converted(state: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save(state, tmp_path / "published.pth")
    folder = convert(tmp_path / "published.pth", tmp_path / "made", preset="inception_fid")
    found = load_inception(folder).state_dict()
    assert set(found) == set(Inception().state_dict())
    assert all(torch.equal(found[name], state[name]) for name in found)


def test_other_files_are_refused(state: dict[str, Tensor], tmp_path: Path) -> None:
    (tmp_path / "x.pth").write_bytes(b"x")
    with pytest.raises(WeightsError, match=r"no safetensors file; get pt_inception.*convert"):
        load_inception(tmp_path / "x.pth")
    with pytest.raises(WeightsError, match="is not there; get pt_inception"):
        load_inception(tmp_path / "missing")
    with pytest.raises(WeightsError, match="damaged"):
        convert(tmp_path / "x.pth", tmp_path / "made", preset="inception_fid")
    lacking = {k: v for k, v in state.items() if not k.startswith("Mixed_7c")}
    with pytest.raises(WeightsError, match="Mixed_7c"):
        inception_of(lacking, where="here")
    with pytest.raises(ConfigError, match="heads"):
        convert(tmp_path / "x.pth", tmp_path / "made", preset="inception_fid", heads="x")
    assert not (tmp_path / "made").exists()


def test_layers_have_the_published_epsilon() -> None:
    layer = ConvNorm(1, 1, 1).requires_grad_(False)
    layer.conv.weight.fill_(1)
    assert float(layer(torch.ones(1, 1, 1, 1))) == pytest.approx((1 + 1e-3) ** -0.5)
