"""The user's cache of what can be made again: the prepared text encoder, compiled kernels."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """$OPENSANA_CACHE, or `opensana` in the user's cache folder."""
    if own := os.environ.get("OPENSANA_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "opensana"
