"""scheduler/scheduler_config.json: which solver walks which noise levels.

Every setting of the three classes of diffusers is in a table here, by what another value does.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from opensana.errors import WeightsError, near
from opensana.files.writing import read_json, write_json
from opensana.request import SolverName

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
OWN_SOLVERS: dict[str, SolverName] = {DPM: "flow_dpm", EULER: "euler", SCM: "scm"}


@dataclass(frozen=True)
class Settings:
    """Every setting of one of diffusers' scheduler classes, by what another value would do."""

    drawn_as: Mapping[str, tuple[Any, ...]]
    """The values that are drawn as here, equal to diffusers; the first is written."""
    off: tuple[str, ...]
    """What must be off: each would walk other noise levels, or in another way."""
    without_effect: tuple[str, ...]
    """What changes nothing of a flow, whatever its value."""
    number: str
    """What is a positive number: the flow shift, or Sprint's sigma_data, which cancels."""
    absent: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """The class's default where that is none of `drawn_as`."""

    @property
    def names(self) -> tuple[str, ...]:
        return (*self.drawn_as, *self.off, *self.without_effect, self.number)


SETTINGS = {
    DPM: Settings(
        drawn_as={
            "num_train_timesteps": (1000,),
            "prediction_type": ("flow_prediction",),
            "use_flow_sigmas": (True,),
            "algorithm_type": ("dpmsolver++",),
            "solver_order": (2,),
            "solver_type": ("midpoint", "logrho", "bh1", "bh2"),
            "final_sigmas_type": ("zero",),
        },
        off=(
            *("thresholding", "use_dynamic_shifting", "use_lu_lambdas"),
            *("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"),
        ),
        without_effect=(
            *("beta_start", "beta_end", "beta_schedule", "trained_betas", "rescale_betas_zero_snr"),
            *("lambda_min_clipped", "timestep_spacing", "steps_offset", "variance_type"),
            *("dynamic_thresholding_ratio", "sample_max_value", "time_shift_type"),
            *("lower_order_final", "euler_at_final"),
        ),
        number="flow_shift",
        absent={"prediction_type": "epsilon", "use_flow_sigmas": False},
    ),
    EULER: Settings(
        drawn_as={"num_train_timesteps": (1000,)},
        off=(
            *("invert_sigmas", "shift_terminal", "stochastic_sampling", "use_dynamic_shifting"),
            *("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas"),
        ),
        without_effect=(
            *("base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len"),
            "time_shift_type",
        ),
        number="shift",
    ),
    SCM: Settings(
        drawn_as={"prediction_type": ("trigflow",)},
        off=(),
        without_effect=("num_train_timesteps",),
        number="sigma_data",
    ),
}
# A scheduler that diffusers made from one of another class keeps that one's settings in its file,
# where its own class never looks at them.
LEFT_OVER = (
    *(name for settings in SETTINGS.values() for name in settings.names),
    *("clip_sample", "clip_sample_range", "set_alpha_to_one", "skip_prk_steps", "sigma_min"),
    *("sigma_max", "predict_x0", "solver_p", "disable_corrector", "scale_factors", "upscale_mode"),
)

# diffusers takes its defaults for the settings that this lists, though the file has values.
DEFAULTED = "_use_default_values"


def read_shift(path: Path) -> tuple[str, float]:
    """The scheduler's class and its flow shift; 1, none, for Sprint models.

    WeightsError for a setting with which diffusers would draw something else.
    """
    config = read_json(path)
    kind = str(config.get("_class_name"))
    if kind not in SETTINGS:
        raise WeightsError(
            f"{path}: the scheduler {kind} is not supported{near(kind, SETTINGS)}; "
            f"there are {DPM} with flow sigmas, {EULER} and {SCM}"
        )
    _check_settings(config, path, SETTINGS[kind])
    number = _number(config, path, SETTINGS[kind].number)
    return kind, 1.0 if kind == SCM else number


def _check_settings(config: Mapping[str, Any], path: Path, settings: Settings) -> None:
    known = (*settings.names, *LEFT_OVER)
    for name in config:
        if not name.startswith("_") and name not in known:
            raise WeightsError(
                f"{path}: unknown key {name!r}{near(name, known)}; correct it or leave it out"
            )
    for name, values in settings.drawn_as.items():
        value = config.get(name, settings.absent.get(name, values[0]))
        if value not in values:
            raise WeightsError(f"{path}: {name} must be {values[0]!r}, got {value!r}")
    for name in (*settings.off, DEFAULTED):
        if config.get(name):
            raise WeightsError(f"{path}: {name} is not supported, got {config[name]!r}")


def _number(config: Mapping[str, Any], path: Path, name: str) -> float:
    value = config.get(name, 1.0)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1000:
        raise WeightsError(f"{path}: {name} must be a positive number below 1000, got {value!r}")
    return float(value)


def write_scheduler(folder: Path, shift: float, scheduler: str = DPM) -> None:
    """scheduler/scheduler_config.json of that class; Sprint's has no shift."""
    (folder / "scheduler").mkdir(parents=True, exist_ok=True)
    configs = {
        DPM: {**SCHEDULER, "flow_shift": shift},
        EULER: {**EULER_SCHEDULER, "shift": shift},
        SCM: SPRINT_SCHEDULER,
    }
    write_json(folder / "scheduler" / "scheduler_config.json", configs[scheduler])
