"""Pictures with LoRAs: those of `Sana.generate`, alone and in any company.

Also tests `serve/painting/sana_painter.py` with LoRAs.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from opensana import Request, Sana
from opensana.drawing.picture import Picture
from opensana.errors import RequestError
from opensana.models.options import LoadOptions
from opensana.models.with_loras import WithLoras
from opensana.serve.jobs.order import LoraChoice, Order
from opensana.serve.painting.loras import LoraFolder
from opensana.serve.painting.merged import MergedModels
from opensana.serve.painting.sana_painter import SanaPainter, Sketch
from tests import tiny
from tests.lora_files import write_lora

LOAD: dict[str, Any] = {"device": "cpu", "dtype": "float32"}
FILM, INK = LoraChoice("film", 0.8), LoraChoice("ink", -0.5)
SETS = [(), (FILM,), (LoraChoice("film", 0.3),), (FILM, INK)]


def painter_over(
    model: str | Path, folder: Path, *, most_bytes: int | None = None, **options: Any
) -> SanaPainter:
    sana = Sana.load(model, **LOAD, **options)
    base = WithLoras(sana, LoadOptions(model=model, **LOAD, **options))
    write_lora(folder / "film.safetensors", base.sides, seed=1)
    write_lora(folder / "ink" / "pytorch_lora_weights.safetensors", base.sides, seed=2)
    merged = MergedModels(base, LoraFolder(folder, base.check), most_bytes=most_bytes)
    return SanaPainter(sana, exact=True, merged=merged)


def files(folder: Path, loras: Sequence[LoraChoice]) -> dict[str, Any]:
    """As `Sana.load` takes them."""
    paths = {"film": folder / "film.safetensors", "ink": folder / "ink"}
    return {"lora": [paths[one.name] for one in loras], "lora_scale": [one.scale for one in loras]}


def drawn(painter: SanaPainter, orders: Sequence[Order]) -> list[Picture]:
    """The pictures of orders that take their steps in turns, lane by lane."""
    plans = [painter.plan(order) for order in orders]
    sketches: list[Sketch] = []
    for plan in plans:
        painter.ready(plan)
        sketches += painter.open([(plan, 0)])
    while left := [n for n, one in enumerate(sketches) if one.step < plans[n].steps]:
        for lane in dict.fromkeys(plans[n].lane for n in left):
            batch = [n for n in left if plans[n].lane == lane]
            painter.ready(plans[batch[0]])
            assert painter.step([sketches[n] for n in batch]) == [None] * len(batch)
    return [painter.finish([sketch])[0] for sketch in sketches]


def digest(picture: Picture) -> str:
    return hashlib.sha256(np.asarray(picture.image).tobytes()).hexdigest()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.sana(instruction="none").save(tmp_path_factory.mktemp("models") / "model")


def orders(**fields: Any) -> list[Order]:
    return [
        Order(request=Request("a red apple", seed=n, steps=1 + n % 2, **fields), loras=loras)
        for n, loras in enumerate(SETS)
    ]


def check_all(painter: SanaPainter, model: str | Path, folder: Path, asked: list[Order]) -> None:
    """Every picture is that of `generate`, and says what draws it again."""
    found = drawn(painter, asked)
    for loras in SETS:
        sana = Sana.load(model, **LOAD, **files(folder, loras))
        for order, picture in zip(asked, found, strict=True):
            if order.loras == loras:
                (alone,) = sana.generate(order.request)
                assert digest(picture) == digest(alone)
                assert picture.metadata == alone.metadata
    assert len({digest(one) for one in found}) == len(found)


@pytest.mark.parametrize("most_bytes", [None, 0], ids=["kept", "one at a time"])
def test_pictures_in_any_company_are_those_of_generate(
    model: Path, tmp_path: Path, most_bytes: int | None
) -> None:
    painter = painter_over(model, tmp_path, most_bytes=most_bytes)
    check_all(painter, model, tmp_path, orders(guidance=3.0))


@pytest.mark.slow
def test_pictures_of_emoji_256_are_those_of_generate(tmp_path: Path) -> None:
    painter = painter_over("emoji-256", tmp_path)
    check_all(painter, "emoji-256", tmp_path, orders())


def test_few_steps_are_drawn_by_the_model_itself(tmp_path: Path) -> None:
    """Its distilled transformer is another network, for which no LoRA was made."""
    whole = tiny.sana(instruction="none")
    few = replace(whole, few_step=tiny.transformer(tiny.SPRINT))
    folder = few.save(tmp_path / "model")
    painter = painter_over(folder, tmp_path / "loras")
    request = Request("a cat", seed=1, steps=2, guidance=3.0)
    plain, with_film = (painter.plan(Order(request=request, loras=one)) for one in SETS[:2])
    assert (plain.request.solver, with_film.request.solver) == ("scm", "flow_dpm")
    (picture,) = drawn(painter, [Order(request=request, loras=(FILM,))])
    sana = Sana.load(folder, **LOAD, **files(tmp_path / "loras", (FILM,)))
    assert digest(picture) == digest(sana.generate(request)[0])


def test_one_set_is_one_lane(model: Path, tmp_path: Path) -> None:
    painter = painter_over(model, tmp_path)
    lanes = [painter.plan(order).lane for order in (*orders(), *orders())]
    count = len(SETS)
    assert lanes[:count] == lanes[count:] and len(set(lanes)) == count


def test_the_record_names_the_loras(model: Path, tmp_path: Path) -> None:
    painter = painter_over(model, tmp_path)
    (picture,) = drawn(painter, [Order(request=Request("a cat", seed=1, steps=1), loras=SETS[3])])
    sums = [one["sha256"] for one in painter.about()["loras"]]
    prompt, line = picture.metadata["parameters"].split("\n")
    assert prompt == "a cat <lora:film:0.8> <lora:ink:-0.5>"
    assert f'Lora hashes: "film: {sums[0][:10]}, ink: {sums[1][:10]}"' in line
    assert [one["name"] for one in painter.about()["loras"]] == ["film", "ink"]


def test_no_more_is_kept_than_may_be(model: Path, tmp_path: Path) -> None:
    painter = painter_over(model, tmp_path)
    merged = painter._merged  # pyright: ignore[reportPrivateUsage]
    assert merged is not None
    one = merged.transformer(merged.decide((FILM,)))
    size = merged.kept_bytes
    assert size > 0
    merged._most = 2 * size  # pyright: ignore[reportPrivateUsage]
    choices = [merged.decide((LoraChoice("film", n / 10),)) for n in range(5)]
    made = [merged.transformer(choice) for choice in choices]
    assert merged.kept_bytes == 2 * size
    assert merged.transformer(choices[3]) is made[3] and merged.transformer(choices[4]) is made[4]
    assert merged.transformer(merged.decide((FILM,))) is not one


def test_without_a_folder_none_can_be_named(model: Path) -> None:
    painter = SanaPainter(Sana.load(model, **LOAD))
    painter.refresh()
    assert painter.about()["loras"] == []
    with pytest.raises(RequestError, match="no LoRAs are listed here; start the server with"):
        painter.plan(Order(request=Request("a cat"), loras=(FILM,)))


def test_a_file_that_is_gone_fails_when_it_is_needed(model: Path, tmp_path: Path) -> None:
    painter = painter_over(model, tmp_path)
    plan = painter.plan(Order(request=Request("a cat"), loras=(FILM,)))
    (tmp_path / "film.safetensors").unlink()
    with pytest.raises(RequestError, match="the LoRA 'film' cannot be read: No such file"):
        painter.ready(plan)
    painter.refresh()
    with pytest.raises(RequestError, match="the LoRA 'film' is not listed here; choose of: ink"):
        painter.plan(Order(request=Request("a cat"), loras=(FILM,)))
