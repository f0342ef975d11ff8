"""A small CLIP on the frozen states of the text encoder: trained here, offline, for small sets."""

from opensana.clip.model import Clip, ClipConfig, contrastive_loss, load_clip

__all__ = ["Clip", "ClipConfig", "contrastive_loss", "load_clip"]
