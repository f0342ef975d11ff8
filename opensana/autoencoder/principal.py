"""Initialise an autoencoder as a principal component analysis (PCA) of patches, level by level.

Random weights start as a plain average and take hours to reach the error of PCA. A DC-AE with
stride-2 convolutions down and pixel shuffle up can represent PCA exactly: each level holds the
coordinates of its patch in the span of the components' own patches, convolutions use only their
own position, the shortcuts are subtracted, and all residual blocks start at zero. Training
continues from this linear optimum.

P patch size (the compression), K latent channels, S stages, C channels.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from opensana.autoencoder.blocks import EfficientViTBlock, ResBlock
from opensana.autoencoder.model import Autoencoder
from opensana.autoencoder.resample import FACTOR, Downsample, Upsample
from opensana.errors import ConfigError
from opensana.layers import RMSNorm2d

# A constant channel much larger than the others keeps the head's norm nearly linear, and a
# positive bias keeps its ReLU active; the head's convolution subtracts both again.
HEAD_CONSTANT = 24.0
HEAD_BIAS = 3.0


@dataclass(frozen=True)
class PrincipalCode:
    """Principal components of patches: `basis` [K, 3, P, P] orthonormal, `mean` [3, P, P]."""

    mean: Tensor
    basis: Tensor
    deviation: Tensor  # [K] standard deviation along each component


def principal_code(patches: Tensor, channels: int) -> PrincipalCode:
    """The first `channels` principal components of patches [N, 3, P, P]."""
    flat = patches.flatten(1).double()
    mean = flat.mean(dim=0)
    covariance = (flat - mean).T @ (flat - mean) / len(flat)
    variance, vectors = torch.linalg.eigh(covariance)
    basis = vectors.flip(1)[:, :channels].T
    shape = patches.shape[1:]
    deviation = variance.flip(0)[:channels].sqrt().float()
    return PrincipalCode(
        mean.view(shape).float(), basis.reshape(-1, *shape).float().contiguous(), deviation
    )


@torch.no_grad()
def start_from(model: Autoencoder, code: PrincipalCode) -> None:
    """Overwrite the weights of `model` so that it computes `code`, with latents of unit variance.

    ConfigError if the model's resampling cannot represent a linear code.
    """
    config = model.config
    holds = config.upsample_block_type == "pixel_shuffle" and config.downsample_block_type == "Conv"
    empty = config.encoder_layers_per_block[0] == config.decoder_layers_per_block[0] == 0
    if not (holds and empty and config.encoder_out_shortcut and config.decoder_in_shortcut):
        raise ConfigError(
            "a principal-component start needs Conv down, pixel_shuffle up, both latent "
            "shortcuts, and no layers in the first stage"
        )
    for module in model.modules():  # zero the residual blocks
        if isinstance(module, ResBlock):
            nn.init.zeros_(module.norm.weight)  # pyright: ignore[reportArgumentType]
        elif isinstance(module, EfficientViTBlock):
            for norm in (module.attn.norm_out, module.conv_out.norm):
                assert isinstance(norm, RMSNorm2d)
                nn.init.zeros_(norm.weight)
    bases = [
        _level_basis(code.basis, stage, width)
        for stage, width in enumerate(config.encoder_block_out_channels)
    ]
    _fill_encoder(model, code, bases)
    bases = [
        _level_basis(code.basis, stage, width)
        for stage, width in enumerate(config.decoder_block_out_channels)
    ]
    _fill_decoder(model, code, bases)


def _patches(pictures: Tensor, size: int) -> Tensor:
    """Cut [..., 3, P, P] into flat patches [..., n, n, 3 * size * size] of n = P / size a side."""
    tiles = pictures.unfold(-2, size, size).unfold(-2, size, size)
    tiles = tiles.movedim(-5, -3)
    return tiles.flatten(-3)


def _level_basis(basis: Tensor, stage: int, width: int) -> Tensor:
    """Orthonormal columns [3 * size^2, C'] spanning the patches of stage `stage`, C' <= width."""
    size = FACTOR**stage
    if 3 * size * size <= width:
        return torch.eye(3 * size * size)
    patches = _patches(basis, size).flatten(0, 2)
    left, _, _ = torch.linalg.svd(patches.T.double(), full_matrices=False)
    return left[:, :width].float()


def _children(size: int) -> Tensor:
    """[4, child, parent]: one-hot positions of the four half-size patches' pixels in the parent."""
    parent = torch.eye(3 * size * size).view(-1, 3, size, size)
    return _patches(parent, size // FACTOR).flatten(1, 2).permute(1, 2, 0).contiguous()


def _fill_encoder(model: Autoencoder, code: PrincipalCode, bases: list[Tensor]) -> None:
    encoder = model.encoder
    assert isinstance(encoder.conv_in, Downsample)
    _fill_down(encoder.conv_in, torch.eye(3), bases[1], FACTOR)
    for stage in range(1, len(bases) - 1):
        down = encoder.down_blocks[stage][-1]  # pyright: ignore[reportIndexIssue]
        assert isinstance(down, Downsample)
        _fill_down(down, bases[stage], bases[stage + 1], FACTOR ** (stage + 1))
    conv, top = encoder.conv_out, bases[-1]
    analysis = code.basis.flatten(1) / code.deviation[:, None]
    weight = torch.zeros(conv.weight.shape[:2])
    weight[:, : top.shape[1]] = analysis @ top
    group = weight.shape[1] // weight.shape[0]
    weight -= torch.eye(weight.shape[0]).repeat_interleave(group, dim=1) / group
    _set_centre(conv, weight)
    nn.init.zeros_(conv.bias).sub_(analysis @ code.mean.flatten())  # pyright: ignore


def _fill_down(block: Downsample, below: Tensor, above: Tensor, size: int) -> None:
    """Coordinates in `above` of a patch from the coordinates in `below` of its four children."""
    conv = block.conv
    nn.init.zeros_(conv.weight)
    nn.init.zeros_(conv.bias)  # pyright: ignore[reportArgumentType]
    for position, select in enumerate(_children(size)):
        row, column = divmod(position, FACTOR)
        tap = conv.weight[:, :, 1 + row, 1 + column]
        tap[: above.shape[1], : below.shape[1]] = above.T @ select.T @ below
        if block.shortcut:
            # Subtract what the averaging shortcut adds at this position.
            out, channels = tap.shape
            unshuffled = torch.arange(channels) * FACTOR**2 + position
            group = channels * FACTOR**2 // out
            shortcut = torch.zeros(out, channels)
            shortcut[unshuffled // group, torch.arange(channels)] = 1 / group
            tap -= shortcut


def _fill_decoder(model: Autoencoder, code: PrincipalCode, bases: list[Tensor]) -> None:
    decoder = model.decoder
    channels = code.basis.shape[0]
    conv = decoder.conv_in
    nn.init.zeros_(conv.weight)
    nn.init.zeros_(conv.bias)  # pyright: ignore[reportArgumentType]
    copies = conv.out_channels // channels
    above = code.basis.flatten(1).T * code.deviation / copies
    above = above.repeat_interleave(copies, dim=1)
    offset = code.mean.flatten()
    for stage in range(len(bases) - 2, 0, -1):
        up = decoder.up_blocks[stage][0]  # pyright: ignore[reportIndexIssue]
        assert isinstance(up, Upsample)
        _fill_up(up, bases[stage], above, offset, FACTOR ** (stage + 1))
        above, offset = bases[stage], torch.zeros(len(bases[stage]))
        if stage == 1:
            _fill_head(decoder, up, above)


def _fill_up(block: Upsample, below: Tensor, above: Tensor, offset: Tensor, size: int) -> None:
    """Coordinates in `below` of four patches from the coordinates in `above` of their parent."""
    conv = block.conv
    centre = torch.zeros(conv.weight.shape[:2])
    nn.init.zeros_(conv.bias)  # pyright: ignore[reportArgumentType]
    for position, select in enumerate(_children(size)):
        rows = slice(position, FACTOR**2 * below.shape[1], FACTOR**2)
        centre[rows, : above.shape[1]] = below.T @ select @ above
        conv.bias[rows] = below.T @ select @ offset  # pyright: ignore[reportOptionalSubscript]
    repeats = conv.out_channels // conv.in_channels
    centre -= torch.eye(conv.in_channels).repeat_interleave(repeats, dim=0)
    _set_centre(conv, centre)


def _fill_head(decoder: nn.Module, last_up: Upsample, pixels: Tensor) -> None:
    """Make norm, ReLU and the last convolution pass the pixels of each 2 x 2 block through."""
    used = pixels.shape[1]
    norm, head = decoder.norm_out, decoder.conv_out
    assert isinstance(norm, RMSNorm2d) and isinstance(head, Upsample)
    constant = slice(FACTOR**2 * used, FACTOR**2 * (used + 1))
    last_up.conv.bias[constant] = HEAD_CONSTANT  # pyright: ignore[reportOptionalSubscript]
    nn.init.constant_(norm.weight, HEAD_CONSTANT / len(norm.weight) ** 0.5)
    nn.init.constant_(norm.bias, HEAD_BIAS)
    centre = torch.zeros(head.conv.weight.shape[:2])
    for position, select in enumerate(_children(FACTOR)):
        centre[position :: FACTOR**2, :used] = select @ pixels
    _set_centre(head.conv, centre)
    nn.init.zeros_(head.conv.bias).sub_(HEAD_BIAS * centre.sum(dim=1))  # pyright: ignore


def _set_centre(conv: nn.Conv2d, weight: Tensor) -> None:
    nn.init.zeros_(conv.weight)
    conv.weight[:, :, 1, 1] = weight
