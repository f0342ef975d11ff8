"""scheduler_config.json: every setting is drawn as diffusers draws it, or refused in one line."""

import contextlib
import inspect
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from opensana.errors import WeightsError
from opensana.flow.scm import scm, scm_sigmas
from opensana.flow.solvers import SOLVERS
from opensana.models.scheduler import (
    DPM,
    EULER,
    LEFT_OVER,
    OWN_SOLVERS,
    SCM,
    SETTINGS,
    read_shift,
    write_scheduler,
)
from tests.configs import HOSTILE
from tests.flow.test_scm import curved as curved_for_scm
from tests.flow.test_scm import diffusers_guesses, noises
from tests.flow.test_solvers import NOISE, curved, diffusers_trajectory

diffusers = pytest.importorskip("diffusers")
pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
    pytest.mark.usefixtures("one_thread"),
]

STEPS = (1, 3, 14, 15)  # below and above 15, where diffusers' last steps differ
PLAIN: dict[str, dict[str, Any]] = {
    DPM: {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 2.5},
    EULER: {"shift": 2.5},
    SCM: {},
}


def written(path: Path, kind: str, **settings: Any) -> Path:
    path.write_text(json.dumps({"_class_name": kind, **PLAIN[kind], **settings}))
    return path


def theirs(kind: str, settings: dict[str, Any], steps: int) -> Tensor:
    """What diffusers draws with a file of these settings, as its pipelines read one."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of keys that it does not know, and its deprecations
        scheduler = getattr(diffusers, kind).from_config(PLAIN[kind] | settings)
        return diffusers_trajectory(scheduler, curved, steps)[-1]


def ours(path: Path, steps: int) -> Tensor:
    kind, shift = read_shift(path)
    solver = SOLVERS[OWN_SOLVERS[kind]]
    return solver.solve(curved, NOISE, solver.sigmas(steps, shift))


def difference(path: Path, kind: str, settings: dict[str, Any], steps: int) -> float:
    expected = theirs(kind, settings, steps)
    found = ours(path, steps)
    return float((found - expected).abs().max() / expected.abs().max())


# ------------------------------------------------------------------ the tables


@pytest.mark.parametrize("kind", SETTINGS)
def test_every_setting_of_diffusers_is_known_with_its_default(kind: str, tmp_path: Path) -> None:
    settings = SETTINGS[kind]
    signature = inspect.signature(getattr(diffusers, kind).__init__).parameters
    defaults = {name: entry.default for name, entry in signature.items() if name != "self"}
    assert set(defaults) <= set(settings.names)
    for name, values in settings.drawn_as.items():
        assert settings.absent.get(name, values[0]) == defaults[name]
    for name in settings.off:
        assert not defaults.get(name)
    if kind != SCM:
        assert defaults[settings.number] == 1.0
        path = written(tmp_path / "s.json", kind)
        given = json.loads(path.read_text())
        del given[settings.number]
        path.write_text(json.dumps(given))
        assert read_shift(path) == (kind, 1.0)


@pytest.mark.parametrize("kind", SETTINGS)
def test_a_whole_file_of_diffusers_is_read(kind: str, tmp_path: Path) -> None:
    scheduler = getattr(diffusers, kind)(**PLAIN[kind])
    scheduler.save_config(tmp_path)
    expected = 1.0 if kind == SCM else 2.5
    assert read_shift(tmp_path / "scheduler_config.json") == (kind, expected)


@pytest.mark.parametrize("kind", SETTINGS)
def test_what_is_written_is_read(kind: str, tmp_path: Path) -> None:
    write_scheduler(tmp_path, 4.0, kind)
    path = tmp_path / "scheduler" / "scheduler_config.json"
    assert read_shift(path) == (kind, 1.0 if kind == SCM else 4.0)


# ------------------------------------------------------------------ drawn as diffusers draws it

SAME: dict[str, dict[str, list[Any]]] = {
    DPM: {
        "beta_start": [0.001],
        "beta_end": [0.012, 0.5],
        "beta_schedule": ["scaled_linear", "squaredcos_cap_v2"],
        "trained_betas": [[0.1] * 1000],
        "rescale_betas_zero_snr": [True],
        "lambda_min_clipped": [-5.1, 0.0],
        "timestep_spacing": ["leading", "trailing"],
        "steps_offset": [1, 5],
        "variance_type": ["learned", "learned_range"],
        "dynamic_thresholding_ratio": [0.5],
        "sample_max_value": [5.0],
        "time_shift_type": ["linear"],
        "lower_order_final": [False],
        "euler_at_final": [True],
        "solver_type": ["logrho", "bh1", "bh2"],
        "num_train_timesteps": [1000],
        "thresholding": [False, None],
        "use_karras_sigmas": [False, 0],
        "flow_shift": [1, 0.5, 6.0],
        "_use_default_values": [[]],
    },
    EULER: {
        "base_shift": [0.1, None],
        "max_shift": [5.0],
        "base_image_seq_len": [1],
        "max_image_seq_len": [9],
        "time_shift_type": ["linear"],
        "shift_terminal": [None, 0],
        "shift": [1, 0.5, 6.0],
    },
}
CASES = [(kind, name, value) for kind in SAME for name in SAME[kind] for value in SAME[kind][name]]


@pytest.mark.parametrize(("kind", "name", "value"), CASES)
def test_an_accepted_value_is_drawn_as_by_diffusers(
    kind: str, name: str, value: Any, tmp_path: Path
) -> None:
    path = written(tmp_path / "s.json", kind, **{name: value})
    for steps in STEPS:
        assert difference(path, kind, {name: value}, steps) < 1e-5


def test_every_setting_without_effect_is_tried() -> None:
    for kind, tried in SAME.items():
        assert set(SETTINGS[kind].without_effect) <= set(tried)


@pytest.mark.parametrize("kind", [DPM, EULER])
def test_settings_left_over_from_another_class_change_nothing(kind: str, tmp_path: Path) -> None:
    """As `FlowMatchEulerDiscreteScheduler.from_config(pipeline.scheduler.config)` saves them."""
    foreign = dict.fromkeys(set(LEFT_OVER) - set(SETTINGS[kind].names), 0.123)
    assert foreign
    path = written(tmp_path / "s.json", kind, **foreign)
    for steps in STEPS:
        assert difference(path, kind, foreign, steps) < 1e-5


def test_a_scheduler_made_from_one_of_another_class_is_drawn_as_by_diffusers(
    tmp_path: Path,
) -> None:
    first = diffusers.DPMSolverMultistepScheduler(**PLAIN[DPM])
    diffusers.FlowMatchEulerDiscreteScheduler.from_config(first.config).save_config(tmp_path)
    path = tmp_path / "scheduler_config.json"
    saved = json.loads(path.read_text())
    assert saved["flow_shift"] == 2.5  # which Euler does not look at
    assert read_shift(path) == (EULER, 1.0)
    for steps in STEPS:
        assert difference(path, EULER, saved, steps) < 1e-5


@pytest.mark.parametrize("settings", [{"num_train_timesteps": 500}, {"sigma_data": 0.25}])
def test_sprint_does_not_depend_on_its_settings(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert read_shift(written(tmp_path / "s.json", SCM, **settings)) == (SCM, 1.0)
    plain: Callable[..., Any] = diffusers.SCMScheduler
    made = lambda **given: plain(**{**settings, **given})  # noqa: E731
    monkeypatch.setattr(diffusers, "SCMScheduler", made)
    for steps in (1, 2, 4):
        expected = diffusers_guesses(steps, settings.get("sigma_data", 0.5))[-1]
        found = scm(curved_for_scm, noises(), scm_sigmas(steps))
        assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


# ------------------------------------------------------------------ refused

OTHER: dict[str, dict[str, list[Any]]] = {
    DPM: {
        "num_train_timesteps": [500, 2000, "1000", None, True],
        "prediction_type": ["epsilon", "v_prediction", "sample", None],
        "use_flow_sigmas": [False, None],
        "algorithm_type": ["dpmsolver", "sde-dpmsolver++", "sde-dpmsolver", "deis"],
        "solver_order": [1, 3],
        "solver_type": ["heun", "euler", None],
        "final_sigmas_type": ["sigma_min", None],
        "thresholding": [True],
        "use_karras_sigmas": [True],
        "use_exponential_sigmas": [True],
        "use_beta_sigmas": [True],
        "use_lu_lambdas": [True],
        "_use_default_values": [["flow_shift"]],
        "flow_shift": [0, -1, "3", None, True, float("nan"), 1e9],
    },
    EULER: {
        "num_train_timesteps": [500, 2000],
        "invert_sigmas": [True],
        "shift_terminal": [0.1],
        "stochastic_sampling": [True],
        "use_dynamic_shifting": [True],
        "use_karras_sigmas": [True],
        "use_exponential_sigmas": [True],
        "use_beta_sigmas": [True],
        "shift": [0, -3.0, None, [3.0]],
    },
    SCM: {"prediction_type": ["epsilon", None], "sigma_data": [0, -1, None]},
}


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind, names in OTHER.items() for name in names]
)
def test_every_other_value_is_refused_in_one_line(kind: str, name: str, tmp_path: Path) -> None:
    for value in OTHER[kind][name]:
        path = written(tmp_path / "s.json", kind, **{name: value})
        with pytest.raises(WeightsError, match=rf"{name} (must be|is not supported)") as caught:
            read_shift(path)
        assert str(caught.value).startswith(f"{path}: ")
        assert str(caught.value).endswith(f"got {json.loads(json.dumps(value))!r}")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("kind", "name"), [(k, n) for k in (DPM, EULER) for n in OTHER[k]])
def test_what_is_refused_would_be_drawn_otherwise(kind: str, name: str, tmp_path: Path) -> None:
    path = written(tmp_path / "s.json", kind)
    value = OTHER[kind][name][0]
    torch.manual_seed(0)
    with contextlib.suppress(ImportError, ValueError, IndexError):  # diffusers fails as well
        assert not difference(path, kind, {name: value}, 15) < 1e-3


@pytest.mark.parametrize(
    ("kind", "name", "hint"),
    [
        (DPM, "flow_shfit", "'flow_shift'"),
        (DPM, "use_karas_sigmas", "'use_karras_sigmas'"),
        (EULER, "shift_terminals", "'shift_terminal'"),
        (SCM, "sigma_dat", "'sigma_data'"),
        (SCM, "predictiontype", "'prediction_type'"),
    ],
)
def test_an_unknown_key_is_refused_with_near_names(
    kind: str, name: str, hint: str, tmp_path: Path
) -> None:
    path = written(tmp_path / "s.json", kind, **{name: 1})
    with pytest.raises(WeightsError, match=rf"unknown key '{name}' \(did you mean {hint}\?\)"):
        read_shift(path)
    assert read_shift(written(path, kind, **{f"_{name}": 1}))[0] == kind


@pytest.mark.parametrize("kind", SETTINGS)
def test_no_value_of_any_setting_is_a_surprise(kind: str, tmp_path: Path) -> None:
    """Each is refused in words, or is read as the plain file."""
    plain = read_shift(written(tmp_path / "s.json", kind))
    for name in SETTINGS[kind].names:
        for value in HOSTILE:
            path = written(tmp_path / "s.json", kind, **{name: value})
            try:
                found = read_shift(path)
            except WeightsError:
                continue
            assert found == plain or name in ("flow_shift", "shift")
