"""LoraFolder: the LoRA files that requests may name, each checked before it is listed.

A request's name is only ever looked up in the list; it never becomes a path. A file is copied
before it is read, since reading maps it: one cut short meanwhile would end the whole process.
"""

import json
import stat
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from opensana.errors import ConfigError, OpensanaError, RequestError, WeightsError
from opensana.runtime.shortage import ran_out
from opensana.serve.jobs.order import LoraChoice
from opensana.serve.logs import log
from opensana.weights.lora import PEFT_CONFIG, Lora, file_in, read_lora
from opensana.weights.safetensors import PICKLED, read_metadata

MOST_BYTES = 2 * 2**30
"""Of one file."""
MOST_CONFIG_BYTES = 2**20
MOST_NAMED = 8
"""By one request."""
LONGEST_NAME = 100
NAMES_SHOWN, LONGEST_SHOWN, LONGEST_REASON = 20, 60, 1000
MOST_WORDS, LONGEST_WORD = 10, 100
NO_NAME = frozenset('<>:"/\\|?*,')
"""What would end a tag in a prompt, or make another path of the name somewhere else."""


def check_folder(folder: Path) -> None:
    """ConfigError unless it is there."""
    if not folder.is_dir():
        raise ConfigError(f"no folder {folder}; name one with LoRA files, or leave --loras out")


@dataclass(frozen=True)
class ListedLora:
    """A file that may be chosen."""

    name: str
    file: Path
    state: tuple[int, ...]
    """By which a file that was changed is known."""
    sha256: str
    rank: int
    bytes: int
    trigger_words: tuple[str, ...]
    """That its metadata names for prompts."""

    def view(self) -> dict[str, Any]:
        """The JSON that clients get: never where it is."""
        return {key: value for key, value in asdict(self).items() if key not in ("file", "state")}


class LoraFolder:
    """Safe from any thread."""

    def __init__(self, folder: Path, check: Callable[[Lora], None]) -> None:
        """`check` raises a WeightsError for what does not fit the model; ConfigError."""
        check_folder(folder)
        self._folder, self._check = folder.resolve(), check
        self._lock = threading.Lock()
        self._listed: dict[str, ListedLora] = {}
        self._refused: dict[Path, tuple[int, ...]] = {}
        self.refresh()

    def refresh(self) -> None:
        """List the folder as it is now; files that are as they were are not read again."""
        with self._lock:
            before = {one.file: one for one in self._listed.values()}
            refused, self._refused = self._refused, {}
            listed: dict[str, ListedLora] = {}
            for entry in sorted(self._folder.iterdir()):
                if entry.name.startswith(".") or not _may_be_one(entry):
                    continue
                state = ()
                try:
                    file = self._file(entry)
                    state = _state(file)
                    if refused.get(entry) == state:
                        self._refused[entry] = state
                        continue
                    known = before.get(file)
                    new = known if known and known.state == state else self._read(entry, file)
                    if new.name in listed:
                        raise WeightsError(f"there is another LoRA {new.name!r}; rename one")
                    listed[new.name] = new
                # Whatever a file is made of, it concerns that file alone.
                except Exception as error:
                    self._refused[entry] = state
                    if refused.get(entry) != state:
                        log("lora_not_listed", file=entry.name, why=self._why(error))
            self._listed = listed

    def view(self) -> list[dict[str, Any]]:
        """All that are listed, by name."""
        return [one.view() for one in self._listed.values()]

    def decide(self, choices: Sequence[LoraChoice]) -> tuple[LoraChoice, ...]:
        """The choices with their digests; RequestError for one that cannot be had."""
        if len(choices) > MOST_NAMED:
            raise _wrong(f"{len(choices)} LoRAs are named; the most is {MOST_NAMED}")
        decided = tuple(replace(one, sha256=self._find(one).sha256) for one in choices)
        for index, one in enumerate(decided):
            if one.name in {other.name for other in decided[:index]}:
                raise _wrong(f"the LoRA {one.name!r} is named twice; name it once, with one scale")
        return decided

    def read(self, choice: LoraChoice) -> Lora:
        """A chosen LoRA; RequestError if its file is not the one that was listed any more."""
        one = self._find(choice)
        try:
            lora, _ = self._copied(one.file)
        except Exception as error:
            if ran_out(error):
                raise
            raise _wrong(f"the LoRA {one.name!r} cannot be read: {self._why(error)}") from None
        _check_same(choice, lora.sha256)
        return lora

    def _find(self, choice: LoraChoice) -> ListedLora:
        listed = self._listed
        one = listed.get(choice.name)
        if one is None:
            raise _wrong(f"the LoRA {_shown(choice.name)} is not listed here{_known(listed)}")
        _check_same(choice, one.sha256)
        return one

    def _file(self, entry: Path) -> Path:
        """The safetensors file that an entry is, or holds."""
        if entry.suffix.lower() in PICKLED:
            raise WeightsError("it may hold code and is never opened: get the safetensors file")
        self._check_inside(entry)
        return file_in(entry) if entry.is_dir() else entry

    def _check_inside(self, path: Path) -> None:
        if not path.resolve().is_relative_to(self._folder):
            raise WeightsError("it is a link out of the folder; put the file itself there")

    def _read(self, entry: Path, file: Path) -> ListedLora:
        name = entry.name if entry.is_dir() else entry.stem
        if len(name) > LONGEST_NAME or not name.isprintable() or NO_NAME.intersection(name):
            raise WeightsError(
                f"its name must be at most {LONGEST_NAME} printable characters, without any of "
                f"{' '.join(sorted(NO_NAME))}; rename it"
            )
        state = _state(file)
        lora, metadata = self._copied(file)
        for note in lora.notes:
            log("lora_note", file=entry.name, note=self._why(note))
        words = tuple(_trigger_words(metadata))
        return ListedLora(name, file, state, lora.sha256, lora.rank, state[-1], words)

    def _copied(self, file: Path) -> tuple[Lora, dict[str, str]]:
        """A LoRA that fits the model, and the texts in its header."""
        self._check_inside(file)
        with TemporaryDirectory(prefix="opensana-") as parent:
            held = Path(parent) / file.parent.name  # where there is a folder, it names the LoRA
            held.mkdir()
            _copy(file, held, MOST_BYTES)
            config = file.parent / PEFT_CONFIG
            if config.is_file() and config.resolve().is_relative_to(self._folder):
                _copy(config, held, MOST_CONFIG_BYTES)
            try:
                # With a folder of its own, its settings count, as for `opensana generate --lora`.
                lora = read_lora(held / file.name if file.parent == self._folder else held)
                self._check(lora)
                assert lora.sha256, "known while the copy is there"
                return lora, read_metadata(lora.file)
            except OpensanaError as error:
                raise WeightsError(str(error).replace(f"{held}/", "")) from None

    def _why(self, said: object) -> str:
        """In one line, without where the folder is."""
        text = said.strerror if isinstance(said, OSError) else str(said)
        short = " ".join((text or "").replace(f"{self._folder}/", "").split())
        return short[:LONGEST_REASON] or type(said).__name__


