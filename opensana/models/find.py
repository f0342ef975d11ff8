"""Which folder holds the network that a name means: one rule for every command and recipe.

A name is a model that comes along, a whole model's folder, the folder above a single network (as a
training or `opensana convert` leaves it), the network's own folder, or a hub id.
"""

from pathlib import Path

from opensana.autoencoder.config import AutoencoderConfig
from opensana.models.parts import (
    autoencoder_config,
    autoencoder_folder,
    transformer_config,
    transformer_folder,
)
from opensana.models.presets import AUTOENCODERS, TRANSFORMERS, published_autoencoder
from opensana.transformer.config import TransformerConfig
from opensana.weights.locate import is_here, locate, preset_names
from opensana.weights.published_models import published_model


def find_transformer(name: str | Path) -> Path:
    """The folder with the config.json of the transformer that a name means; WeightsError if none.

    A hub id that is not on this machine is downloaded.
    """
    return _part_above(name, "transformer") or transformer_folder(locate(name))


def find_autoencoder(name: str | Path) -> Path:
    """The same of an autoencoder."""
    return _part_above(name, "vae") or autoencoder_folder(locate(name))


def transformer_config_of(name: str) -> TransformerConfig:
    """The shape of the transformer that a name means.

    A published model that is not on this machine is known by its name and not downloaded.
    """
    known = None if is_here(name) else published_model(name)
    if known is not None:
        return TRANSFORMERS[known.transformer]
    return transformer_config(find_transformer(name))


def autoencoder_config_of(name: str) -> AutoencoderConfig:
    """The same of an autoencoder."""
    if not is_here(name):
        known = published_model(name)
        found = AUTOENCODERS[known.autoencoder] if known else published_autoencoder(name)
        if found is not None:
            return found
    return autoencoder_config(find_autoencoder(name))


def _part_above(name: str | Path, part: str) -> Path | None:
    """The network inside a folder that is no whole model and needs no index for it."""
    folder = Path(name).expanduser() / part
    here = str(name) not in preset_names() and (folder / "config.json").is_file()
    return folder if here else None
