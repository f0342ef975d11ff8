"""scheduler/scheduler_config.json: which solver walks which noise levels."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from opensana.errors import WeightsError, near
from opensana.request import SolverName
from opensana.weights.files import read_json, write_json

DIFFUSERS_VERSION = "0.32.0"
DPM, EULER = "DPMSolverMultistepScheduler", "FlowMatchEulerDiscreteScheduler"
SCM = "SCMScheduler"
SCHEDULER: dict[str, Any] = {
    "_class_name": DPM,
    "_diffusers_version": DIFFUSERS_VERSION,
    "algorithm_type": "dpmsolver++",
    "final_sigmas_type": "zero",
    "flow_shift": 3.0,
    "lower_order_final": True,
    "num_train_timesteps": 1000,
    "prediction_type": "flow_prediction",
    "solver_order": 2,
    "solver_type": "midpoint",
    "use_flow_sigmas": True,
}
SPRINT_SCHEDULER: dict[str, Any] = {
    "_class_name": SCM,
    "_diffusers_version": DIFFUSERS_VERSION,
    "num_train_timesteps": 1000,
    "prediction_type": "trigflow",
    "sigma_data": 0.5,
}
EULER_SCHEDULER: dict[str, Any] = {
    "_class_name": EULER,
    "_diffusers_version": DIFFUSERS_VERSION,
    "num_train_timesteps": 1000,
    "shift": 3.0,
}
# Each of these would change the noise levels that `flow_dpm` and `euler` walk.
OTHER_SIGMAS = (
    "invert_sigmas",
    "shift_terminal",
    "stochastic_sampling",
    "use_beta_sigmas",
    "use_dynamic_shifting",
    "use_exponential_sigmas",
    "use_karras_sigmas",
)
OWN_SOLVERS: dict[str, SolverName] = {DPM: "flow_dpm", EULER: "euler", SCM: "scm"}


def read_shift(path: Path) -> tuple[str, float]:
    """The scheduler's class and its flow shift; 1, none, for Sprint models."""
    config = read_json(path)
    kind = str(config.get("_class_name"))
    if kind not in (DPM, EULER, SCM):
        raise WeightsError(
            f"{path}: the scheduler {kind} is not supported{near(kind, (DPM, EULER, SCM))}; "
            f"there are {DPM} with flow sigmas, {EULER} and {SCM}"
        )
    if kind == SCM:
        _check_setting(config, path, "prediction_type", "trigflow", absent="trigflow")
        return kind, 1.0
    for name in OTHER_SIGMAS:
        if config.get(name):
            raise WeightsError(f"{path}: {name} is not supported, got {config[name]!r}")
    if kind == DPM:
        _check_flow(config, path)
    shift = config.get("flow_shift" if kind == DPM else "shift", 1.0)
    if isinstance(shift, bool) or not isinstance(shift, int | float) or not 0 < shift < 1000:
        raise WeightsError(f"{path}: the flow shift must be a positive number, got {shift!r}")
    return kind, float(shift)


def _check_flow(config: Mapping[str, Any], path: Path) -> None:
    names = ("prediction_type", "use_flow_sigmas", "algorithm_type", "solver_order", "solver_type")
    absent = {"prediction_type": "epsilon", "use_flow_sigmas": False}
    for name in names:
        wanted = SCHEDULER[name]
        _check_setting(config, path, name, wanted, absent=absent.get(name, wanted))


def _check_setting(
    config: Mapping[str, Any], path: Path, name: str, wanted: object, *, absent: object
) -> None:
    value = config.get(name, absent)
    if value != wanted:
        raise WeightsError(f"{path}: {name} must be {wanted!r}, got {value!r}")


def write_scheduler(folder: Path, shift: float, scheduler: str = DPM) -> None:
    """scheduler/scheduler_config.json of that class; Sprint's has no shift."""
    (folder / "scheduler").mkdir(parents=True, exist_ok=True)
    configs = {
        DPM: {**SCHEDULER, "flow_shift": shift},
        EULER: {**EULER_SCHEDULER, "shift": shift},
        SCM: SPRINT_SCHEDULER,
    }
    write_json(folder / "scheduler" / "scheduler_config.json", configs[scheduler])
