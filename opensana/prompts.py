"""What the text encoder reads of a request, and what it leaves out."""

from collections.abc import Iterator, Sequence

from opensana.request import Request
from opensana.text.encoder import TextEncoder, TextStates


def read_prompts(
    encoder: TextEncoder, request: Request, prompts: Sequence[str] | None = None
) -> list[TextStates]:
    """The prompt, or `prompts`, with the instruction; for guidance the negative one without."""
    states = [encoder.encode(prompts or [request.prompt])]
    if has_negative_half(request):
        states.append(encoder.encode_plain([request.negative_prompt]))
    return states


def has_negative_half(request: Request) -> bool:
    """Guidance of 1 and less is none, as published; that of Sprint is inside its network."""
    assert request.guidance is not None, "the request is complete"
    return request.guidance > 1 and request.solver != "scm"


def truncation_notes(encoder: TextEncoder, request: Request) -> Iterator[str]:
    """A line for each prompt whose end is not read."""
    cut = {"prompt": encoder.truncated(request.prompt)}
    if has_negative_half(request):
        cut["negative prompt"] = encoder.truncated(request.negative_prompt, plain=True)
    for name, rest in cut.items():
        if rest:
            yield f"the {name} is too long for the text encoder; left out: {rest!r}"
