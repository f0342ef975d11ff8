"""Encoding a data set into the feature cache that the transformer's training reads."""

from opensana.features.blocks import BlockEncoder, EncodeOptions
from opensana.features.encode import encode, encode_on
from opensana.features.encoders import Encoders, load_encoders

__all__ = ["BlockEncoder", "EncodeOptions", "Encoders", "encode", "encode_on", "load_encoders"]
