"""Detect the form of a data set and open its source."""

from pathlib import Path

from opensana.datasets.sources.beside import PICTURES, is_hidden, suffix_of
from opensana.datasets.sources.files import files_below
from opensana.datasets.sources.folder import FolderSource
from opensana.datasets.sources.hub import PREFIX, open_hub
from opensana.datasets.sources.indexed import Indexed
from opensana.datasets.sources.official import SHARD_INDEX
from opensana.datasets.sources.parquet import open_parquet
from opensana.datasets.sources.tables import TABLES
from opensana.datasets.sources.tar import TarSource
from opensana.errors import DataError
from opensana.pictures.decode import LIMITS, Limits

PACKED = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst", ".zip")
COMPRESSED = "is compressed; unpack it to a plain .tar"


def open_source(path: str | Path, *, split: str = "train", limits: Limits = LIMITS) -> Indexed:
    """Open a folder, a shard, a parquet file, a table, or `hf://datasets/...`.

    `split` is for the hub only. DataError if nothing is there or the form is unknown; samples that
    cannot be used are in the source's `rejects`.
    """
    if str(path).startswith(PREFIX):
        return open_hub(str(path), split=split, limits=limits)
    path = Path(path)
    if path.is_dir():
        return _open_folder(path, limits)
    if not path.exists():
        raise DataError(f"there is no data at {path}; a hub data set is {PREFIX}OWNER/NAME")
    if path.name.lower().endswith(PACKED):
        raise _packed(path)
    if path.suffix.lower() == ".tar":
        source = TarSource(path.parent, [path], limits=limits)
        source.where = str(path)
        source.count_files(sorted(source.files), source.files)
        return source
    if path.suffix.lower() == ".parquet":
        source = open_parquet(path, [path], limits=limits)
        source.count_files([path.name], [path.name])
        return source
    if path.name.lower() in (*TABLES, SHARD_INDEX):
        return _open_folder(path.parent, limits)
    raise DataError(
        f"{path} is of no known kind; expected a folder, a .tar, a .parquet, {', '.join(TABLES)} "
        f"or {PREFIX}OWNER/NAME"
    )


def _open_folder(folder: Path, limits: Limits) -> Indexed:
    """Shards before parquet: img2dataset writes a parquet table of URLs beside each shard."""
    present = files_below(folder, lambda *_: None)
    files = {name: path for name, path in present.items() if not is_hidden(name)}
    shards = [path for name, path in files.items() if suffix_of(name) == ".tar"]
    tables = [path for name, path in files.items() if suffix_of(name) == ".parquet"]
    packed = [name for name in files if name.lower().endswith(PACKED)]
    if not shards and not tables:
        source = FolderSource(folder, limits=limits)
        if packed and not len(source):
            raise _packed(files[packed[0]])
        return source
    if any(suffix_of(name) in PICTURES for name in files):
        raise DataError(
            f"{folder} holds pictures and also {(shards or tables)[0].name!r}; "
            "put them into folders of their own, or name the one that is meant"
        )
    if shards:
        source = TarSource(folder, shards, limits=limits)
        read = source.files
        for name in packed:
            source.reject(name, COMPRESSED)
    else:
        source = open_parquet(folder, tables, limits=limits)
        read = {path.relative_to(folder).as_posix() for path in tables}
    source.count_files(present, read, dict.fromkeys(packed, COMPRESSED))
    return source


def _packed(path: Path) -> DataError:
    return DataError(
        f"{path} is compressed, so its samples cannot be reached in any order; unpack it to a "
        "plain .tar first (pictures hardly get smaller by compression)"
    )
