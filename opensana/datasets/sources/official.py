"""The caption files of the released code, beside a folder's pictures or beside a tar shard.

    KEY{suffix}.json               {KEY: {caption type: text}}     suffix "" or _CAPTIONER
    KEY{suffix}_clip_score.json    {KEY: {caption type: score}}    _prompt: the score of KEY.txt
    SHARD{suffix}.json, SHARD{suffix}_clip_score.json              the same for a whole shard
    meta_data.json                 {"img_names": [KEY, ...]}
    wids-meta.json                 the shards, how many samples and bytes each has

The caption type is kept in `Caption.settings["caption_type"]`.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from opensana.datasets.record import Caption, Record
from opensana.datasets.sources.fields import Note, clean, tidy

SCORES = "_clip_score"
PROMPT = "_prompt"
FILE = "file"
TYPE = "caption_type"
FOLDER_INDEX = "meta_data.json"
SHARD_INDEX = "wids-meta.json"

BySuffix = Mapping[str, Mapping[str, Any]]


def captions_with_suffixes(
    captions: Iterable[Caption], files: BySuffix, note: Note
) -> tuple[Caption, ...]:
    """The captions that a sample has already, scored, and those of its caption files.

    A prompt that a caption file repeats is left to that file. `files` has for each suffix what the
    file says of this sample: texts or scores by caption type.
    """
    prompt_scores = files.get(PROMPT + SCORES, {})
    found: list[Caption] = []
    for suffix in sorted(suffix for suffix in files if not suffix.endswith(SCORES)):
        scores = files.get(suffix + SCORES, {})
        for kind, text in files[suffix].items():
            if not isinstance(text, str):
                note(f"the caption {kind!r:.40} was left out: expected a text, got {text!r:.40}")
            elif cleaned := clean(text, note):
                captioner = tidy(suffix.removeprefix("_")) if suffix else FILE
                score, settings = _score(scores.get(kind)), {TYPE: tidy(kind)}
                found.append(Caption(cleaned, captioner, settings=settings, score=score))
    repeated = {caption.text for caption in found}
    own = [
        replace(caption, score=_score(prompt_scores.get("prompt"), caption.score))
        if caption.captioner == FILE
        else caption
        for caption in captions
        if caption.text not in repeated
    ]
    return (*own, *found)


def suffix_files(record: Record) -> tuple[str, dict[str, dict[str, Any]]]:
    """The prompt of a record, and for each suffix the texts or scores by caption type.

    The released loader needs a prompt: a record without one lends it its first caption.
    """
    prompt, files = "", dict[str, dict[str, Any]]()
    for caption in record.captions:
        if caption.captioner == FILE and not prompt and TYPE not in caption.settings:
            prompt, suffix, kind = caption.text, PROMPT, "prompt"
        else:
            suffix = suffix_of(caption.captioner)
            texts = files.setdefault(suffix, {})
            kind = _free(str(caption.settings.get(TYPE, "caption")), texts)
            texts[kind] = caption.text
        if caption.score is not None:
            files.setdefault(suffix + SCORES, {})[kind] = caption.score
    return prompt or (record.captions[0].text if record.captions else ""), files


def suffix_of(captioner: str) -> str:
    """_CAPTIONER as part of a file name; the captions that came with the picture have none."""
    return "" if captioner == FILE else "_" + re.sub(r"[^\w.\-]", "-", captioner)


def _free(kind: str, taken: Mapping[str, Any]) -> str:
    numbers = (kind if number == 1 else f"{kind}_{number}" for number in range(1, len(taken) + 2))
    return next(name for name in numbers if name not in taken)


def _score(value: Any, default: float | None = None) -> float | None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if number and abs(value) < 1e6 else default
