"""A data set becomes a cache: the right numbers, exact after kills, stale ones refused (D6).

Also tests `cli/encode.py`, `features/blocks.py`, `features/conditions.py`, `features/encoders.py`
and `features/fitting.py`.
"""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import opensana.features.encode as job
from opensana.autoencoder.plan import encoder_chain
from opensana.cli import main
from opensana.datasets.record import Caption, Record
from opensana.errors import ConfigError, DataError
from opensana.features.blocks import BlockEncoder, EncodeOptions
from opensana.features.buckets import buckets, crop_and_resize, nearest
from opensana.features.encode import encode
from opensana.features.encoders import Encoders
from opensana.features.fitting import Resized, resized_pictures
from opensana.features.latents import Features
from opensana.files.growing import GrowingFiles
from opensana.workers.threads import in_order
from tests import tiny
from tests.features.conftest import PaintedSource, decode

Run = Callable[..., int]


@pytest.fixture(scope="module")
def run(encoders: Encoders) -> Iterator[Run]:
    """`encode` in blocks of eight records; keyword arguments replace options."""

    def go(to: Path, source: Any = None, *, by: Encoders = encoders, **changes: Any) -> int:
        options = replace(EncodeOptions(size=64, batch=4), **changes)
        source = PaintedSource() if source is None else source
        said: list[str] = []
        return encode(BlockEncoder(source, by, options, decode), to, report=said.append)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job, "BLOCK", 8)
        yield go


