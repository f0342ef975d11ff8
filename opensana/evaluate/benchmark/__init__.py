"""Figures of drawn pictures against any folder of pictures with prompts."""
