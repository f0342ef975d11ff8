"""Products of float32 on a CUDA GPU: the same rule for convolutions and matrix products."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from opensana.models import open as opening
from opensana.models.open import open_model
from opensana.models.options import DtypeName, LoadOptions
from opensana.runtime.tf32 import settle_float32
from tests import tiny

CUDA = torch.device("cuda")
MATMUL: Any = torch.backends.cuda.matmul
CUDNN: Any = torch.backends.cudnn


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    matmul, conv = MATMUL, CUDNN.conv
    before = matmul.fp32_precision, conv.fp32_precision
    reduced = matmul.allow_fp16_reduced_precision_reduction
    yield
    matmul.fp32_precision, conv.fp32_precision = before
    matmul.allow_fp16_reduced_precision_reduction = reduced


def precisions() -> tuple[str, str]:
    return MATMUL.fp32_precision, CUDNN.conv.fp32_precision


def test_convolutions_and_matrix_products_are_alike() -> None:
    assert settle_float32(CUDA, full=False) == {"float32_products": "tf32"}
    assert precisions() == ("tf32", "tf32")
    assert settle_float32(CUDA, full=True) == {"float32_products": "ieee"}
    assert precisions() == ("ieee", "ieee")
    assert not MATMUL.allow_fp16_reduced_precision_reduction


def test_elsewhere_nothing_is_set_and_nothing_recorded() -> None:
    before = precisions()
    assert settle_float32(torch.device("cpu"), full=True) == {}
    assert precisions() == before


@pytest.mark.parametrize(
    ("dtype", "full"), [("float32", True), ("fp32", True), (None, False), ("bfloat16", False)]
)
def test_a_model_asked_for_in_float32_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: DtypeName | None, full: bool
) -> None:
    folder = tiny.sana(instruction="none").save(tmp_path / "tiny")
    asked: list[bool] = []

    def settle(_: torch.device, *, full: bool) -> dict[str, str]:
        asked.append(full)
        return {"float32_products": "as settled"}

    monkeypatch.setattr(opening, "settle_float32", settle)
    opened = open_model(LoadOptions(model=folder, device="cpu", dtype=dtype))
    assert asked == [full]
    assert opened.provenance == {"float32_products": "as settled"}
