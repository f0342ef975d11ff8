"""Errors for the user: what was wrong, what was got, what to try.

The command line prints an error as one line, the server as one JSON object.
"""

from collections.abc import Iterable
from difflib import get_close_matches


class OpensanaError(Exception):
    """An error that the user can fix; its message is all that the user needs to see."""


# ValueError as well: pydantic, FastAPI and tyro then report the message instead of a traceback.
class ConfigError(OpensanaError, ValueError):
    """A recipe, an override, a device or a dtype that cannot be used."""


class RequestError(OpensanaError, ValueError):
    """A request that cannot be fulfilled."""

    def __init__(self, message: str, *, field: str | None = None) -> None:
        super().__init__(message)
        self.field = field
        """The field of the request that is wrong; None where no single one is."""


class WeightsError(OpensanaError):
    """A model that is missing, damaged or does not match its configuration."""


class DataError(OpensanaError):
    """A data set that cannot be read or used."""


class NumericsError(OpensanaError):
    """NaN or infinity in a latent, a loss or a weight."""


class OutOfMemory(OpensanaError):
    """Pictures that memory is too short for; nothing else was changed."""


class CheckpointError(OpensanaError):
    """A training checkpoint that is missing, incomplete or from another run."""


class MissingExtraError(OpensanaError):
    """An optional package that a feature needs is not installed."""

    def __init__(self, extra: str, package: str) -> None:
        super().__init__(
            f"this needs the package '{package}', which is not installed; "
            f"try: pip install 'opensana[{extra}]'"
        )
        self.extra = extra
        self.package = package


def near(name: str, options: Iterable[str]) -> str:
    """` (did you mean 'x'?)` for the closest option; empty if none is close."""
    by_lower = {option.lower(): option for option in options}
    matches = get_close_matches(name.lower(), by_lower, n=1)
    return f" (did you mean '{by_lower[matches[0]]}'?)" if matches else ""
