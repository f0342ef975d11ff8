"""Aligned safetensors files: the same tensors, mapped where kernels want them.

Also tests `runtime/placing.py`.
"""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from opensana.runtime.placing import place, unmap
from opensana.weights.aligned import ALIGNMENT, align
from opensana.weights.safetensors import read_safetensors

CPU = torch.device("cpu")


@pytest.mark.parametrize("letters", range(1, 9))
def test_the_tensors_are_equal_and_aligned(tmp_path: Path, letters: int) -> None:
    state = {"a" * letters: torch.randn(16, 4), "b": torch.ones(64, dtype=torch.int8)}
    save_file(state, tmp_path / "plain.safetensors", metadata={"format": "pt"})
    align(tmp_path / "plain.safetensors", tmp_path / "model.safetensors")
    found = load_file(tmp_path / "model.safetensors")
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items())
    mapped = read_safetensors(tmp_path / "model.safetensors")
    assert all(tensor.data_ptr() % ALIGNMENT == 0 for tensor in mapped.values())


def layers(first: int) -> nn.Module:
    """Two layers in one block of memory, the weight of the first so many numbers from its start."""
    memory = torch.randn(64)
    module = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    for index, layer in enumerate(module):
        begin = first + 16 * index
        layer.weight = nn.Parameter(memory[begin : begin + 16].view(4, 4))
    return module


def test_all_tensors_are_copied_if_one_is_not_aligned() -> None:
    shifted, aligned = layers(4), layers(0)
    for module in (shifted, aligned):
        assert len({x.untyped_storage().data_ptr() for x in module.parameters()}) == 1
    before = [x.clone() for x in shifted.parameters()]
    place(shifted, CPU, torch.float32)
    place(aligned, CPU, torch.float32)
    assert len({x.untyped_storage().data_ptr() for x in shifted.parameters()}) == 2
    assert len({x.untyped_storage().data_ptr() for x in aligned.parameters()}) == 1
    assert all(torch.equal(x, y) for x, y in zip(shifted.parameters(), before, strict=True))
    unmap(aligned)
    assert len({x.untyped_storage().data_ptr() for x in aligned.parameters()}) == 2


def test_a_buffer_that_was_a_view_keeps_nothing() -> None:
    module = nn.Module()
    module.register_buffer("weight", torch.randn(64).view(8, 8))
    unmap(module)
    assert module.weight.shape == (8, 8) and module.weight._base is None
