"""The device of these tests: an NVIDIA or an Apple GPU; without one they are skipped."""

import pytest
import torch

from opensana.device import resolve_device


@pytest.fixture(scope="session")
def device() -> torch.device:
    found = resolve_device("auto")
    if found.type == "cpu":
        pytest.skip("torch finds no GPU here; docs/gpu.md says where these tests were run")
    return found
