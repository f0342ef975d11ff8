"""The caption files of the official code, beside a folder's pictures or beside a tar shard.

    KEY{suffix}.json               {KEY: {caption type: text}}     suffix "" or _CAPTIONER
    KEY{suffix}_clip_score.json    {KEY: {caption type: score}}    _prompt: the score of KEY.txt
    SHARD{suffix}.json, SHARD{suffix}_clip_score.json              the same for a whole shard
    meta_data.json                 {"img_names": [KEY, ...]}
    wids-meta.json                 the shards, with samples and bytes of each

The caption type is kept in `Caption.settings["caption_type"]`.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from opensana.datasets.record import Caption, Record
from opensana.datasets.sources.fields import Warn, sanitise, tidy

SCORES = "_clip_score"
PROMPT = "_prompt"
FILE = "file"
TYPE = "caption_type"
FOLDER_INDEX = "meta_data.json"
SHARD_INDEX = "wids-meta.json"

BySuffix = Mapping[str, Mapping[str, Any]]


def captions_with_suffixes(
    captions: Iterable[Caption], files: BySuffix, warn: Warn
) -> tuple[Caption, ...]:
    """A sample's own captions with their scores, and those of its caption files.

    A text that is in both is taken from the caption file. `files` has the texts or scores of this
    sample by suffix and caption type.
    """
    prompt_scores = files.get(PROMPT + SCORES, {})
    found: list[Caption] = []
    for suffix in sorted(suffix for suffix in files if not suffix.endswith(SCORES)):
        scores = files.get(suffix + SCORES, {})
        for kind, text in files[suffix].items():
            if not isinstance(text, str):
                warn(f"the caption {kind!r:.40} was left out: expected a text, got {text!r:.40}")
            elif sanitised := sanitise(text, warn):
                captioner = tidy(suffix.removeprefix("_")) if suffix else FILE
                score, settings = _score(scores.get(kind)), {TYPE: tidy(kind)}
                found.append(Caption(sanitised, captioner, settings=settings, score=score))
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
    """The prompt of a record, and its texts or scores by suffix and caption type.

    The official loader needs a prompt: a record without one uses its first caption.
    """
    prompt, files = "", dict[str, dict[str, Any]]()
    for caption in record.captions:
        if caption.captioner == FILE and not prompt and TYPE not in caption.settings:
            prompt, suffix, kind = caption.text, PROMPT, "prompt"
        else:
            suffix = suffix_of(caption.captioner)
            texts = files.setdefault(suffix, {})
            wanted = kind = str(caption.settings.get(TYPE, "caption"))
            number = 1
            while kind in texts:
                number += 1
                kind = f"{wanted}_{number}"
            texts[kind] = caption.text
        if caption.score is not None:
            files.setdefault(suffix + SCORES, {})[kind] = caption.score
    return prompt or (record.captions[0].text if record.captions else ""), files


def suffix_of(captioner: str) -> str:
    """_CAPTIONER as part of a file name; "" for the captions that came with the picture."""
    return "" if captioner == FILE else "_" + re.sub(r"[^\w.\-]", "-", captioner)


def _score(value: Any, default: float | None = None) -> float | None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if number and abs(value) < 1e6 else default
