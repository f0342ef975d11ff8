"""sRGB and CIELAB (D65), in which colours are as far apart as they look.

CIE76 is the Euclidean distance.
"""

import numpy as np

# IEC 61966-2-1: linear sRGB to XYZ, and the white point that its white has there.
TO_XYZ = np.array(
    [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]],
)
WHITE_POINT = TO_XYZ.sum(axis=1)
FROM_XYZ = np.linalg.inv(TO_XYZ)


def to_lab(colours: np.ndarray) -> np.ndarray:
    """sRGB [..., 3] in 0..255 to CIELAB [..., 3]."""
    encoded = colours / 255
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    ratio = linear @ TO_XYZ.T / WHITE_POINT
    x, y, z = np.moveaxis(np.where(ratio > 216 / 24389, np.cbrt(ratio), _near_black(ratio)), -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def from_lab(lab: np.ndarray) -> np.ndarray:
    """CIELAB [..., 3] to sRGB, uint8; what sRGB cannot show is cut off."""
    y = (lab[..., 0] + 16) / 116
    roots = np.stack([y + lab[..., 1] / 500, y, y - lab[..., 2] / 200], axis=-1)
    cubes = roots**3
    ratio = np.where(cubes > 216 / 24389, cubes, (116 * roots - 16) * 27 / 24389)
    linear = np.clip((ratio * WHITE_POINT) @ FROM_XYZ.T, 0, 1)
    encoded = np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.clip(np.rint(encoded * 255), 0, 255).astype(np.uint8)


def _near_black(ratio: np.ndarray) -> np.ndarray:
    return (24389 / 27 * ratio + 16) / 116
