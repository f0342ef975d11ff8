"""LPIPS against its definition written out, its properties, and the way its weights come in."""

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from opensana.errors import ConfigError, WeightsError
from opensana.metrics.lpips import Lpips, joined, load_lpips, lpips_of
from opensana.models.convert import convert
from opensana.weights.safetensors import write_safetensors

# torchvision's VGG16: the place of each convolution in `features`, its channels in and out.
CONVOLUTIONS = {
    0: (3, 64),
    2: (64, 64),
    5: (64, 128),
    7: (128, 128),
    10: (128, 256),
    12: (256, 256),
    14: (256, 256),
    17: (256, 512),
    19: (512, 512),
    21: (512, 512),
    24: (512, 512),
    26: (512, 512),
    28: (512, 512),
}
LAST_OF_GROUP = (2, 7, 14, 21, 28)


@pytest.fixture(scope="module")
def vgg16() -> dict[str, Tensor]:
    """Random weights under torchvision's names that keep the size of activations."""
    generator = torch.Generator().manual_seed(1)
    state: dict[str, Tensor] = {"classifier.0.weight": torch.zeros(2, 2)}
    for place, (channels, out) in CONVOLUTIONS.items():
        weight = torch.randn(out, channels, 3, 3, generator=generator)
        state[f"features.{place}.weight"] = weight * (2 / (9 * channels)) ** 0.5
        state[f"features.{place}.bias"] = 0.1 * torch.randn(out, generator=generator)
    return state


@pytest.fixture(scope="module")
def heads() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(2)
    widths = (64, 128, 256, 512, 512)
    return {
        f"lin{i}.model.1.weight": torch.rand(1, width, 1, 1, generator=generator)
        for i, width in enumerate(widths)
    }


@pytest.fixture(scope="module")
def lpips(vgg16: dict[str, Tensor], heads: dict[str, Tensor]) -> Lpips:
    return lpips_of(joined(vgg16, heads), where="test").requires_grad_(False)


def noise(seed: int, *, size: int = 32) -> Tensor:
    return torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def written_out(
    first: Tensor, second: Tensor, vgg16: dict[str, Tensor], heads: dict[str, Tensor]
) -> Tensor:
    """The paper's equation 1, with the names and sizes of the published files."""
    shift = torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1)
    scale = torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1)
    x = (torch.cat([first, second]) - shift) / scale
    total = torch.zeros(len(first))
    for place in CONVOLUTIONS:
        if place in (5, 10, 17, 24):
            x = F.max_pool2d(x, 2, 2)
        weight, bias = vgg16[f"features.{place}.weight"], vgg16[f"features.{place}.bias"]
        x = F.relu(F.conv2d(x, weight, bias, padding=1))
        if place in LAST_OF_GROUP:
            one, other = (x / (x.norm(dim=1, keepdim=True) + 1e-10)).chunk(2)
            head = heads[f"lin{LAST_OF_GROUP.index(place)}.model.1.weight"]
            total += F.conv2d((one - other) ** 2, head).mean(dim=(1, 2, 3))
    return total


def test_it_is_its_definition(lpips, vgg16, heads) -> None:
    first, second = noise(3, size=40), noise(4, size=40)
    expected = written_out(first, second, vgg16, heads)
    assert expected.min() > 0.01
    torch.testing.assert_close(lpips(first, second), expected, rtol=1e-4, atol=1e-6)


