"""The parts of ComfyUI that the node pack uses, by their documented names, and its way to load."""

import importlib.util
import sys
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


@dataclass
class Value:
    id: str
    options: dict[str, Any]


class Kind:
    """Such as `io.Int`: with `Input` and `Output`."""

    def __init__(self, takes: set[str]) -> None:
        self._takes = takes | {"optional", "tooltip", "default"}

    def Input(self, id: str, **options: Any) -> Value:
        assert set(options) <= self._takes, f"unknown options {set(options) - self._takes}"
        return Value(id, options)

    def Output(self) -> Value:
        return Value("output", {})


@dataclass
class Schema:
    node_id: str
    display_name: str
    category: str
    inputs: list[Value]
    outputs: list[Value]


class NodeOutput:
    def __init__(self, *values: Any) -> None:
        self.args = values


class InterruptProcessingException(Exception):
    pass


@dataclass
class Comfy:
    """What happens to the program while a node is at work."""

    interrupted: bool = False
    progress: list[int] = field(default_factory=list[int])

    def raise_if_interrupted(self) -> None:
        if self.interrupted:
            raise InterruptProcessingException


def load(monkeypatch: pytest.MonkeyPatch, folder: Path) -> tuple[ModuleType, Comfy]:
    """The pack in a folder, loaded by its path as ComfyUI loads custom nodes."""
    state = Comfy()
    numbers = {"min", "max", "step"}
    io = module(
        ComfyNode=object,
        Schema=Schema,
        NodeOutput=NodeOutput,
        String=Kind({"multiline"}),
        Int=Kind(numbers | {"control_after_generate"}),
        Float=Kind(numbers),
        Image=Kind(set()),
        Mask=Kind(set()),
    )

    class ProgressBar:
        def __init__(self, total: int) -> None:
            self.total = total

        def update_absolute(self, value: int) -> None:
            assert 0 <= value <= self.total
            state.raise_if_interrupted()
            state.progress.append(value)

    management = module(
        processing_interrupted=lambda: state.interrupted,
        throw_exception_if_processing_interrupted=state.raise_if_interrupted,
    )
    utils = module(ProgressBar=ProgressBar)
    stand_ins = {
        "comfy": module(model_management=management, utils=utils),
        "comfy.model_management": management,
        "comfy.utils": utils,
        "comfy_api": module(),
        "comfy_api.latest": module(ComfyExtension=object, io=io),
    }
    for name, stand_in in stand_ins.items():
        monkeypatch.setitem(sys.modules, name, stand_in)
    name = "custom_nodes_opensana"
    for loaded in [one for one in sys.modules if one.startswith(f"{name}.")]:
        monkeypatch.delitem(sys.modules, loaded)
    spec = importlib.util.spec_from_file_location(
        name, folder / "__init__.py", submodule_search_locations=[str(folder)]
    )
    assert spec is not None and spec.loader is not None
    pack = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, pack)
    spec.loader.exec_module(pack)
    return pack, state


def module(**values: Any) -> ModuleType:
    made = ModuleType("stand_in")
    vars(made).update(values)
    return made
