"""Guards of the design: import direction, public names, module length, tests, a light `--help`."""

import ast
import importlib
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from opensana.cli.app import names

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "opensana"
TESTS = ROOT / "tests"
MODULES = sorted(PACKAGE.rglob("*.py"))

# A line imports only from the lines below it and from its own package.
LINES = (
    ("cli",),
    ("train", "label", "evaluate", "serve"),
    ("features",),
    ("pipeline",),
    ("drawing",),
    ("models",),
    ("metrics",),
    ("runtime",),
    ("text", "transformer", "autoencoder", "flow", "datasets"),
    ("pictures",),
    ("layers", "weights"),
    ("files", "workers"),
    ("request", "config", "device"),
    ("errors",),
)
HEIGHT = {name: -line for line, names in enumerate(LINES) for name in names}

LONGEST_MODULE = 300
# A longer module is a question: here are the answers.
LONG_FOR_A_REASON = {
    "train/recipe.py": "every table of a recipe, as its reader meets them",
    "weights/safetensors.py": "one file format, with every way in which a file can be broken",
}
HEAVY = {"torch", "transformers", "numpy", "PIL", "pydantic", "huggingface_hub", "safetensors"}
SECONDS_FOR_HELP = 2.0
"""Of a processor, so that tests beside it do not count; a free one takes under 1."""


def part(name: str) -> str:
    """The line-up's name of a dotted module: opensana.flow.path is flow."""
    return name.split(".")[1]


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(path: Path) -> Iterator[str]:
    """Modules of opensana that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("opensana."))
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            if node.module == "opensana":
                yield from (f"opensana.{alias.name}" for alias in node.names)
            elif node.module and node.module.startswith("opensana."):
                yield node.module


def test_imports_go_down() -> None:
    wrong = []
    for path in MODULES:
        name = name_of(path)
        if name == "opensana":
            continue
        for other in imported(path):
            known = part(other) in HEIGHT
            if known and part(other) != part(name) and HEIGHT[part(other)] >= HEIGHT[part(name)]:
                wrong.append(f"{name} imports {other}")
    assert not wrong


def parts() -> set[str]:
    """Modules and folders of the package's root."""
    names = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in MODULES}
    return names - {"__init__"}


def test_every_part_has_its_line() -> None:
    assert parts() == set(HEIGHT)


def test_few_modules_lie_beside_the_folders() -> None:
    assert len(list(PACKAGE.glob("*.py"))) <= 6


def block(page: str, first: str) -> list[str]:
    """The lines of a page's text block that begins with a line."""
    text = (ROOT / page).read_text(encoding="utf-8")
    return text.split(f"```text\n{first}\n")[1].split("```")[0].splitlines()


def test_the_docs_show_the_lines_of_the_guard() -> None:
    first, *rest = ("  ".join(names) for names in LINES)
    assert block("docs/architecture.md", first) == rest


@pytest.mark.parametrize("page", ["docs/architecture.md", "README.md"])
def test_the_trees_of_the_docs_are_that_of_the_package(page: str) -> None:
    shown = {
        line.split()[0].rstrip("/").removesuffix(".py")
        for line in block(page, "opensana/")
        if line.startswith("  ")
    }
    folders = {path.name for path in PACKAGE.iterdir() if path.is_dir()} - {"__pycache__"}
    assert folders <= shown <= parts() | {"__init__", "pretrained"}


def test_the_package_needs_nothing_of_the_repository() -> None:
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            roots = {name.split(".")[0] for name in names}
            assert not roots & {"recipes", "benchmarks", "tests", "diffusers"}, path


def bound(path: Path) -> set[str]:
    """Public names that a module's top level binds."""
    names: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.ImportFrom) and str(node.module).startswith("opensana."):
            names |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Assign):
            names |= {target.id for target in node.targets if isinstance(target, ast.Name)}
    return {name for name in names if not name.startswith("_")}


@pytest.mark.parametrize("path", [p for p in MODULES if p.name == "__init__.py"], ids=name_of)
def test_public_names_equal_all(path: Path) -> None:
    module = importlib.import_module(name_of(path))
    public = set(getattr(module, "__all__", ()))
    for name in public:
        assert hasattr(module, name), f"{module.__name__}.__all__ names {name}, which is not there"
    assert bound(path) <= public


def test_importing_opensana_is_light() -> None:
    code = "import sys, opensana; print(*{name.split('.')[0] for name in sys.modules})"
    assert not HEAVY & set(run_python("-c", code).split())


def test_modules_are_short_or_say_why() -> None:
    lengths = {
        str(path.relative_to(PACKAGE).as_posix()): len(path.read_text().splitlines())
        for path in MODULES
    }
    long = {name for name, lines in lengths.items() if lines > LONGEST_MODULE}
    assert long <= set(LONG_FOR_A_REASON), "split it, or answer in LONG_FOR_A_REASON"


def also_tested() -> set[str]:
    """Modules that the tests of another one name: "Also tests `models/load.py`"."""
    found: set[str] = set()
    for path in TESTS.rglob("test_*.py"):
        described = ast.get_docstring(ast.parse(path.read_text())) or ""
        found |= set(re.findall(r"`([\w/]+\.py)`", described.partition("Also tests")[2]))
    return found


def test_every_module_has_tests_of_its_name_or_named_by_others() -> None:
    names = {path.relative_to(PACKAGE).as_posix() for path in MODULES if path.name[0] != "_"}
    own = {
        path.with_name(path.name.removeprefix("test_")).relative_to(TESTS).as_posix()
        for path in TESTS.rglob("test_*.py")
    }
    assert also_tested() <= names, "a docstring names a module that is not there"
    assert not names - own - also_tested()


def own_methods(cls: type) -> set[str]:
    """Methods and properties that a class's own file writes: those that dataclass makes are not."""
    functions = {
        name: value.fget if isinstance(value, property) else getattr(value, "__func__", value)
        for name, value in vars(cls).items()
    }
    codes = {name: getattr(f, "__code__", None) for name, f in functions.items()}
    return {
        name
        for name, code in codes.items()
        if code and Path(code.co_filename).is_relative_to(PACKAGE)
    }


def test_classes_of_train_are_composed_not_overridden() -> None:
    """None overrides more than one method of another of ours."""
    overridden = {}
    for path in sorted((PACKAGE / "train").rglob("*.py")):
        module = importlib.import_module(name_of(path))
        for cls in vars(module).values():
            if not isinstance(cls, type) or cls.__module__ != module.__name__:
                continue
            ours = [base for base in cls.__mro__[1:] if base.__module__.startswith("opensana.")]
            inherited = {name for base in ours for name in own_methods(base)}
            overridden[cls.__qualname__] = own_methods(cls) & inherited
    assert overridden["AutoencoderRecipe"] == {"__post_init__"}, "an override is seen"
    assert not {name: names for name, names in overridden.items() if len(names) > 1}


@pytest.mark.parametrize("command", ["", *names()])
def test_help_is_light(command: str) -> None:
    code = (
        "import sys\n"
        "from opensana.cli import main\n"
        "try: main(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "print('MODULES', *{name.split('.')[0] for name in sys.modules})"
    )
    start = os.times().children_user
    text, modules = run_python("-c", code, *command.split(), "--help").split("MODULES")
    seconds = os.times().children_user - start
    assert "usage: opensana" in text
    assert not HEAVY & set(modules.split())
    assert seconds < SECONDS_FOR_HELP


def run_python(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return done.stdout
