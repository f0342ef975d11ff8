"""Writers of data sets, one module per form; `sources/` reads them back.

Pictures are written byte for byte. Keys become file names that are safe on every system; a key that
this changes is kept in the JSON.
"""

from opensana.datasets.writers.forms import WRITERS, Writer

__all__ = ["WRITERS", "Writer"]