@pytest.fixture(scope="module")
def whole(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The cache of an undisturbed run."""
    to = tmp_path_factory.mktemp("whole") / "features"
    assert run(to) == 30
    return to


def content(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_the_cache_holds_what_the_encoders_give(whole: Path, encoders: Encoders):
    source = PaintedSource()
    features = Features.open(whole, expect={"resolution": 64, "text_encoder": "tiny"})
    table = buckets(64, 32)
    assert len(features.latents) == 3
    for index in range(30):
        sample, record = features.sample(index), source.record(index)
        assert sample.key == record.key
        assert sample.scores == (None, 25.0 + index)
        assert sample.captioners == ("file", "vlm")
        captions = [features.caption(caption) for caption in sample.captions]
        assert captions == [caption.text for caption in record.captions]
        pixels = decode(source.picture(index))
        fitted = crop_and_resize(pixels, nearest(table, record.width, record.height))
        latent = encoders.autoencoder.encode(
            torch.tensor(fitted).permute(2, 0, 1)[None].float() / 127.5 - 1
        )
        _, states, mask = features.batch([index], [sample.captions[0]])
        np.testing.assert_allclose(features.latent(index), latent[0], rtol=2e-3, atol=2e-3)
        expected = encoders.text.encode([captions[0]]).states
        torch.testing.assert_close(states, expected, rtol=2e-3, atol=2e-3)
        assert mask.all()
    assert len(features.texts.captions) == 30 + 3, "each distinct caption once"
    null = encoders.text.encode_plain([""]).states[0]
    np.testing.assert_allclose(features.texts.null, null, rtol=2e-3, atol=2e-3)
    assert sorted(path.name for path in whole.parent.iterdir()) == ["features"]


class Killed(BaseException):
    """Ends a run like a signal: nothing that it had begun is tidied up."""


@pytest.mark.parametrize("method", ["append", "commit", "finish"])
def test_killed_anywhere_it_ends_with_the_same_bytes(
    run: Run, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
):
    to, real = tmp_path / "parts" / "features", getattr(GrowingFiles, method)
    kills = 0
    for patience in (0, 1, 9, 30, 60, 2, 3) if method == "append" else (0, 1):
        left = iter(range(patience, -2, -1))

        def dying(*given: Any, left: Iterator[int] = left) -> Any:
            result = real(*given)
            if next(left) == 0:
                raise Killed
            return result

        monkeypatch.setattr(GrowingFiles, method, dying)
        try:
            run(to)
        except Killed:
            kills += 1
    monkeypatch.setattr(GrowingFiles, method, real)
    assert kills == {"append": 7, "commit": 2, "finish": 1}[method]
    assert run(to) == 30
    assert content(to) == content(whole)
    assert not to.with_name("features.partial").exists()


@pytest.mark.parametrize("changes", [{"threads": 1}, {"threads": 4}, {"batch": 1}])
def test_workers_and_batches_change_nothing(
    run: Run, whole: Path, tmp_path: Path, changes: dict[str, int]
):
    run(tmp_path / "other", **changes)
    one, other = Features.open(whole), Features.open(tmp_path / "other")
    assert list(one.samples) == list(other.samples)
    assert one.index.tolist() == other.index.tolist()
    for index in range(30):
        np.testing.assert_allclose(one.latent(index), other.latent(index), rtol=2e-3, atol=2e-3)
    if "workers" in changes:
        assert content(whole) == content(tmp_path / "other")


def test_little_memory_means_bands(run: Run, encoders: Encoders, tmp_path: Path):
    sizes = [encoder_chain(encoders.autoencoder, 1, b.height, b.width) for b in buckets(128)]
    memory = max(size.least_memory for size in sizes)
    assert memory < min(size.one_band_memory for size in sizes)
    assert encoders.at_once(128, 128, most=4, memory=memory) == 0
    source = PaintedSource(10)
    run(tmp_path / "whole", source, size=128)
    run(tmp_path / "bands", source, size=128, memory=memory)
    whole, bands = Features.open(tmp_path / "whole"), Features.open(tmp_path / "bands")
    for index in range(10):
        np.testing.assert_allclose(whole.latent(index), bands.latent(index), rtol=2e-3, atol=2e-3)


def test_batches_shrink_to_the_memory(encoders: Encoders):
    three = encoder_chain(encoders.autoencoder, 3, 64, 64).one_band_memory
    assert encoders.at_once(64, 64, most=8, memory=three) == 3
    assert encoders.at_once(64, 64, most=2, memory=three) == 2


def test_a_complete_cache_is_left_alone(run: Run, whole: Path):
    before = content(whole), (whole / "places.npy").stat().st_mtime_ns
    assert run(whole) == 30
    assert (content(whole), (whole / "places.npy").stat().st_mtime_ns) == before


@pytest.mark.parametrize("what", ["autoencoder", "text_encoder_hash", "resolution", "records"])
@pytest.mark.parametrize("complete", [True, False])
def test_a_stale_cache_is_refused(
    run: Run, whole: Path, encoders: Encoders, tmp_path: Path, what: str, complete: bool
):
    to = whole if complete else tmp_path / "features"
    if not complete:
        with pytest.raises(DataError, match="cannot be used"):
            run(to, PaintedSource(bad=range(4)))
    other: dict[str, Any] = {}
    if what == "autoencoder":
        changed = tiny.autoencoder()
        tiny.randomise(changed.encoder, 9)
        other["by"] = replace(encoders, autoencoder=changed)
    if what == "text_encoder_hash":
        text = tiny.sana(instruction="none").text
        tiny.randomise(text.model, 9)
        other["by"] = replace(encoders, text=text)
    if what == "resolution":
        other["size"] = 128
    source = PaintedSource(31 if what == "records" else 30)
    with pytest.raises(DataError, match=f"was made with another {what}"):
        run(to, source, **other)


def test_other_labels_are_another_source(run: Run, whole: Path):
    class Relabelled(PaintedSource):
        def record(self, index: int) -> Record:
            record = super().record(index)
            return replace(record, captions=(*record.captions, Caption("new")))

    with pytest.raises(DataError, match="another source"):
        run(whole, Relabelled())


def test_a_better_decoder_changes_no_key(encoders: Encoders):
    changed = tiny.autoencoder()
    tiny.randomise(changed.decoder, 9)
    assert replace(encoders, autoencoder=changed).latent_keys() == encoders.latent_keys()


def test_bad_pictures_are_named_and_limited(run: Run, tmp_path: Path):
    to, source = tmp_path / "features", PaintedSource(bad=[3, 11], rejects=1)
    with pytest.raises(DataError, match=r"2 of 31 records .* more than 5\.00%; .*rejects\.jsonl"):
        run(to, source, max_bad=0.05)
    assert not to.exists()
    assert run(to, source, max_bad=0.1) == 28, "the same place goes on when more is allowed"
    rejects = rejected(to)
    assert [reject["path"] for reject in rejects] == ["r0", "k3", "k11"]
    assert rejects[1]["reason"] == "is damaged"
    keys = [line["key"] for line in Features.open(to).samples]
    assert keys == [f"k{index}" for index in range(30) if index not in (3, 11)]


def test_captions_that_nobody_can_read(run: Run, tmp_path: Path):
    class Odd(PaintedSource):
        def record(self, index: int) -> Record:
            texts = {0: ("  ", "\ud800"), 1: ("", "good")}.get(index, ("fine",))
            return replace(super().record(index), captions=tuple(map(Caption, texts)))

    to = tmp_path / "features"
    assert run(to, Odd(10), max_bad=0.1) == 9
    features = Features.open(to)
    assert [features.caption(c) for c in features.sample(0).captions] == ["good"]
    assert "has no caption" in (to / "rejects.jsonl").read_text()


def test_an_empty_source_is_refused(run: Run, tmp_path: Path):
    with pytest.raises(DataError, match="no records"):
        run(tmp_path / "features", PaintedSource(0))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("changes", [{"batch": 0}, {"threads": -1}, {"max_bad": 1.5}])
def test_options_that_mean_nothing(changes: dict[str, Any]):
    with pytest.raises(ConfigError):
        EncodeOptions(**{"size": 64, **changes})


@pytest.mark.parametrize("workers", [1, 2, 4])
def test_pictures_keep_their_order(workers: int):
    items = resized_pictures(
        PaintedSource(20, bad=[4]), range(20), buckets(64), decode=decode, workers=workers
    )
    keys = [item.record.key if isinstance(item, Resized) else item.path for item in items]
    assert keys == [f"k{index}" for index in range(20)]


def test_little_is_read_ahead():
    read: list[int] = []

    def items():
        for index in range(100):
            read.append(index)
            yield index

    results = in_order(lambda index: index, items(), workers=2)
    assert next(results) == 0
    assert len(read) <= 5
    results.close()  # pyright: ignore[reportAttributeAccessIssue]


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    model, to = tiny.sana(instruction="none").save(tmp_path / "model"), tmp_path / "features"
    source, folder = PaintedSource(), tmp_path / "pictures"
    folder.mkdir()
    for index in range(6):
        (folder / f"{index}.png").write_bytes(source.picture(index))
        (folder / f"{index}.txt").write_text(f"picture {index}")
    (folder / "bad.png").write_bytes(b"GIF89a")
    command = ["encode", str(folder), "--model", str(model), "--to", str(to)]
    assert main(command) == 1
    assert "1 of 7 records cannot be used" in capsys.readouterr().err
    assert main([*command, "--max-bad", "20%"]) == 0
    said = capsys.readouterr()
    assert said.out.strip() == str(to)
    assert "6 samples" in said.err
    features = Features.open(to, expect={"resolution": 64})
    assert len(features) == 6, "of the model's own size"
    assert [reject["path"] for reject in rejected(to)] == ["bad.png"]
    assert main([*command, "--size", "100"]) == 2
    assert "multiple of 32" in capsys.readouterr().err
    assert main([*command, "--max-bad", "lots"]) == 2


def rejected(to: Path) -> list[dict[str, str]]:
    return [json.loads(line) for line in (to / "rejects.jsonl").read_text().splitlines()]


SLOWLY = """
import sys, time
from pathlib import Path
import torch
from opensana.features.blocks import BlockEncoder, EncodeOptions
from opensana.features.encode import encode
from opensana.features.encoders import Encoders
import opensana.features.encode as job
from tests import tiny
from tests.features.conftest import PaintedSource, decode
torch.set_num_threads(1)
job.BLOCK = 8
def slow(picture):
    time.sleep(0.05)
    return decode(picture)
model = tiny.sana(instruction="none")
encoders = Encoders(model.autoencoder, model.text, "tiny", "none", 300)
options = EncodeOptions(size=64, batch=4)
print("ready", flush=True)
report = lambda line: None
encode(BlockEncoder(PaintedSource(), encoders, options, slow), Path(sys.argv[1]), report=report)
"""


@pytest.mark.slow
def test_a_process_that_is_killed(whole: Path, tmp_path: Path):
    to = tmp_path / "features"
    for seconds in (0.15, 0.4, 0.7, None):
        command = [sys.executable, "-c", SLOWLY, str(to)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None and process.stdout.readline() == b"ready\n"
            if seconds is not None:
                time.sleep(seconds)
                process.kill()
        assert process.returncode == (0 if seconds is None else -signal.SIGKILL)
    assert content(to) == content(whole)
