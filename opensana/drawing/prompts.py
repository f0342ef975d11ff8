"""What the text encoder reads of a request, and what in it has no effect."""

import re
from collections.abc import Iterator, Sequence

from opensana.drawing.job import Job
from opensana.text.encoder import TextEncoder, TextStates

# How other programs weigh words: (red:1.5), (red)1.5, [red:blue:0.5], [red:0.5], [red|blue],
# ((red)), [[red]], red::2. Times, ratios and verses such as (16:9) are words.
WEIGHTS = re.compile(
    r"(?<!\\)(?:"
    r"\([^()]{0,200}[^()\\\d\s]:[+-]?\d*\.?\d+\)"
    r"|\([^()]{1,200}\)[+-]?\d*\.\d+"
    r"|\[[^][]{0,200}:[^][]{0,200}:\d*\.?\d+\]"
    r"|\[[^][]{0,200}[^][\d\s]:\d*\.\d+\]"
    r"|\[[^][|]{1,200}\|[^][]{1,200}\]"
    r"|\({2,9}[^()]{1,200}\){2,9}"
    r"|\[{2,9}[^][]{1,200}\]{2,9}"
    r")"
    r"|\w{1,40}::[+-]?\d+(?:\.\d+)?"
)
NETWORKS = re.compile(r"<(?:lora|lyco|hypernet):[^<>]{1,200}>", re.IGNORECASE)
SHOWN = 40


def read_prompts(
    encoder: TextEncoder, job: Job, prompts: Sequence[str] | None = None
) -> list[TextStates]:
    """The prompt, or `prompts`, with the instruction; for guidance the negative one without."""
    states = [encoder.encode(prompts or [job.request.prompt])]
    if job.guided:
        states.append(encoder.encode_plain([job.request.negative_prompt]))
    return states


def prompt_notes(encoder: TextEncoder, job: Job) -> Iterator[str]:
    """A line for each thing in the prompts that has no effect, or another."""
    request = job.request
    read = {"prompt": request.prompt}
    cut = {"prompt": encoder.truncated(request.prompt)}
    if job.guided:
        read["negative prompt"] = request.negative_prompt
        cut["negative prompt"] = encoder.truncated(request.negative_prompt, plain=True)
    elif request.negative_prompt.strip():
        yield (
            f"the negative prompt has no effect, since guidance is {job.guidance:g}: it counts "
            "above 1"
        )
    for name, text in read.items():
        yield from _literal_notes(name, text)
    for name, rest in cut.items():
        if rest:
            yield f"the {name} is too long for the text encoder; left out: {rest!r}"


def _literal_notes(name: str, text: str) -> Iterator[str]:
    """What other programs take for commands, and the text encoder reads as words."""
    if network := NETWORKS.search(text):
        yield (
            f"{_short(network[0])} in the {name} loads nothing and is read as words; LoRAs go by "
            "--lora (lora= of Sana.load, or of a request to a server)"
        )
    if weight := WEIGHTS.search(NETWORKS.sub("", text)):
        yield f"{_short(weight[0])} in the {name} weighs nothing and is read as words"


def _short(text: str) -> str:
    return repr(text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}...")
