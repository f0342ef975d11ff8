"""What peft's `LoraConfig` says of a LoRA: its strength, and that it is no more than a LoRA.

diffusers keeps it as JSON in the file's header, peft in `adapter_config.json` beside the file.
Every field of peft 0.21 is listed here with the values that merging honours. Any other value is an
error, and so is a field that is not listed, unless it is switched off.
"""

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite, prod, sqrt
from typing import Any

import regex

from opensana.errors import WeightsError

# Where and how a LoRA was trained, at which layers (the file's own tensors say it), and details of
# what is off unless another field switches it on.
WITHOUT_EFFECT = (
    *("auto_mapping", "base_model_name_or_path", "inference_mode", "peft_version", "revision"),
    *("runtime_config", "task_type", "lora_dropout", "megatron_core", "qalora_group_size"),
    *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),
    *("loftq_config", "eva_config", "corda_config", "lora_ga_config"),
)
# The strength, whose values `read_settings` checks one by one.
STRENGTH = ("r", "lora_alpha", "rank_pattern", "alpha_pattern")
# Other values than off that merging honours. The beginnings of training that are listed here leave
# the model's weights alone; others (pissa, olora, corda, loftq, lora_ga) first take a part of each
# weight away, and what was trained belongs to the rest.
HONOURED: dict[str, tuple[Any, ...]] = {
    "peft_type": ("LORA",),
    "bias": ("none",),
    "use_rslora": (True,),
    "init_lora_weights": (True, "gaussian", "orthogonal", "eva", "mica"),
}
HINTS = {
    "init_lora_weights": "; save it once more as a plain LoRA, with"
    " save_pretrained(path_initial_model_for_weight_conversion=...) of peft"
}
OFF = (None, False, [], {})
DEFAULT_ALPHA = 8  # peft's own where its settings leave it out
# Bounds on regular expressions, which come in a file that anybody may have made.
LARGEST_PATTERNS = 1_000_000
PATTERN_SECONDS = 10.0


@dataclass(frozen=True)
class LoraSettings:
    """peft's settings as far as they decide the strength of each layer."""

    where: str
    alpha: float
    rank: int | None
    alphas: "Patterns"
    ranks: "Patterns"
    rslora: bool

    def strength(self, layer: str, rank: int) -> float:
        """What B A is multiplied by: alpha / rank, or alpha / sqrt(rank) if rank-stabilised."""
        expected = self.ranks.find(layer) or self.rank or rank
        if expected != rank:
            raise WeightsError(
                f"{self.where}: the settings have rank {expected:g} for {layer!r}, the matrices "
                f"have {rank}"
            )
        alpha = self.alphas.find(layer)
        return (self.alpha if alpha is None else alpha) / (sqrt(rank) if self.rslora else rank)


def read_settings(found: Mapping[str, Any], *, where: str) -> LoraSettings:
    """WeightsError, which names the field, for a setting that merging does not honour."""
    for name, value in found.items():
        if not _is_honoured(name, value):
            raise WeightsError(
                f"{where} was trained with {name} = {_short(value)}, which is not supported"
                f"{HINTS.get(name, '')}"
            )
    alphas, ranks = (found.get(name) or {} for name in ("alpha_pattern", "rank_pattern"))
    alpha, rank = found.get("lora_alpha", DEFAULT_ALPHA), found.get("r")
    if not isinstance(alphas, dict) or not all(map(_is_number, (alpha, *alphas.values()))):
        raise WeightsError(f"{where}: lora_alpha and alpha_pattern must be finite numbers")
    own = [] if rank is None else [rank]
    if not isinstance(ranks, dict) or not all(map(_is_rank, (*own, *ranks.values()))):
        raise WeightsError(f"{where}: r and rank_pattern must be whole numbers above 0")
    return LoraSettings(
        where,
        alpha,
        rank,
        Patterns(alphas, where=f"{where}: alpha_pattern"),
        Patterns(ranks, where=f"{where}: rank_pattern"),
        found.get("use_rslora") is True,
    )


def _is_honoured(name: str, value: Any) -> bool:
    if name in WITHOUT_EFFECT or name in STRENGTH:
        return True
    return any(
        value is known or (value == known and type(value) is type(known))
        for known in (*OFF, *HONOURED.get(name, ()))
    )


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _is_number(value: Any) -> bool:
    return not isinstance(value, bool) and isinstance(value, int | float) and isfinite(value)


def _is_rank(value: Any) -> bool:
    return not isinstance(value, bool) and isinstance(value, int) and value > 0


class Patterns:
    """peft's `rank_pattern` or `alpha_pattern`: regular expressions, of which the first counts.

    One stands for a whole layer name or for all that follows a dot in it (peft's
    `get_pattern_key`); a text stands for the layer of exactly that name in any case.
    """

    def __init__(self, table: Mapping[str, float], *, where: str) -> None:
        if sum(len(text) * _repeats(text) for text in table) > LARGEST_PATTERNS:
            raise WeightsError(f"{where} is too large")
        self.where, self.table, self.seconds = where, table, PATTERN_SECONDS
        self.compiled = {text: _compiled(text, where) for text in table}

    def find(self, layer: str) -> float | None:
        """The value for a layer, if there is one."""
        found = next((text for text in self.compiled if self._matches(text, layer)), layer)
        return self.table.get(found)

    def _matches(self, text: str, layer: str) -> bool:
        """WeightsError where all matching together takes too long."""
        start = time.monotonic()
        try:
            return self.compiled[text].match(layer, timeout=self.seconds) is not None
        except TimeoutError:
            raise WeightsError(f"{self.where}: {text!r} takes too long to match") from None
        finally:
            self.seconds = max(self.seconds - (time.monotonic() - start), 0.001)


def _compiled(text: str, where: str) -> "regex.Pattern[str]":
    """The pattern as peft puts it together, by the library whose matching can be stopped."""
    whole = rf"(.*\.)?({text})$"
    try:
        if "[[" in text or re.search(r"\{(?!\d*,?\d*\})", text):
            raise ValueError("a sign that libraries read differently")
        re.compile(whole)  # peft's grammar; the other library's has more
        return regex.compile(whole)
    except (ValueError, re.error, regex.error, OverflowError, RecursionError) as error:
        raise WeightsError(f"{where}: {text!r} is no regular expression: {error}") from None


def _repeats(text: str) -> int:
    """How much larger the counts of a pattern may make it, at most."""
    counts = re.findall(r"\{(\d*),?(\d*)\}", text)
    return prod(max(int(low or 1), int(high or 1), 1) for low, high in counts)
