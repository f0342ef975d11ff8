"""Gemma's tokenizer.json from a GGUF file, which holds the vocabulary and no merges.

Byte-pair merges are those by which each token of the vocabulary comes from two others, in the order
of the tokens, of one token the longest left half first: what transformers makes of the file, token
for token, without the seconds that importing it takes.
"""

import json
from typing import Any

from opensana.errors import WeightsError
from opensana.text.tokenizer import SPACE
from opensana.weights.gguf import GgufFile

CONTROL, USER_DEFINED = 3, 4
SPECIAL = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "pad_token": "padding_token_id",
    "unk_token": "unknown_token_id",
}


def read_tokenizer(file: GgufFile) -> tuple[str, dict[str, str]]:
    """The content of tokenizer.json, and the special tokens: {"pad_token": "<pad>", ...}."""
    known = {name.removeprefix("tokenizer.ggml."): v for name, v in file.metadata.items()}
    tokens: Any = known.get("tokens")
    kinds: Any = known.get("token_type")
    usable = known.get("model") == "llama" and isinstance(tokens, list) and isinstance(kinds, list)
    if not usable or len(tokens) != len(kinds) or not all(isinstance(t, str) for t in tokens):
        raise WeightsError(f"{file.path} holds no tokenizer of Gemma; put tokenizer.json beside it")
    # Several spaces are a token that merges make, as the normalizer spells it, and no added one.
    words = [SPACE * len(token) if token.strip(" ") == "" else token for token in tokens]
    kinds = [kind * (word == token) for kind, word, token in zip(kinds, words, tokens, strict=True)]
    special: dict[str, str] = {}
    for name, key in SPECIAL.items():
        number = known.get(key)
        if isinstance(number, int) and 0 <= number < len(tokens):
            special[name] = tokens[number]
    starts = [special["bos_token"]] if known.get("add_bos_token", "bos_token" in special) else []
    ends = [special["eos_token"]] if known.get("add_eos_token", False) else []
    return _json(words, kinds, special, starts, ends), special


def _json(
    words: list[str],
    kinds: list[int],
    special: dict[str, str],
    starts: list[str],
    ends: list[str],
) -> str:
    vocabulary = {word: number for number, word in enumerate(words)}
    merges = [
        (word[:cut], word[cut:])
        for word in vocabulary
        for cut in range(len(word) - 1, 0, -1)
        if word[:cut] in vocabulary and word[cut:] in vocabulary
    ]
    content = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            _added(number, word, special=kind == CONTROL)
            for number, (word, kind) in enumerate(zip(words, kinds, strict=True))
            if kind in (CONTROL, USER_DEFINED)
        ],
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": SPACE},
        "pre_tokenizer": {
            "type": "Split",
            "pattern": {"String": " "},
            "behavior": "MergedWithPrevious",
            "invert": False,
        },
        "post_processor": _template(vocabulary, starts, ends),
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": SPACE}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
            ],
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": special.get("unk_token"),
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": vocabulary,
            "merges": merges,
        },
    }
    return json.dumps(content, ensure_ascii=False, separators=(",", ":"))


def _added(number: int, word: str, *, special: bool) -> dict[str, Any]:
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": number, "content": word, **plain, "special": special}


def _template(vocabulary: dict[str, int], starts: list[str], ends: list[str]) -> dict[str, Any]:
    """One text, or two, with the tokens that stand before and behind each."""

    def around(name: str, kind: int) -> list[dict[str, Any]]:
        before, behind = (
            [{"SpecialToken": {"id": token, "type_id": kind}} for token in part]
            for part in (starts, ends)
        )
        return [*before, {"Sequence": {"id": name, "type_id": kind}}, *behind]

    return {
        "type": "TemplateProcessing",
        "single": around("A", 0),
        "pair": around("A", 0) + around("B", 1),
        "special_tokens": {
            token: {"id": token, "ids": [vocabulary[token]], "tokens": [token]}
            for token in (*starts, *ends)
        },
    }
