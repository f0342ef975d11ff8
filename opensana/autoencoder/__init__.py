"""DC-AE, the deep-compression autoencoder (paper 2.1; DC-AE paper, arXiv 2410.10733)."""

from opensana.autoencoder.config import AutoencoderConfig
from opensana.autoencoder.model import Autoencoder

__all__ = ["Autoencoder", "AutoencoderConfig"]
