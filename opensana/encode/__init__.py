"""Encoding a data set into the feature cache that the transformer's training reads."""

from opensana.encode.blocks import BlockEncoder, EncodeOptions
from opensana.encode.encoders import Encoders, load_encoders
from opensana.encode.job import encode, encode_on

__all__ = ["BlockEncoder", "EncodeOptions", "Encoders", "encode", "encode_on", "load_encoders"]
