"""Captions of an emoji: every naming authority is one captioner (the multi-caption idea of 2.4).

The label, the label with tags, and each vendor's shortcodes turned into words describe the same
picture in different styles, as several vision-language models would.
"""

import hashlib
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

VENDORS = ("cldr", "emojibase", "emojibase-legacy", "github", "iamcal", "joypixels")
MAX_TAGS = 3

# Singular words written with a final s, and plural or mass words written without one.
SINGULAR_S = {
    "bus",
    "cactus",
    "octopus",
    "compass",
    "hibiscus",
    "lotus",
    "glass",
    "dress",
    "tennis",
}
SINGULAR_S |= {"abacus", "walrus", "hippopotamus", "princess", "cross", "canvas", "rhinoceros"}
SINGULAR_S |= {"trolleybus", "minibus", "circus", "tyrannosaurus", "moss", "iris", "class", "brass"}
MASS = {
    "broccoli",
    "garlic",
    "bread",
    "bacon",
    "butter",
    "salt",
    "rice",
    "sushi",
    "popcorn",
    "milk",
}
MASS |= {"spaghetti", "sake", "ice", "fog", "fire", "oden", "dango", "ginger", "corn", "hair"}
MASS |= {"yarn", "thread", "soap", "coral", "money", "bowling", "lacrosse", "badminton", "tennis"}
MASS |= {"boxing", "hockey", "pong", "cooking", "camping", "wood", "custard", "honey", "fondue"}
MASS |= {"salad", "food", "meat", "dna", "high voltage", "locked", "unlocked", "star-struck"}
HEAD_END = r",| (?:with|of|on|in|and|without|behind|showing|over|at|by) "
VOWEL_SOUND = ("hour", "honest", "heir", "x-ray", "mri", "atm")
CONSONANT_SOUND = ("uni", "ufo", "use", "euro", "one", "ukulele", "ewe", "uten")


@dataclass(frozen=True)
class Caption:
    """One caption by one captioner; a held-out caption is never trained on."""

    source: str
    text: str
    held_out: bool = False


def words(shortcode: str) -> str | None:
    """A shortcode as words, or None when it does not read as English ("+1", "man_tone3")."""
    text = re.sub(r"[_\-]+", " ", shortcode).strip()
    if len(text) < 3 or re.search(r"\btone\s?\d|[^\w ’'&]", text) or not re.search("[a-z]", text):
        return None
    return text


def captions_of(
    hexcode: str,
    label: str,
    tags: Sequence[str],
    shortcodes: Mapping[str, Sequence[str]],
    *,
    taken: Collection[str] = (),
) -> tuple[Caption, ...]:
    """All different captions of one emoji; texts in `taken` are the names of other emoji."""
    found: dict[str, str] = {label.lower(): label}
    sources = {label.lower(): "label"}
    candidates = [("label+tags", label_with_tags(label, tags))]
    candidates += [
        (vendor, words(code)) for vendor in VENDORS for code in shortcodes.get(vendor, ())
    ]
    for source, text in candidates:
        if text is not None and text.lower() not in found and text.lower() not in taken:
            found[text.lower()] = text
            sources[text.lower()] = source
    held_out = _held_out(hexcode, label, sources)
    captions = (Caption(sources[key], found[key], key == held_out) for key in found)
    return tuple(one for one in captions if one.held_out or not _gives_away(one, held_out))


def _held_out(hexcode: str, label: str, sources: Mapping[str, str]) -> str | None:
    """One vendor's caption for the evaluation of text, if two others stay for training.

    A part of the label ("cat" of "cat face") stays in training: it is what people will type.
    """
    known = _word_set(label)
    choices = [
        k for k, source in sources.items() if source in VENDORS and not _word_set(k) <= known
    ]
    if len(sources) < 3 or not choices:
        return None
    return min(choices, key=lambda key: hashlib.sha256(f"{hexcode}/{key}".encode()).digest())


def _gives_away(caption: Caption, held_out: str | None) -> bool:
    """Whether one of the words listed behind a label is the held-out caption."""
    if held_out is None or caption.source != "label+tags":
        return False
    return any(alike(word, held_out) for word in caption.text.split(", ")[1:])


def alike(one: str, other: str) -> bool:
    """Whether one is a part of the other, spaces and signs apart: "hot dog" and "hotdogs"."""
    first, second = (re.sub(r"\W+", "", text.lower()) for text in (one, other))
    return first in second or second in first


def _word_set(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower()))


def label_with_tags(label: str, tags: Sequence[str]) -> str | None:
    """The label and up to three tags that say something new: "red apple, diet, food"."""
    fresh = [tag for tag in tags if not _word_set(tag) <= _word_set(label)]
    return ", ".join([label, *fresh[:MAX_TAGS]]) if fresh else None


def with_article(text: str) -> str:
    """The noun phrase with the article it needs: "a cat", "an ox", "grapes"."""
    head = re.split(HEAD_END, text, maxsplit=1)[0].lower()
    if "," in text or ":" in text or is_plural(head) or head in MASS or head.split()[-1] in MASS:
        return text
    first = text.lower()
    if text.startswith("Statue of"):
        return f"the {text}"
    if re.match(r"(a|an|the|one|two|three|Mrs|Mr|Mx|Santa)\b", text, flags=re.IGNORECASE):
        return text
    vowel = first[0] in "aeiou" and not first.startswith(CONSONANT_SOUND)
    return f"{'an' if vowel or first.startswith(VOWEL_SOUND) else 'a'} {text}"


def is_plural(head: str) -> bool:
    last = head.split()[-1] if head.split() else ""
    return last.endswith("s") and not last.endswith(("ss", "us", "is")) and last not in SINGULAR_S


def phrases(text: str) -> tuple[str, ...]:
    """The forms in which a person may ask for it; the first two may be the same."""
    if "," in text:
        return (text,)
    named = with_article(text)
    return (text, named, f"an emoji of {named}", f"{text} emoji")
