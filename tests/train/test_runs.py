"""What is said of runs: finished, running, stopped, damaged; and their curves.

Also tests `cli/runs.py`, `train/monitor/runs.py` and `train/monitor/plot.py`.
"""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageColor

from opensana.cli import main
from opensana.errors import DataError
from opensana.train.autoencoder.task import train_autoencoder
from opensana.train.engine.loop import locked
from opensana.train.monitor.plot import COLOURS, HEIGHT, WIDTH, Axis, plot
from opensana.train.monitor.runs import describe, list_runs, series
from tests.train.reading import lines


@pytest.fixture
def run(autoencoder_recipe, tmp_path: Path) -> Path:
    """Stopped after 10 of 20 steps, with a checkpoint at 5 and at 10."""
    folder = tmp_path / "runs" / "first"
    train_autoencoder(autoencoder_recipe(run=str(folder)))
    recipe = folder / "recipe.toml"
    recipe.write_text(recipe.read_text().replace("steps = 10\n", "steps = 20\n"))
    return folder


def write(run: Path, losses: dict[int, float], *, tail: str = "") -> Path:
    run.mkdir(parents=True)
    lines = [json.dumps({"step": step, "loss": loss}) + "\n" for step, loss in losses.items()]
    (run / "metrics.jsonl").write_text("".join(lines) + tail)
    return run


def test_a_run_is_told_from_its_files(run: Path) -> None:
    (found,) = list_runs(run.parent)
    assert found == describe(run) == list_runs(run)[0]
    assert (found.kind, found.name, found.state) == ("autoencoder", "tiny", "stopped")
    assert (found.step, found.steps, found.checkpoint) == (10, 20, 10)
    assert found.loss == [line["loss"] for line in lines(run) if "loss" in line][-1]
    assert found.samples_per_second is not None and found.samples_per_second > 0
    assert found.problem is None


def test_states(run: Path) -> None:
    with locked(run):
        assert describe(run).state == "running"
    assert describe(run).state == "stopped"
    recipe = run / "recipe.toml"
    recipe.write_text(recipe.read_text().replace("steps = 20\n", "steps = 10\n"))
    assert describe(run).state == "finished"


def test_without_its_own_recipe_the_checkpoint_tells(run: Path) -> None:
    (run / "recipe.toml").unlink()
    assert describe(run).steps == 10
    (run / "recipe.toml").write_text("not [ toml")
    assert describe(run).kind == "autoencoder"


def test_speed_is_the_median_of_the_last_steps(run: Path) -> None:
    speeds = [1.0] * 100 + [4.0] * 30 + [900.0] * 20
    lines = [json.dumps({"step": i, "samples_per_second": s}) for i, s in enumerate(speeds)]
    (run / "speed.jsonl").write_text("\n".join(lines) + "\n")
    assert describe(run).samples_per_second == 4.0


@pytest.mark.parametrize("damage", ["short", "missing", "manifest"])
def test_a_damaged_checkpoint_is_named(run: Path, damage: str) -> None:
    newest = run / "checkpoints" / "step-00000010"
    if damage == "short":
        (newest / "ema.safetensors").write_bytes(b"x")
    elif damage == "missing":
        (newest / "model.safetensors").unlink()
    else:
        (newest / "manifest.json").write_text("[")
    found = describe(run)
    said = {"short": "ema", "missing": "model.safetensors", "manifest": "manifest"}[damage]
    assert found.state == "damaged"
    assert said in str(found.problem)
    assert newest.exists(), "looking changes nothing"


def test_a_torn_last_line_is_no_damage_and_another_is(tmp_path: Path) -> None:
    torn = describe(write(tmp_path / "torn", {1: 2.0, 2: 1.5}, tail='{"step": 3, "lo'))
    assert (torn.state, torn.step, torn.loss, torn.problem) == ("stopped", 2, 1.5, None)
    for tail in ('{"st\n{"step": 3}\n', "\0\0\0\n", '{"step": "3"}\n', "[]\n"):
        folder = tmp_path / f"bad{len(tail)}{tail[0] == '['}"
        bad = describe(write(folder, {1: 2.0, 2: 1.5}, tail=tail))
        assert (bad.state, bad.step, bad.loss) == ("damaged", 2, 1.5)
        assert bad.problem == "line 3 of metrics.jsonl cannot be read"


