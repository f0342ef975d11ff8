"""opensana: the Sana text-to-image system, from recipes to pictures.

Importing this package loads nothing heavy; `Sana` and `Request` are found when first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from opensana.pipeline import Sana
    from opensana.request import Request

__version__ = "0.1.0"
__all__ = ["Request", "Sana", "__version__"]

_HOMES = {"Request": "opensana.request", "Sana": "opensana.pipeline"}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOMES])