def test_alexnet_is_its_definition(tmp_path: Path) -> None:
    """Layers written out with torchvision's places, strides and pools."""
    generator, state = torch.Generator().manual_seed(5), {}
    shapes = {
        0: (64, 3, 11),
        3: (192, 64, 5),
        6: (384, 192, 3),
        8: (256, 384, 3),
        10: (256, 256, 3),
    }
    for place, (out, channels, side) in shapes.items():
        weight = torch.randn(out, channels, side, side, generator=generator)
        state[f"features.{place}.weight"] = weight * (2 / (channels * side * side)) ** 0.5
        state[f"features.{place}.bias"] = 0.1 * torch.randn(out, generator=generator)
    heads = {
        f"lin{i}.model.1.weight": torch.rand(1, out, 1, 1, generator=generator)
        for i, (out, _, _) in enumerate(shapes.values())
    }
    torch.save(state, tmp_path / "alexnet.pth")
    torch.save(heads, tmp_path / "alex.pth")
    first, second = noise(13, size=64), noise(14, size=64)
    shift = torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1)
    scale = torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1)
    x, expected = (torch.cat([first, second]) - shift) / scale, torch.zeros(2)
    for i, (place, (_, _, side)) in enumerate(shapes.items()):
        if place in (3, 6):
            x = F.max_pool2d(x, 3, 2)
        weight, bias = state[f"features.{place}.weight"], state[f"features.{place}.bias"]
        stride = 4 if place == 0 else 1
        x = F.relu(F.conv2d(x, weight, bias, stride, 2 if place == 0 else side // 2))
        one, other = (x / (x.norm(dim=1, keepdim=True) + 1e-10)).chunk(2)
        expected += F.conv2d((one - other) ** 2, heads[f"lin{i}.model.1.weight"]).mean((1, 2, 3))

    def converted(preset: str) -> Path:
        source, to = tmp_path / "alexnet.pth", tmp_path / preset
        return convert(source, to, preset=preset, heads=tmp_path / "alex.pth")

    made = load_lpips(converted("lpips_alexnet"))
    assert made.network == "alexnet" and expected.min() > 0.01
    torch.testing.assert_close(made(first, second), expected, rtol=1e-4, atol=1e-6)
    assert torch.isfinite(made(noise(15, size=32), noise(16, size=32))).all(), "the smallest side"
    with pytest.raises(WeightsError, match=r"features\."):
        converted("lpips_vgg16")


def test_equal_pictures_are_at_zero_and_noise_moves_them_away(lpips) -> None:
    picture = F.interpolate(noise(5, size=8), size=(32, 32), mode="bilinear")
    distances = [lpips(picture, picture + level * noise(6)) for level in (0, 0.05, 0.2, 0.8)]
    assert torch.equal(distances[0], torch.zeros(2))
    assert all(bool((less < more).all()) for less, more in pairwise(distances))


def test_its_gradient_leads_to_the_target(lpips) -> None:
    target = noise(7, size=16)
    start = target + 0.3 * noise(8, size=16)
    picture = start.clone().requires_grad_()
    lpips(picture, target).sum().backward()
    assert picture.grad is not None
    nearer = start - 0.05 * picture.grad / picture.grad.abs().max()
    assert lpips(nearer, target).sum() < lpips(start, target).sum()


def test_dead_features_have_a_gradient_that_is_a_number(vgg16, heads) -> None:
    dead = {name: torch.zeros_like(value) for name, value in vgg16.items()}
    picture = noise(9, size=16).requires_grad_()
    lpips_of(joined(dead, heads), where="test")(picture, noise(10, size=16)).sum().backward()
    assert picture.grad is not None
    assert torch.isfinite(picture.grad).all()


def test_the_published_files_become_weights(lpips, vgg16, heads, tmp_path: Path) -> None:
    torch.save(vgg16, tmp_path / "vgg16.pth")
    torch.save(heads, tmp_path / "vgg.pth")
    made = convert(
        tmp_path / "vgg16.pth",
        tmp_path / "lpips",
        preset="lpips_vgg16",
        heads=tmp_path / "vgg.pth",
    )
    first, second = noise(11), noise(12)
    for path in (made, made / "model.safetensors"):
        loaded = load_lpips(path)
        assert torch.equal(loaded(first, second), lpips(first, second))
        assert not any(parameter.requires_grad for parameter in loaded.parameters())
    with pytest.raises(WeightsError, match="opensana convert"):
        load_lpips(tmp_path / "vgg16.pth")


def test_wrong_files_are_named(vgg16, heads, tmp_path: Path) -> None:
    write_safetensors(vgg16, tmp_path, name="vgg16")
    write_safetensors(heads, tmp_path, name="heads")
    source, preset = tmp_path / "vgg16.safetensors", "lpips_vgg16"
    with pytest.raises(ConfigError, match="--heads"):
        convert(source, tmp_path / "made", preset=preset)
    with pytest.raises(WeightsError, match=r"lacks lin0\.model\.1\.weight"):
        convert(source, tmp_path / "made", preset=preset, heads=source)
    with pytest.raises(WeightsError, match=r"missing 'features\.0\.weight'"):
        convert(
            tmp_path / "heads.safetensors",
            tmp_path / "made",
            preset=preset,
            heads=tmp_path / "heads.safetensors",
        )
    with pytest.raises(ConfigError, match="heads belong to the presets lpips_vgg16"):
        convert(source, tmp_path / "made", preset="sana_600m_512", heads=source)
    with pytest.raises(ConfigError, match="did you mean 'lpips_vgg16'"):
        convert(source, tmp_path / "made", preset="lpips_vgg")
    with pytest.raises(WeightsError, match="is not there; get AlexNet"):
        load_lpips(tmp_path / "nowhere")
    assert not (tmp_path / "made").exists()