def test_runs_are_found_below_but_not_inside_each_other(tmp_path: Path) -> None:
    for name in ("b", "a", "deep/c", "a/not-this"):
        write(tmp_path / name, {1: 1.0})
    assert [one.name for one in list_runs(tmp_path)] == ["a", "b", "c"]
    with pytest.raises(DataError, match="no folder"):
        list_runs(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no training run"):
        list_runs(tmp_path / "empty")


def test_series_leave_out_what_is_no_number_and_name_what_there_is(tmp_path: Path) -> None:
    write(tmp_path / "a", {1: 1.0, 2: math.nan, 3: math.inf, 4: 0.5})
    runs = list_runs(tmp_path)
    assert series(runs, "loss") == {str(tmp_path / "a"): [(1, 1.0), (4, 0.5)]}
    with pytest.raises(DataError, match=r"'los' \(did you mean 'loss'\?\); there are: loss"):
        series(runs, "los")


@pytest.mark.parametrize("log", [False, True])
def test_axes(log: bool) -> None:
    axis = Axis(0.03, 4.0, 500, 20, log)
    assert axis.place(0.03) == pytest.approx(500)
    assert axis.place(4.0) == pytest.approx(20)
    ticks = axis.ticks()
    assert 4 <= len(ticks) <= 8
    assert all(0.03 <= tick <= 4.0 for tick in ticks)
    wanted = [0.05, 0.1, 0.2, 0.5, 1, 2] if log else [1, 2, 3, 4]
    assert ticks == pytest.approx(wanted)


def test_curves_are_where_their_values_are(tmp_path: Path) -> None:
    falling = [(step, 4 * 0.99**step) for step in range(1000)]
    plot(tmp_path / "a.png", {"falling": falling, "flat": [(0, 2.0), (999, 2.0)]}, label="loss")
    with Image.open(tmp_path / "a.png") as picture:
        assert picture.size == (WIDTH, HEIGHT)
        pixels = np.asarray(picture).astype(int)
    rows = []
    for colour in COLOURS[:2]:
        same = np.abs(pixels - ImageColor.getrgb(colour)).sum(2) < 60
        same[:60, WIDTH // 2 :] = False  # the legend
        rows.append([np.flatnonzero(same[:, x]).mean() for x in (100, 500, 900)])
    falling_rows, flat_rows = rows
    assert falling_rows[0] < falling_rows[1] < falling_rows[2]
    assert max(flat_rows) - min(flat_rows) < 2
    assert falling_rows[0] < flat_rows[0] < falling_rows[2]


def test_the_legend_leaves_room_for_rising_curves(tmp_path: Path) -> None:
    rising = {"rising": [(0, 1.0), (9, 9.0)]}
    plot(tmp_path / "top.png", rising, label="loss")
    plot(tmp_path / "bottom.png", rising, label="loss", legend="bottom")
    for name, rows in (("top", slice(0, 60)), ("bottom", slice(HEIGHT - 120, None))):
        pixels = np.asarray(Image.open(tmp_path / f"{name}.png")).astype(int)
        same = np.abs(pixels - ImageColor.getrgb(COLOURS[0])).sum(2) < 60
        assert same[rows, WIDTH - 150 : WIDTH - 60].sum() > 50, "the legend's stroke"


def test_nothing_to_draw_is_said(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no psnr above 0 yet"):
        plot(tmp_path / "a.png", {"a": [(1, -1.0)]}, label="psnr", log=True)
    plot(tmp_path / "a.png", {"a": [(1, -1.0)]}, label="psnr")


def test_the_command(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(run.parent / "second", {1: 3.0, 2: 2.0}, tail="bad\n")
    capsys.readouterr()
    assert main(["runs", str(run.parent), "--plot", str(tmp_path / "a.png"), "--log"]) == 0
    said = capsys.readouterr()
    head, first, second = said.out.splitlines()
    assert head.split() == ["run", "kind", "state", "step", "loss", "samples/s", "checkpoint"]
    assert first.split()[1:4] == ["autoencoder", "stopped", "10/20"]
    assert second.split()[1:] == ["damaged", "2", "2"]
    assert "second: line 3 of metrics.jsonl cannot be read" in said.err
    assert (tmp_path / "a.png").exists()

    assert main(["runs", str(run), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["step"] == 10
    drawing = ["--plot", str(tmp_path / "b.png"), "--metric", "mse"]
    assert main(["runs", str(run.parent), *drawing]) == 0
    assert "second has no mse" in capsys.readouterr().err
    assert main(["runs", str(run), "--log"]) == 2
    assert "--plot" in capsys.readouterr().err
    assert main(["runs", str(tmp_path / "nowhere")]) == 1
