"""The layouts of the official code (see `opensana/datasets/sources/official.py`)."""

from collections import defaultdict
from pathlib import Path
from typing import Any

from opensana.datasets.record import Record
from opensana.datasets.sources import official
from opensana.datasets.writers.names import Names, encoded, key_if_changed, suffix_of, write_file
from opensana.datasets.writers.tar import Shards


class OfficialFolderWriter:
    """KEY.png, KEY.txt, the caption and score files of each, and meta_data.json."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.names, self.keys = folder, Names(flat=True), list[str]()

    def add(self, record: Record, picture: bytes) -> None:
        name = self.names.take(record.key)
        self.keys.append(name)
        prompt, files = official.suffix_files(record)
        write_file(self.folder, name + suffix_of(picture), picture)
        write_file(self.folder, f"{name}.txt", prompt.encode("utf-8"))
        for suffix, values in files.items():
            write_file(self.folder, f"{name}{suffix}.json", encoded({name: values}))

    def close(self) -> None:
        write_file(self.folder, official.FOLDER_INDEX, encoded({"img_names": self.keys}))


class OfficialShardWriter:
    """00000.tar, its caption and score files beside it, and wids-meta.json."""

    def __init__(self, folder: Path, shard_size: int) -> None:
        self.shards, self.names = Shards(folder, shard_size), Names(flat=True, dots=False)
        self.files: dict[str, dict[str, Any]] = defaultdict(dict)

    def add(self, record: Record, picture: bytes) -> None:
        name, suffix = self.names.take(record.key), suffix_of(picture)
        if self.shards.counts and self.shards.counts[-1] == self.shards.size:
            self._write_files()
        prompt, files = official.suffix_files(record)
        row = {
            "file_name": name + suffix,
            "prompt": prompt,
            "width": record.width,
            "height": record.height,
        } | key_if_changed(record, name)
        self.shards.add(name, {suffix: picture, ".json": encoded(row)})
        for caption_suffix, values in files.items():
            self.files[caption_suffix][name] = values

    def close(self) -> None:
        self._write_files()
        self.shards.close()
        shards = [self.shards.path(number) for number in range(len(self.shards.counts))]
        entries = [
            {"url": path.name, "nsamples": count, "filesize": path.stat().st_size}
            for path, count in zip(shards, self.shards.counts, strict=True)
        ]
        index = {
            "name": "opensana",
            "__kind__": "SANA-WebDataset",
            "wids_version": 1,
            "shardlist": entries,
        }
        write_file(self.shards.folder, official.SHARD_INDEX, encoded(index))

    def _write_files(self) -> None:
        stem = self.shards.path(len(self.shards.counts) - 1).stem
        for suffix, values in self.files.items():
            write_file(self.shards.folder, f"{stem}{suffix}.json", encoded(values))
        self.files.clear()
