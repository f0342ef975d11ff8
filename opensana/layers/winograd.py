"""3x3 convolution by Winograd's F(4x4, 3x3) (Lavin and Gray, arXiv 1509.09308, section 4).

Each 4 x 4 tile of the output comes from a 6 x 6 tile of the input:

    Y = A^T [ (G w G^T) * (B^T d B) ] A

where * becomes, over channels, one matrix product at each of the 36 positions: a quarter of the
multiplications. The largest error in float32 is about 1e-5 of the output's size. Tiles are
processed in bands that fit in the cache.

B batch, C channels in, O out, H W size.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

TILE, REACH = 4, 6
BAND_BYTES = 2**23

_B = (
    (4, 0, -5, 0, 1, 0),
    (0, -4, -4, 1, 1, 0),
    (0, 4, -4, -1, 1, 0),
    (0, -2, -1, 2, 1, 0),
    (0, 2, -1, -2, 1, 0),
    (0, 4, 0, -5, 0, 1),
)
_G = (
    (1 / 4, 0, 0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0, 0, 1),
)
_A = (
    (1, 1, 1, 1, 1, 0),
    (0, 1, -1, 2, -2, 0),
    (0, 1, 1, 4, 4, 0),
    (0, 1, -1, 8, -8, 1),
)


def winograd_conv3x3(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """[B, C, H, W] and weight [O, C, 3, 3] to [B, O, H, W], zero padding of 1, channels last."""
    batch, _, height, width = x.shape
    rows, columns = -(-height // TILE), -(-width // TILE)
    wide = F.pad(
        x.permute(0, 2, 3, 1), (0, 0, 1, columns * TILE - width + 1, 1, rows * TILE - height + 1)
    )
    kernel = transformed(weight)
    out = x.new_empty(batch, rows * TILE, columns * TILE, len(weight))
    step = max(1, BAND_BYTES // (REACH**2 * columns * max(weight.shape[:2]) * x.element_size()))
    for image in range(batch):
        for row in range(0, rows, step):
            first, last = row * TILE, min(row + step, rows) * TILE
            band = _band(wide[image, first : last + 2], kernel, columns)
            out[image, first:last] = band if bias is None else band + bias
    return out[:, :height, :width].permute(0, 3, 1, 2)


def transformed(weight: Tensor) -> Tensor:
    """Weight [O, C, 3, 3] to G w G^T as [36, C, O]."""
    taps = weight.permute(2, 3, 1, 0).reshape(9, -1)
    return (_pair(_G, taps) @ taps).view(REACH**2, weight.shape[1], weight.shape[0])


def _band(wide: Tensor, kernel: Tensor, columns: int) -> Tensor:
    """Padded rows [4 R + 2, 4 columns + 2, C] to the output [4 R, 4 columns, O]."""
    rows, (_, channels, out) = len(wide) // TILE, kernel.shape
    positions = torch.stack(
        [
            wide[i : i + TILE * rows : TILE, j : j + TILE * columns : TILE]
            for i in range(REACH)
            for j in range(REACH)
        ]
    ).view(REACH**2, -1)
    inputs = (_pair(_B, positions) @ positions).view(REACH**2, rows * columns, channels)
    products = torch.bmm(inputs, kernel).view(REACH**2, -1)
    tiles = (_pair(_A, positions) @ products).view(TILE, TILE, rows, columns, out)
    return tiles.permute(2, 0, 3, 1, 4).reshape(rows * TILE, columns * TILE, out)


def _pair(matrix: tuple[tuple[float, ...], ...], like: Tensor) -> Tensor:
    """The Kronecker product: the matrix applied to the rows and the columns of a flat tile."""
    values = torch.tensor(matrix, dtype=torch.float64)
    return torch.kron(values, values).to(like)
