"""Recipes: strict reading, overrides, writing."""

import math
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from opensana.config import build, load_toml, to_toml
from opensana.errors import ConfigError


@dataclass(frozen=True)
class Stage:
    steps: int
    size: int = 32


@dataclass(frozen=True)
class Optimizer:
    learning_rate: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.95)
    warmup: int = 10

    def __post_init__(self) -> None:
        if self.learning_rate <= 0:
            raise ConfigError(f"learning_rate must be positive, got {self.learning_rate}; try 1e-4")


@dataclass(frozen=True)
class Recipe:
    data: Path
    name: str = "run"
    resume: bool = False
    seed: int | None = None
    precision: Literal["float32", "bfloat16"] = "float32"
    optimizer: Optimizer = field(default_factory=Optimizer)
    teacher: Optimizer | None = None
    stages: tuple[Stage, ...] = ()
    weights: dict[str, float] = field(default_factory=dict)


def read(text: str, folder: Path, *overrides: str) -> Recipe:
    path = folder / "recipe.toml"
    path.write_text(text, encoding="utf-8")
    return load_toml(path, Recipe, overrides)


FULL = """
data = "pictures"
precision = "bfloat16"
[optimizer]
learning_rate = 3e-5
betas = [0.9, 0.999]
[[stages]]
steps = 5
[[stages]]
steps = 7
size = 64
[weights]
long = 2
"""


def test_a_recipe_becomes_frozen_dataclasses(tmp_path: Path) -> None:
    assert read(FULL, tmp_path) == Recipe(
        data=Path("pictures"),
        precision="bfloat16",
        optimizer=Optimizer(learning_rate=3e-5, betas=(0.9, 0.999)),
        stages=(Stage(5), Stage(7, 64)),
        weights={"long": 2.0},
    )


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("nmae=x", "unknown key 'nmae' (did you mean 'name'?)"),
        ("optimizer.learning_rat=1", "'optimizer.learning_rat' (did you mean 'learning_rate'?)"),
        ("teacher.warmpu=1", "unknown key 'teacher.warmpu' (did you mean 'warmup'?)"),
        ("stages=[{steps=1, sise=2}]", "unknown key 'stages.0.sise' (did you mean 'size'?)"),
        ("stages=[{size=2}]", "'stages.0.steps' is missing"),
        ("optimizer.warmup=soon", "'optimizer.warmup' should be a valid integer, got \"soon\""),
        ("optimizer.warmup=1.5", "'optimizer.warmup' should be a valid integer"),
        ('optimizer.warmup="3"', "'optimizer.warmup' should be a valid integer, got \"3\""),
        ("resume=1", "'resume' should be a valid boolean, got 1"),
        ("seed=true", "'seed' should be a valid integer, got true"),
        ("name=3", "'name' should be a valid string, got 3"),
        ("name=2020-01-01", "put text in quotes"),
        ("precision=float8", "'precision' should be 'float32' or 'bfloat16', got \"float8\""),
        ("optimizer=3", "'optimizer' should be a table, got 3"),
        ("optimizer.betas=[1.0]", "optimizer.betas"),
        ("optimizer.learning_rate=-1", "optimizer: learning_rate must be positive, got -1"),
        ("name.x=1", "'name' is a value, not a table"),
        ("name", "cannot read the override 'name'; try --set section.key=value"),
        ("a..b=1", "cannot read the override"),
    ],
)
def test_a_wrong_value_is_named_by_its_place(tmp_path: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read('data = "x"\nname = "y"', tmp_path, override)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_all_mistakes_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"recipe.toml: .*'data' is missing.*'x'"):
        read("x = 1", tmp_path)


@pytest.mark.parametrize(
    ("override", "place", "value"),
    [
        ("name=plain words", "name", "plain words"),
        ("name=a=b", "name", "a=b"),
        ('name="quoted"', "name", "quoted"),
        ("name=", "name", ""),
        ("name=1\nresume = true", "name", "1\nresume = true"),
        ("resume=true", "resume", True),
        ("seed = 7", "seed", 7),
        ("data=/tmp/x", "data", Path("/tmp/x")),
        ("stages=[{steps=1}]", "stages", (Stage(1),)),
        ("weights.short=0.5", "weights", {"short": 0.5}),
        ("optimizer.learning_rate=1e-3", "optimizer", Optimizer(learning_rate=1e-3)),
    ],
)
def test_overrides(tmp_path: Path, override: str, place: str, value: object) -> None:
    assert getattr(read('data = "x"', tmp_path, override), place) == value


def test_later_overrides_win(tmp_path: Path) -> None:
    assert read("seed = 1\ndata = 'x'", tmp_path, "seed=2", "seed=3").seed == 3


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"a = = 1", "is not valid TOML"), (b"\xff\xfe", "is not UTF-8"), (None, "no recipe at")],
)
def test_a_file_that_is_no_recipe(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "recipe.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        load_toml(path, Recipe)
    with pytest.raises(ConfigError, match="cannot read the recipe"):
        load_toml(tmp_path, Recipe)


def test_build_accepts_python_values() -> None:
    built = build(Recipe, {"data": Path("x"), "optimizer": Optimizer(warmup=3)}, where="here")
    assert built == Recipe(Path("x"), optimizer=Optimizer(warmup=3))


def test_the_resolved_recipe_reads_back(tmp_path: Path) -> None:
    recipe = read(FULL, tmp_path, "teacher.warmup=3", "seed=4")
    text = to_toml(recipe)
    assert "learning_rate = 3e-05" in text
    assert read(text, tmp_path) == recipe
    assert to_toml(read(text, tmp_path)) == text


numbers = st.floats(allow_nan=False, allow_infinity=True)
words = st.text(max_size=20)


@settings(max_examples=40, deadline=None)
@given(
    name=words,
    rate=st.floats(min_value=1e-300, allow_nan=False),
    betas=st.tuples(numbers, numbers),
    seed=st.none() | st.integers(-(2**63), 2**63 - 1),
    weights=st.dictionaries(words, numbers, max_size=3),
)
def test_any_recipe_survives_toml(name, rate, betas, seed, weights) -> None:
    recipe = Recipe(
        Path("x"), name=name, optimizer=Optimizer(rate, betas), seed=seed, weights=weights
    )
    assert build(Recipe, tomllib.loads(to_toml(recipe)), where="here") == recipe


def test_not_a_number_survives_toml(tmp_path: Path) -> None:
    recipe = Recipe(Path("x"), weights={"a": math.nan, "b": -math.inf})
    weights = read(to_toml(recipe), tmp_path).weights
    assert math.isnan(weights["a"])
    assert weights["b"] == -math.inf


def test_what_toml_cannot_say_is_an_error() -> None:
    @dataclass(frozen=True)
    class Odd:
        limit: int | None = 3
        extra: object = None

    with pytest.raises(ConfigError, match="'limit' is None"):
        to_toml(Odd(limit=None))
    with pytest.raises(ConfigError, match="cannot write"):
        to_toml(Odd(extra=object()))
