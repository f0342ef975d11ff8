"""Grids of pictures written while a run goes on: uint8 PNG files in run/samples/."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from opensana.files.writing import write_atomic
from opensana.pictures.sheet import grid


def to_bytes(pixels: Tensor) -> np.ndarray:
    """Float [B, 3, H, W] in [-1, 1] -> uint8 [B, H, W, 3]."""
    scaled = pixels.detach().float().clamp(-1, 1).add(1).mul(127.5).round()
    return scaled.to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()


def grid_path(run: Path, step: int) -> Path:
    return run / "samples" / f"step-{step:08d}.png"


def write_grid(run: Path, step: int, pictures: np.ndarray, *, columns: int) -> Path:
    """Write run/samples/step-N.png atomically."""
    path = grid_path(run, step)
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet = grid(pictures, columns=columns)
    write_atomic(path, lambda temporary: sheet.save(temporary, format="PNG"))
    return path
