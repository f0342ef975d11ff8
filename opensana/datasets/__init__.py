"""Data sets of pictures and captions: reading, filtering, writing."""
