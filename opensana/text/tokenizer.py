"""A tokenizer that is its tokenizer.json, read by the library that transformers reads it with.

Byte-pair merges join what is there: of a text in ASCII, no merge of other characters can come to
pass. So a file without those gives the same tokens, and is read in half the time.
"""

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

SPACE = "\N{LOWER ONE EIGHTH BLOCK}"
"""Stands for a space in the tokens of SentencePiece."""


class PreTrainedTokenizerFast:
    """Texts to token ids: the name, the call and the files of transformers' class."""

    def __init__(self, file: Path, special: dict[str, str]) -> None:
        """`special` names the special tokens: {"pad_token": "<pad>", ...}."""
        self.file, self.special = file, special
        # One of the two is read now, so that a damaged file is known at once.
        small = ascii_file(file)
        self._ascii = _read(small) if small.is_file() else self._any

    @cached_property
    def _any(self) -> Tokenizer:
        return _read(self.file)

    def __call__(
        self,
        text: str | Sequence[str],
        *,
        truncation: bool = False,
        max_length: int | None = None,
        return_offsets_mapping: bool = False,
    ) -> dict[str, Any]:
        """`input_ids` of a text, or of each in a list; and `offset_mapping` if asked for."""
        texts = [text] if isinstance(text, str) else list(text)
        backend = self._ascii if all(one.isascii() for one in texts) else self._any
        if truncation and max_length is not None:
            backend.enable_truncation(max_length)
        else:
            backend.no_truncation()
        rows = backend.encode_batch(texts)
        found: dict[str, Any] = {"input_ids": [row.ids for row in rows]}
        if return_offsets_mapping:
            found["offset_mapping"] = [row.offsets for row in rows]
        return {name: value[0] for name, value in found.items()} if isinstance(text, str) else found

    @property
    def pad_token_id(self) -> int | None:
        return self._id("pad_token")

    @property
    def eos_token_id(self) -> int | None:
        return self._id("eos_token")

    def _id(self, name: str) -> int | None:
        return self._ascii.token_to_id(self.special[name]) if name in self.special else None

    def save_pretrained(self, folder: Path) -> None:
        """Write tokenizer.json and tokenizer_config.json, as transformers reads them."""
        folder.mkdir(parents=True, exist_ok=True)
        self._any.no_truncation()
        self._any.save(str(folder / "tokenizer.json"))
        config = {"tokenizer_class": type(self).__name__, **self.special}
        (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


def _read(file: Path) -> Tokenizer:
    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.no_padding()
    return tokenizer


def ascii_file(file: Path) -> Path:
    """Where the tokenizer of ASCII texts lies that belongs to a tokenizer.json."""
    return file.with_name("tokenizer-ascii.json")


def write_ascii(file: Path) -> None:
    """Write what a byte-pair tokenizer.json of SentencePiece needs for texts in ASCII.

    Each merge is one string, the older form, which is read faster than a pair.
    """
    content = json.loads(file.read_text("utf-8"))
    model = content["model"]
    assert model["type"] == "BPE"
    vocabulary = {word: number for word, number in model["vocab"].items() if _reachable(word)}
    merges = (pair for pair in model["merges"] if all(word in vocabulary for word in pair))
    model |= {"vocab": vocabulary, "merges": [" ".join(pair) for pair in merges]}
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":"))
    ascii_file(file).write_text(text, "utf-8")


def _reachable(word: str) -> bool:
    return word.replace(SPACE, "").isascii()
