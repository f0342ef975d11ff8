"""The forms in which a data set is written, one module each; `sources/` reads them back.

Pictures are written as the bytes that they were. A key becomes a file name that is safe everywhere;
the key itself is kept in the JSON where that changes it.
"""

from opensana.datasets.writers.forms import WRITERS, Writer

__all__ = ["WRITERS", "Writer"]
