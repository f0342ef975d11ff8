"""Data sets of the Hugging Face hub: `hf://datasets/OWNER/NAME`, optionally with `@REVISION`.

Only data files are downloaded, once; a data set's own code is never run.
"""

import re

from opensana.datasets.sources.table import TableSource, datasets
from opensana.errors import DataError
from opensana.pictures.decode import LIMITS, Limits

PREFIX = "hf://datasets/"
ADDRESS = re.compile(r"([\w][\w.-]*/[\w][\w.-]*)(?:@([\w./-]+))?")


def open_hub(address: str, *, split: str = "train", limits: Limits = LIMITS) -> TableSource:
    """One split of a data set on the hub; DataError if it is missing or has no pictures."""
    match = ADDRESS.fullmatch(address.removeprefix(PREFIX))
    if not match:
        raise DataError(f"{address!r} is not of the form {PREFIX}OWNER/NAME or ...@REVISION")
    try:
        table = datasets().load_dataset(match[1], revision=match[2], split=split)
    except Exception as error:  # the library raises errors of many others
        raise DataError(f"{address} cannot be loaded ({type(error).__name__}: {error})") from error
    return TableSource(address, table, limits=limits)
