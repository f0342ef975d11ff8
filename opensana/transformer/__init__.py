"""The Linear DiT: from a noisy latent, a time and a text to a velocity (paper 2.2)."""

from opensana.transformer.config import TransformerConfig
from opensana.transformer.initialisation import initialise
from opensana.transformer.model import PreparedText, Transformer

__all__ = ["PreparedText", "Transformer", "TransformerConfig", "initialise"]
