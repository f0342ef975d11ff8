"""Encoding a data set into the feature cache that the transformer's training reads."""

from opensana.encode.encoders import Encoders, load_encoders
from opensana.encode.job import EncodeOptions, encode

__all__ = ["EncodeOptions", "Encoders", "encode", "load_encoders"]
