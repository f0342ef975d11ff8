"""How many pictures an evaluation draws."""

from dataclasses import dataclass, fields

from opensana.errors import RequestError


@dataclass(frozen=True)
class Counts:
    """Pictures of each kind at most; 0 leaves a kind out, labels are always drawn."""

    labels: int = 300
    captions: int = 300
    colours: int = 120
    pairs: int = 100
    questions: int = 100
    languages: int = 20

    def __post_init__(self) -> None:
        for field in fields(self):
            least, value = int(field.name == "labels"), getattr(self, field.name)
            if value < least:
                raise RequestError(f"{field.name} must be {least} or more, got {value}")
