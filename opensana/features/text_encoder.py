"""The text encoder that a cache of features names, to read other captions just as those in it."""

import torch

from opensana.device import parse_dtype, resolve_dtype
from opensana.errors import DataError
from opensana.features.manifest import tensor_hash
from opensana.features.texts import Texts
from opensana.runtime.placing import prepare_for_inference
from opensana.text.demo_encoder import SHA256, gemma3_270m_folder
from opensana.text.encoder import TextEncoder
from opensana.weights.locate import is_here, locate

PACKAGED = ("gemma3-270m", "gemma-3-270m")
"""What `opensana encode` and the recipes of the emoji call the text encoder of emoji-256."""


def text_encoder_of(texts: Texts, device: torch.device) -> TextEncoder:
    """The encoder that made these texts, on a device.

    Nothing is downloaded. DataError if the texts do not say which model it was, or if that is not
    on this machine or has other weights by now; MissingExtraError without the package of one.
    """
    keys = texts.keys
    packaged = keys["text_encoder"] in PACKAGED
    name = texts.made_by.get("model")
    if packaged:
        folder = gemma3_270m_folder()
    elif name is None:
        raise DataError("the cache does not say which model encoded it; encode it again")
    elif not is_here(name):
        raise DataError(f"{name}, which encoded the cache, is not on this machine")
    else:
        folder = locate(name)
    dtype = parse_dtype(texts.made_by.get("dtype", "float32"))
    encoder = TextEncoder.load(
        folder, dtype=dtype, instruction=keys["instruction"], max_tokens=keys["max_tokens"]
    )
    # The recipes of the emoji note the digest of the package's file in place of the weights'.
    known = packaged and keys["text_encoder_hash"] == SHA256
    if not known and tensor_hash(encoder.model.state_dict()) != keys["text_encoder_hash"]:
        raise DataError(f"{name or folder} has other weights than when it encoded the cache")
    prepare_for_inference(encoder.model, device, resolve_dtype(device, None, dtype))
    return encoder
