"""Errors that help, and a package that is light to import."""

import subprocess
import sys

import pytest

import opensana
from opensana import errors
from opensana.errors import MissingExtraError, OpensanaError, near


def test_near_names_are_offered() -> None:
    assert near("eular", ["flow_dpm", "euler"]) == " (did you mean 'euler'?)"
    assert near("CUDA", ["cuda", "cpu"]) == " (did you mean 'cuda'?)"
    assert near("zzz", ["flow_dpm", "euler"]) == ""
    assert near("x", []) == ""


def test_a_missing_extra_says_how_to_install_it() -> None:
    error = MissingExtraError("serve", "fastapi")
    assert "'fastapi'" in str(error)
    assert "pip install 'opensana[serve]'" in str(error)


def test_every_error_is_one_family() -> None:
    found = [value for value in vars(errors).values() if isinstance(value, type)]
    assert all(
        issubclass(value, OpensanaError) for value in found if value.__module__ == errors.__name__
    )


def test_public_names_are_lazy() -> None:
    assert set(opensana.__all__) <= set(dir(opensana))
    assert opensana.Request("a fox").prompt == "a fox"
    with pytest.raises(AttributeError, match="Sena"):
        opensana.Sena  # noqa: B018


def test_the_light_modules_do_not_import_torch() -> None:
    code = (
        "import sys, opensana, opensana.request, opensana.config, opensana.device; "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
