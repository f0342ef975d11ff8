"""Which schemes fit a device's memory, for models that are here and for published ones."""

import json

import pytest
import torch

from opensana.cli import main
from opensana.layers.int4 import RANK
from opensana.models.describe import describe_published
from opensana.models.presets import transformer_preset
from opensana.models.schemes import bytes_in_8_bits, transformer_bytes
from opensana.runtime.quantize import Quantization, quantize
from opensana.transformer.model import Transformer
from opensana.weights.published_models import MODELS
from tests import tiny

GIB = 2**30


@pytest.mark.parametrize("scheme", [Quantization("w8"), Quantization("w4", RANK)])
def test_bytes_are_those_of_the_layers(scheme: Quantization) -> None:
    network = tiny.transformer()
    plain = transformer_bytes(network, None, torch.float32)
    expected = transformer_bytes(network, scheme, torch.float32)
    assert plain == sum(tensor.nbytes for tensor in network.state_dict().values())
    quantize(network, scheme)
    assert expected == sum(tensor.nbytes for tensor in network.state_dict().values())


def test_what_stays_plain_follows_the_number_format_and_scales_do_not() -> None:
    with torch.device("meta"):
        network = Transformer(transformer_preset("sana_600m_1024"))
    wide, narrow, plain = (
        transformer_bytes(network, scheme, dtype)
        for scheme, dtype in (
            (Quantization("w8"), torch.float32),
            (Quantization("w8"), torch.bfloat16),
            (None, torch.bfloat16),
        )
    )
    assert 0.6 * GIB < narrow < wide < 0.9 * GIB
    assert plain == pytest.approx(1.1 * GIB, rel=0.02)


def test_a_text_encoder_in_groups_of_32() -> None:
    assert bytes_in_8_bits(3200) == 3200 + 100 * 4


@pytest.mark.parametrize("name", MODELS)
def test_every_published_model_says_what_fits(name: str) -> None:
    found = describe_published(name, device="cpu", room=8 * GIB)
    assert found is not None
    rows = {(row["transformer"], row["text"]): row for row in found["schemes"]}
    assert set(rows) == {(t, e) for t in ("as is", "w8a8, w8", "w4") for e in ("as is", "8 bits")}
    totals = [rows[t, "8 bits"]["total_bytes"] for t in ("as is", "w8a8, w8", "w4")]
    assert totals == sorted(totals, reverse=True)
    for row in rows.values():
        assert (row["fits"] == "yes") == (row["total_bytes"] <= 8 * GIB)


def test_a_small_device_takes_it_without_the_text_encoder() -> None:
    found = describe_published(
        "Efficient-Large-Model/Sana_600M_1024px_diffusers", device="cpu", room=int(4.75 * GIB)
    )
    assert found is not None
    rows = {(row["transformer"], row["text"]): row["fits"] for row in found["schemes"]}
    assert rows["w8a8, w8", "8 bits"] == "with --offload text"
    assert rows["w4", "8 bits"] == "yes"


def test_the_command_prints_a_table(capsys: pytest.CaptureFixture[str]) -> None:
    line = ["info", "Efficient-Large-Model/Sana_1600M_1024px_diffusers", "--device", "cpu"]
    assert main([*line, "--device-memory", "8GiB"]) == 0
    head, *rows = capsys.readouterr().out.rstrip().splitlines()[-7:]
    assert head.startswith("transformer  text    transformer, GiB") and head.endswith("fits")
    assert [row.split()[-1] for row in rows] == ["no", "no", "no", "yes", "no", "yes"]
    assert main([*line, "--device-memory", "8GiB", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["schemes"]) == 6
    assert main([*line, "--device-memory", "much"]) == 2
    assert "much" in capsys.readouterr().err
