"""Load the text encoder that made a feature cache, to encode further captions."""

import torch

from opensana.device import faithful_dtype, parse_dtype
from opensana.errors import DataError
from opensana.features.manifest import tensor_hash
from opensana.features.texts import Texts
from opensana.layers.weight_only import PlainState
from opensana.runtime.placing import prepare_for_inference
from opensana.text.demo_encoder import SHA256, gemma3_270m_folder
from opensana.text.encoder import TextEncoder
from opensana.weights.locate import is_here, locate

PACKAGED = ("gemma3-270m", "gemma-3-270m")
"""The names of emoji-256's text encoder in caches of `opensana encode` and of the emoji recipes."""


def text_encoder_of(texts: Texts, device: torch.device) -> TextEncoder:
    """The encoder that made these texts, on a device.

    Nothing is downloaded. DataError if the model is not recorded, not on this machine, or has other
    weights by now; MissingExtraError if its package is not installed.
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
    # The emoji recipes store the SHA-256 of the package's file instead of that of the weights.
    known = packaged and keys["text_encoder_hash"] == SHA256
    if not known and tensor_hash(PlainState(encoder.model)) != keys["text_encoder_hash"]:
        raise DataError(f"{name or folder} has other weights than when it encoded the cache")
    prepare_for_inference(encoder.model, device, faithful_dtype(device, None, dtype))
    return encoder
