"""A small CLIP on the states of the text encoder."""
