"""Networks and layers compute on a GPU what a CPU computes in float64; see benchmarks/gpu."""

import pytest
import torch

from benchmarks.gpu.cases import cases
from benchmarks.gpu.measuring import relative
from benchmarks.gpu.parity import FORMATS, formats
from opensana.runtime.tf32 import settle_float32
from opensana.runtime.triton_blocks import has_triton

pytestmark = pytest.mark.gpu
CASES = cases(triton=True)


@pytest.mark.parametrize("label", FORMATS)
@pytest.mark.parametrize("name", CASES)
def test_equal_up_to_rounding(name: str, label: str, device: torch.device) -> None:
    case, form = CASES[name](), formats(device).get(label)
    if form is None or (form.dtype == torch.float16 and not case.halves):
        pytest.skip(f"{label} is no format of this on {device.type}")
    if case.in_triton and not (device.type == "cuda" and has_triton()):
        pytest.skip("its kernels are for CUDA with Triton")
    settle_float32(device, full=form.full)
    error = relative(case.found(device, form.dtype), case.expected())
    assert error <= case.slack * form.bound
