"""Parquet files with a column of encoded images."""

from collections.abc import Sequence
from pathlib import Path

from opensana.datasets.sources.table import TableSource, datasets
from opensana.errors import DataError, MissingExtraError
from opensana.pictures.decode import LIMITS, Limits

MOST_GROUP_BYTES = 2 << 30


def open_parquet(
    where: Path, files: Sequence[Path], *, limits: Limits = LIMITS, cache: Path | None = None
) -> TableSource:
    """The rows of all files; DataError if one cannot be read.

    The sizes in the footer are checked before anything is decompressed.
    """
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise MissingExtraError("data", "pyarrow") from None
    for file in files:
        try:
            with ParquetFile(file) as parquet:
                footer = parquet.metadata
                sizes = [footer.row_group(i).total_byte_size for i in range(footer.num_row_groups)]
        except (ArrowException, OSError) as error:
            raise DataError(f"{file} cannot be read as parquet ({error})") from None
        if sizes and max(sizes) > MOST_GROUP_BYTES:
            raise DataError(
                f"{file} has a row group of {max(sizes):,} bytes, the most is "
                f"{MOST_GROUP_BYTES:,}; write it with smaller row groups"
            )
    try:
        table = datasets().Dataset.from_parquet(
            [str(file) for file in files], cache_dir=cache and str(cache)
        )
    except Exception as error:  # the library wraps errors in many ways
        cause = error.__cause__ or error
        raise DataError(f"{where} cannot be read as parquet ({cause})") from error
    return TableSource(str(where), table, limits=limits)
