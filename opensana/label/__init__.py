"""Labelling: captions by several vision-language models, their CLIP scores, facts (paper 3.1)."""

__all__: list[str] = []
