"""What every test lives with: two threads, no network, no colours.

Warnings as errors and blocked sockets are set in pyproject.toml. The variables below are set
before torch is imported, so that processes started by a test inherit them.
"""

import os
from collections.abc import Iterator

import pytest

os.environ["OMP_NUM_THREADS"] = "2"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["NO_COLOR"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """At the sizes of these tests threads cost more than they bring."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
