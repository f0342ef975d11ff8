"""Texts: prompts as the network reads them, made in batches and kept for those that come again."""

from collections.abc import Hashable, Sequence

from opensana.drawing.job import Job
from opensana.drawing.solving import Prepared
from opensana.pipeline import Sana

KEPT = 64


class Texts:
    """For the worker's thread alone; `exact` reads prompts one by one."""

    def __init__(self, *, exact: bool) -> None:
        self._exact = exact
        self._kept: dict[Hashable, Prepared] = {}

    def of(self, network: Hashable, job: Job) -> list[Prepared]:
        """The prompt of a job and, for guidance, its negative prompt; both were read."""
        return [self._kept[network, *one] for one in _asked(job)]

    def read(self, network: Hashable, sana: Sana, jobs: Sequence[Job]) -> None:
        """Prepare what jobs ask for and is not at hand; `network` says which transformer it is."""
        while len(self._kept) > KEPT:
            del self._kept[next(iter(self._kept))]
        asked = dict.fromkeys(one for job in jobs for one in _asked(job))
        for plain, encode in ((False, sana.text.encode), (True, sana.text.encode_plain)):
            texts = [text for kind, text in asked if kind == plain]
            texts = [text for text in texts if (network, plain, text) not in self._kept]
            groups = [[text] for text in texts] if self._exact else [texts]
            for group in filter(None, groups):
                states = encode(group)
                for index, text in enumerate(group):
                    row = states.states[index, None].to(sana.device)
                    prepared = sana.transformer.prepare_text(row, states.mask[index, None])
                    self._kept[network, plain, text] = sana.transformer.fold(prepared)


def _asked(job: Job) -> list[tuple[bool, str]]:
    """Each text, and whether it is read plainly, without the instruction."""
    prompt = (False, job.request.prompt)
    return [prompt, (True, job.request.negative_prompt)] if job.guided else [prompt]
