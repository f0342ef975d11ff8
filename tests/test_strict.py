"""Warnings that this package causes are errors in CI; those among libraries are not."""

import warnings
from types import ModuleType
from typing import Any

import pytest
import torch

from tests import strict


@pytest.fixture(autouse=True)
def _strict(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warnings, "showwarning", strict.showwarning)


def library(name: str, **known: Any) -> Any:
    """A module with `old`, which warns, and `call`, which calls what it is given."""
    module = ModuleType(name)
    vars(module).update(known)
    code = (
        "import warnings\n"
        "def old(*_): warnings.warn('old is deprecated', FutureWarning, stacklevel=2)\n"
        "def call(function): function()\n"
    )
    exec(code, vars(module))
    return module


def test_our_own_warning_is_an_error() -> None:
    with pytest.raises(UserWarning, match="ours"):
        warnings.warn("ours", stacklevel=1)


def test_a_library_called_in_an_old_way_is_an_error() -> None:
    with pytest.raises(FutureWarning, match="deprecated"):
        library("somebody").old()


def test_that_a_module_of_torch_lies_between_changes_nothing() -> None:
    class Layer(torch.nn.Module):
        forward = library("somebody").old

    with pytest.raises(FutureWarning, match="deprecated"):
        Layer()()


def test_what_a_library_does_to_another_is_not_ours() -> None:
    library("somebody").call(library("another").old)


def test_an_expected_warning_is_none() -> None:
    with pytest.warns(FutureWarning, match="deprecated"):
        library("somebody").old()
