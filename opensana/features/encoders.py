"""The two encoders of a model, and their keys in a cache.

B batch, N tokens, D hidden size, C channels, H W picture size, h w latent size.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from opensana.autoencoder import streaming
from opensana.autoencoder.model import Autoencoder
from opensana.autoencoder.plan import encoder_chain
from opensana.device import faithful_dtype, resolve_device, to_host
from opensana.features.manifest import tensor_hash
from opensana.layers.weight_only import PlainState
from opensana.models.index import read_info
from opensana.models.load import load_autoencoder, load_text
from opensana.models.parts import autoencoder_config, stored_dtype, transformer_config
from opensana.pictures.pixels import from_levels
from opensana.runtime.fused_autoencoder import fuse_autoencoder
from opensana.runtime.placing import part_dtype, place
from opensana.runtime.tf32 import settle_float32
from opensana.text.encoder import TextEncoder, TextStates
from opensana.weights.locate import locate

TEXT_VERSION = 1
LATENT_VERSION = 2


@dataclass(frozen=True)
class Encoders:
    """An autoencoder and a text encoder, with the latter's name and settings."""

    autoencoder: Autoencoder
    text: TextEncoder
    name: str
    instruction: str
    max_tokens: int
    model: str | None = None
    """The name or the folder of the model, to find it again."""

    def latent_keys(self) -> dict[str, Any]:
        return {"autoencoder": encoder_hash(self.autoencoder), "latent_version": LATENT_VERSION}

    def text_keys(self) -> dict[str, Any]:
        return {
            "text_encoder": self.name,
            "text_encoder_hash": tensor_hash(PlainState(self.text.model)),
            "instruction": self.instruction,
            "max_tokens": self.max_tokens,
            "text_version": TEXT_VERSION,
        }

    def made_by(self) -> dict[str, str]:
        """The model with the text encoder, and the dtype that it runs in."""
        if self.model is None:
            return {}
        dtype = next(iter(self.text.model.parameters())).dtype
        return {"model": self.model, "dtype": str(dtype).removeprefix("torch.")}

    def at_once(self, height: int, width: int, *, most: int, memory: int) -> int:
        """The largest batch that fits in `memory` bytes; 0 if one picture must run in bands."""
        chains = {n: encoder_chain(self.autoencoder, n, height, width) for n in range(1, most + 1)}
        return max((n for n, chain in chains.items() if chain.one_band_memory <= memory), default=0)

    def latents(self, pixels: np.ndarray, *, memory: int | None = None) -> np.ndarray:
        """Scaled latents [B, C, h, w], float32, of uint8 pictures [B, H, W, 3].

        With `memory` one by one and in bands of rows; the same numbers up to rounding.
        """
        return encode_pixels(self.autoencoder, pixels, memory=memory)

    def states(self, captions: Sequence[str]) -> list[np.ndarray]:
        """The hidden states [N, D] of each caption, float32, without padding."""
        return valid_states(self.text.encode(captions))

    def null(self) -> np.ndarray:
        """The hidden states [N, D] of the null caption."""
        return valid_states(self.text.encode_plain([""]))[0]


def load_encoders(model: str | Path, *, device: str = "auto") -> Encoders:
    """The encoders of a built-in model, a folder or a hub id, without its transformer."""
    folder = locate(model)
    info, chosen = read_info(folder, name=str(model)), resolve_device(device)
    dtype = part_dtype(chosen, faithful_dtype(chosen, None, stored_dtype(folder)))
    settle_float32(chosen, full=False)
    text = load_text(folder, info, device=chosen, dtype=dtype)
    autoencoder = place(load_autoencoder(folder), chosen, dtype)
    if chosen.type == "cuda":
        fuse_autoencoder(autoencoder)
    return Encoders(
        autoencoder=autoencoder,
        text=text,
        name=info.defaults.text_encoder or type(text.model).__name__,
        instruction=info.defaults.instruction,
        max_tokens=info.defaults.max_tokens,
        model=str(folder.resolve()) if Path(model).expanduser().is_dir() else str(model),
    )


def native_size(model: str | Path) -> int:
    """The native size of a model's pictures, in pixels per side."""
    folder = locate(model)
    compression = autoencoder_config(folder / "vae").compression
    return transformer_config(folder / "transformer").sample_size * compression


def encoder_hash(model: Autoencoder) -> str:
    """The key of the latents; it does not depend on the decoder."""
    scale = torch.tensor(model.config.scaling_factor)
    return tensor_hash({**model.state_dict(), "encoder.scaling_factor": scale}, prefix="encoder.")


@torch.inference_mode()
def encode_pixels(
    model: Autoencoder, pixels: np.ndarray, *, memory: int | None = None
) -> np.ndarray:
    """Scaled latents [B, C, h, w], float32, of uint8 pictures [B, H, W, 3]."""
    values = from_levels(pixels, model.device).permute(0, 3, 1, 2).to(model.dtype)
    if memory is None:
        latents = model.encode(values)
    else:
        latents = streaming.encode(model, values, memory=memory)
    (latents,) = to_host(latents.float())
    return latents.numpy()


def valid_states(states: TextStates) -> list[np.ndarray]:
    """The hidden states [N, D] of each prompt, float32, without padding: one copy for all."""
    (fetched,) = to_host(states.states)
    return [rows[valid].float().numpy() for rows, valid in zip(fetched, states.mask, strict=True)]
