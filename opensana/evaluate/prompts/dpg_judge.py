"""DPG-Bench's questions asked of a vision-language model: not comparable with mPLUG's answers."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from PIL import Image

from opensana.errors import ConfigError, OpensanaError
from opensana.files.writing import read_json, write_json

PROTOCOL = "DPG-like, not comparable"
ASKED = "{} Answer with yes or no alone."

Asked = Iterable[tuple[str, Image.Image, str]]
"""Key, picture, words."""
Ask = Callable[[Asked], Iterator[tuple[str, object]]]
"""Answers by key, in any order: text, or anything else for a failure."""


class Judge:
    """A model that answers; an item's answers are kept in a file of their own."""

    def __init__(self, name: str, ask: Ask) -> None:
        self.name, self.ask = name, ask

    @property
    def described(self) -> str:
        return f"{PROTOCOL}: answers by {self.name}"

    def kept(
        self, path: Path, pictures: Sequence[Image.Image], questions: Mapping[int, str]
    ) -> list[dict[int, bool]]:
        """The answers of each picture to each question, from the file if it has them.

        ConfigError if another model or other questions were asked.
        """
        asked = {str(number): question for number, question in questions.items()}
        if path.is_file():
            known = read_json(path)
            if known.get("model") != self.name or known.get("questions") != asked:
                raise ConfigError(
                    f"{path} holds answers of {known.get('model')!r} or to other questions; choose "
                    "another --to"
                )
            words = known["answers"]
        else:
            words = self._asked(path.stem, pictures, asked)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, {"model": self.name, "questions": asked, "answers": words})
        return [{number: is_yes(said[str(number)]) for number in questions} for said in words]

    def _asked(
        self, item: str, pictures: Sequence[Image.Image], questions: Mapping[str, str]
    ) -> list[dict[str, str]]:
        """All questions of all pictures of an item at once."""
        found: list[dict[str, str]] = [{} for _ in pictures]
        requests = (
            (f"{row}/{number}", picture, ASKED.format(question))
            for row, picture in enumerate(pictures)
            for number, question in questions.items()
        )
        for key, answer in self.ask(requests):
            if not isinstance(answer, str):
                reason = getattr(answer, "reason", answer)
                raise OpensanaError(f"{item}: no answer ({reason}); the same command goes on")
            row, _, number = key.partition("/")
            found[int(row)][number] = answer
        return found


def is_yes(answer: str) -> bool:
    """Whether an answer begins with yes; whatever else is a no, as in DPG-Bench's own tool."""
    return re.match(r"\W*yes\b", answer, re.IGNORECASE) is not None
