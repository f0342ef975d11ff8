"""The Linear DiT: noisy latent, timestep and prompt embeddings to a velocity (paper 2.2)."""

from opensana.transformer.config import TransformerConfig
from opensana.transformer.initialisation import initialise
from opensana.transformer.model import PreparedText, Transformer

__all__ = ["PreparedText", "Transformer", "TransformerConfig", "initialise"]
