"""Readers of pictures and captions, one module per form; `open_source` detects the form.

Every source has random access, unique keys and a stable order, and lists what it refused.
"""

from opensana.datasets.sources.opening import open_source

__all__ = ["open_source"]
