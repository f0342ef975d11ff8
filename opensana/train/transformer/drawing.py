"""What a run of the transformer draws: the texts of its prompts, and the decoder for them.

Captions of the cache have their states there. Other prompts are encoded when the run starts, by
the text encoder that the cache names; where that cannot be they are left out, which is said.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from opensana.autoencoder import Autoencoder
from opensana.errors import ConfigError, near
from opensana.features.latents import Features
from opensana.features.text_encoder import text_encoder_of
from opensana.features.texts import Texts, halves, padded
from opensana.models.find import find_autoencoder
from opensana.models.load import load_autoencoder
from opensana.train.engine.parallel import Processes
from opensana.train.monitor.samples import to_bytes, write_grid
from opensana.train.recipe import CachedRecipe
from opensana.train.transformer.batches import SHOWN, likeliest


@dataclass(frozen=True)
class Drawn:
    """Pictures to draw: of each its text's states [N, D] and the seed of its noise.

    `condition` [B, C, h, w] is what a ControlNet follows.
    """

    states: list[np.ndarray]
    seeds: list[int]
    condition: Tensor | None = None

    @classmethod
    def captions(
        cls, captions: Sequence[int], texts: Texts, *, seed: int, condition: Tensor | None = None
    ) -> "Drawn":
        """Captions of the cache; seeds count up."""
        states = [texts.of(caption) for caption in captions]
        return cls(states, list(range(seed, seed + len(states))), condition)

    def batch(self) -> tuple[Tensor, Tensor]:
        """States [B, N, D] float32, zero behind each text's end, and the mask [B, N]."""
        return padded(self.states)


def drawn_texts(recipe: CachedRecipe, features: Features, processes: Processes) -> Drawn:
    """The recipe's prompts; without any, the captions of evenly spaced samples.

    Every process must call it. A seed belongs to a prompt's index, also where others are left out.
    """
    options, texts = recipe.samples, features.texts
    if not options.prompts:
        spread = np.linspace(0, len(features) - 1, min(SHOWN, len(features)))
        chosen = [likeliest(features, recipe.data.rule, int(sample)) for sample in spread]
        return Drawn.captions(chosen, texts, seed=options.seed)
    ids = {text: index for index, text in enumerate(texts.captions)}
    unknown = [prompt for prompt in options.prompts if prompt not in ids]
    states = {prompt: texts.of(ids[prompt]) for prompt in options.prompts if prompt in ids}
    if unknown and options.autoencoder is not None:
        made = encoded(unknown, features, processes.device) if processes.first else None
        found = processes.broadcast_object(made)
        states |= found if isinstance(found, dict) else {}
        if isinstance(found, str) and processes.first:
            print(
                f"samples.prompts: {len(unknown)} of {len(options.prompts)} are left out:"
                f" {unknown[0]!r} is no caption of {recipe.data.folder}{near(unknown[0], ids)},"
                f" and cannot be encoded: {found}",
                file=sys.stderr,
            )
    kept = [index for index, prompt in enumerate(options.prompts) if prompt in states]
    return Drawn(
        [states[options.prompts[index]] for index in kept], [options.seed + i for i in kept]
    )


def encoded(
    prompts: Sequence[str], features: Features, device: torch.device
) -> dict[str, np.ndarray] | str:
    """The states [N, D] of each prompt, rounded as in the cache, or why they cannot be had."""
    try:
        text = text_encoder_of(features.texts, device).encode(prompts)
    except Exception as error:  # whatever a model's files, libraries or memory come to
        return " ".join(str(error).split()) or type(error).__name__
    rows = zip(prompts, text.states, text.mask, strict=True)
    return {prompt: halves(prompt, s[mask].float().cpu().numpy()) for prompt, s, mask in rows}


def sample_decoder(name: str, features: Features) -> Autoencoder:
    """The autoencoder that a recipe names for its samples; ConfigError if it fits no latent."""
    autoencoder = load_autoencoder(find_autoencoder(name)).float()
    channels = features.latent_shape[0]
    if autoencoder.latent_channels != channels:
        raise ConfigError(
            f"`samples.autoencoder` is {name!r}, which decodes {autoencoder.latent_channels}"
            f" channels; the features have {channels}: name the model that encoded them"
        )
    return autoencoder


def write_samples(recipe: CachedRecipe, step: int, latents: Tensor, features: Features) -> None:
    """The grid of a step from drawn latents [B, C, h, w], decoded where they are, in float32."""
    assert recipe.samples.autoencoder is not None
    decoder = sample_decoder(recipe.samples.autoencoder, features).to(latents.device)
    pixels = decoder.decode(latents)
    write_grid(Path(recipe.run), step, to_bytes(pixels), columns=SHOWN)
