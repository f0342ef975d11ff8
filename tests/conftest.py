"""What every test lives with: two threads, no network, no colours.

Blocked sockets are set in pyproject.toml. The variables below are set before torch is imported, so
that processes started by a test inherit them.
"""

import os
import warnings
from collections.abc import Generator, Iterator

import pytest

from tests import strict

os.environ["OMP_NUM_THREADS"] = "2"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["NO_COLOR"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--strict-warnings", action="store_true", help="warnings caused by this package are errors"
    )


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--strict-warnings"):
        config.addinivalue_line("filterwarnings", "always")
        # What a finaliser raises, as for a file that is left open.
        config.addinivalue_line("filterwarnings", "error::pytest.PytestUnraisableExceptionWarning")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    if item.config.getoption("--strict-warnings"):
        warnings.showwarning = strict.showwarning  # pytest puts back what was there
    return (yield)


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """At the sizes of these tests threads cost more than they bring."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