def _may_be_one(entry: Path) -> bool:
    """Pictures, notes and settings lie beside LoRAs, and are none."""
    return entry.is_dir() or entry.suffix.lower() in (".safetensors", *PICKLED)


def _state(file: Path) -> tuple[int, ...]:
    found = file.stat()
    if not stat.S_ISREG(found.st_mode):
        raise WeightsError("it is no plain file")
    return found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size


def _copy(file: Path, folder: Path, most: int) -> None:
    """WeightsError for a file of more bytes, also for one that grows meanwhile."""
    if _state(file)[-1] > most:
        raise WeightsError(f"{file.name} is larger than {most >> 20} MiB")
    with file.open("rb") as source, (folder / file.name).open("wb") as copy:
        for block in iter(lambda: source.read(2**20), b""):
            copy.write(block)
            if copy.tell() > most:
                raise WeightsError(f"{file.name} grows while it is read")


def _check_same(choice: LoraChoice, sha256: str) -> None:
    if choice.sha256 not in (None, sha256):
        raise _wrong(
            f"the LoRA {choice.name!r} is another file now, {sha256[:10]}... in place of "
            f"{_shown(str(choice.sha256)[:10])}"
        )


def _wrong(message: str) -> RequestError:
    return RequestError(message, field="lora")


def _known(listed: dict[str, ListedLora]) -> str:
    if not listed:
        return ": none is; start the server with --loras FOLDER"
    more = len(listed) - NAMES_SHOWN
    names = ", ".join(list(listed)[:NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")
    return f"; choose of: {names}"


def _shown(name: str) -> str:
    return repr(name if len(name) <= LONGEST_SHOWN else name[:LONGEST_SHOWN] + "...")


def _trigger_words(metadata: dict[str, str]) -> Iterator[str]:
    """What training tools note for prompts: a phrase, or how often each tag of the pictures was."""
    phrase = metadata.get("modelspec.trigger_phrase", "")
    words = [word.strip() for word in phrase.split(",")] if phrase else _frequent_tags(metadata)
    good = [word for word in words if word and word.isprintable() and len(word) <= LONGEST_WORD]
    yield from good[:MOST_WORDS]


def _frequent_tags(metadata: dict[str, str]) -> list[str]:
    try:
        folders = json.loads(metadata.get("ss_tag_frequency", "{}")).values()
        counts = Counter[str]()
        for tags in folders:
            counts.update({str(tag).strip(): int(count) for tag, count in tags.items()})
    except (ValueError, TypeError, AttributeError, RecursionError):
        return []
    return [tag for tag, _ in counts.most_common(MOST_WORDS)]
