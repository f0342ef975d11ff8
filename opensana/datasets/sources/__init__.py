"""Where pictures and captions come from, one module a form; `open_source` finds out which it is.

Every source is numbered, has unique keys and the same order each time, and says what it refused.
"""

from opensana.datasets.sources.opening import open_source

__all__ = ["open_source"]
