"""Labelling: captions by several VLMs, their CLIP scores, measurements (paper 3.1)."""

__all__: list[str] = []
