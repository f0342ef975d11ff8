"""Previews of a running picture: the autoencoder's linear map, where its folder has one."""

from collections.abc import Callable

from PIL import Image
from torch import Tensor

from opensana.models.open import OpenModel
from opensana.pictures.pixels import to_images

Previewer = Callable[[Tensor], Image.Image]
"""The estimate of x0 [C, h, w] to a small RGB picture."""


def load_previewer(model: OpenModel) -> Previewer | None:
    """None where `opensana preview` was not run for the autoencoder."""
    found = model.read_preview()
    return None if found is None else lambda x0: to_images(found(x0[None]))[0]
