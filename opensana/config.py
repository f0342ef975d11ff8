"""Recipes: TOML and `--set a.b=value` to frozen dataclasses, and back to TOML.

A default is written once, in the dataclass field. Nothing is guessed: an unknown key, a missing key
or a value of the wrong type is an error that names the dotted key.
"""

import dataclasses
import json
import re
import tomllib
from collections.abc import Collection, Iterator, Mapping, Sequence
from enum import Enum
from functools import cache
from pathlib import Path
from types import GenericAlias
from typing import Any, TypeVar, get_args, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from opensana.errors import ConfigError, near

T = TypeVar("T")

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_OVERRIDE = re.compile(r"\s*([A-Za-z0-9_.-]+)\s*=(.*)", re.DOTALL)


def build(cls: type[T], mapping: Mapping[str, Any], *, where: str) -> T:
    """Build the dataclass `cls` from nested tables; `where` names their origin in errors."""
    try:
        # Through JSON pydantic is strict about scalars and still accepts tables and arrays.
        text = json.dumps([dict(mapping)], default=_as_json)
        return _adapter(cls).validate_json(text)[0]
    except ValidationError as error:
        found = "; ".join(_describe(cls, detail) for detail in error.errors())
        raise ConfigError(f"{where}: {found}") from None
    except (TypeError, UnicodeEncodeError) as error:
        raise ConfigError(f"{where}: {error}") from None


def check_bounds(
    config: Any, bounds: Mapping[str, tuple[float, float]], *, optional: Collection[str] = ()
) -> None:
    """ConfigError if a field is out of bounds; the fields in `optional` may be None."""
    for name, (low, high) in bounds.items():
        value = getattr(config, name)
        if value is None and name in optional:
            continue
        if value is None or not low <= value <= high:
            raise ConfigError(f"{name} must be {low} to {high}, got {value}")


def load_toml(path: str | Path, cls: type[T], overrides: Sequence[str] = ()) -> T:
    """Read the recipe at `path` and apply overrides such as `optimizer.learning_rate=1e-4`."""
    try:
        tables = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"no recipe at {path}; check the path") from None
    except OSError as error:
        raise ConfigError(f"cannot read the recipe {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not UTF-8 text; a recipe is a TOML file") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from None
    for override in overrides:
        apply_override(tables, override)
    return build(cls, tables, where=str(path))


def apply_override(tables: dict[str, Any], override: str) -> None:
    """Set one `a.b=value` in nested tables, in place; a bare word is a string."""
    match = _OVERRIDE.fullmatch(override)
    parts = match[1].split(".") if match else [""]
    if match is None or not all(parts):
        raise ConfigError(f"cannot read the override {override!r}; try --set section.key=value")
    *sections, key = parts
    table = tables
    for depth, section in enumerate(sections):
        table = table.setdefault(section, {})
        if not isinstance(table, dict):
            parent = ".".join(sections[: depth + 1])
            raise ConfigError(
                f"--set {override}: '{parent}' is a value, not a table; set it itself"
            )
    text = match[2].strip()
    try:
        parsed = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        parsed = {}
    table[key] = parsed["value"] if len(parsed) == 1 else text


def to_toml(config: Any) -> str:
    """The resolved recipe as TOML; `load_toml` reads back an equal dataclass."""
    return "\n".join(_table_lines("", _as_table(config))).strip() + "\n"


# Reading


def _as_json(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Enum):
        return value.value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    raise TypeError(f"cannot use the value {value}; put text in quotes")


@cache
def _adapter(cls: Any) -> TypeAdapter[list[Any]]:
    # pydantic takes no config for a bare dataclass; on a list of it the config reaches every level.
    listed: Any = GenericAlias(list, (cls,))
    return TypeAdapter(listed, config=ConfigDict(extra="forbid", strict=True))


# Errors


def _describe(cls: type, detail: ErrorDetails) -> str:
    location = detail["loc"][1:]
    key = ".".join(str(part) for part in location)
    hint = getattr(cls, "hints", {}).get(key, "")
    hint = f"; {hint}" if hint else ""
    match detail["type"]:
        case "unexpected_keyword_argument" | "extra_forbidden":
            return f"unknown key '{key}'" + (
                hint or near(str(location[-1]), _names_at(cls, location[:-1]))
            )
        case "missing" | "missing_argument":
            return f"'{key}' is missing{hint}"
        case "value_error":
            reason = str(detail.get("ctx", {}).get("error", detail["msg"]))
            return f"{key}: {reason}" if key else reason
    got = json.dumps(detail["input"], ensure_ascii=False, default=str)
    short = got if len(got) <= 80 else got[:77] + "..."
    wish = detail["msg"].replace("Input should", "should").replace("an object", "a table")
    return f"'{key}' {wish}, got {short}" if key else f"{wish}, got {short}"


def _names_at(cls: Any, location: Sequence[str | int]) -> list[str]:
    """The fields of the dataclass at `location` inside `cls`; none where it is unknown."""
    candidates = list(_dataclasses_in(cls))
    for part in location:
        hints = [get_type_hints(candidate).get(str(part)) for candidate in candidates]
        inner = [found for hint in hints if hint for found in _dataclasses_in(hint)]
        # A list index, a table's key or a union's label does not change the type.
        candidates = inner or candidates
    return [field.name for candidate in candidates for field in dataclasses.fields(candidate)]


def _dataclasses_in(hint: Any) -> Iterator[Any]:
    if dataclasses.is_dataclass(hint):
        yield hint
    else:
        for argument in get_args(hint):
            yield from _dataclasses_in(argument)


# Writing


def _as_table(value: Any) -> dict[str, Any]:
    """A dataclass or mapping as nested dicts; None becomes a missing key, as TOML has no null."""
    if isinstance(value, Mapping):
        items = [(str(key), item) for key, item in value.items()]
    else:
        items = []
        for field in dataclasses.fields(value):
            item = getattr(value, field.name)
            if item is None and field.default is not None:
                raise ConfigError(f"'{field.name}' is None, which TOML cannot say; give a value")
            items.append((field.name, item))
    return {key: _plain(item) for key, item in items if item is not None}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping) or dataclasses.is_dataclass(value):
        return _as_table(value)
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    return value


def _table_lines(prefix: str, table: Mapping[str, Any]) -> Iterator[str]:
    """Plain values come first; after a sub-table TOML would read them as part of it."""
    for key, value in table.items():
        if not isinstance(value, dict) and not _is_table_list(value):
            yield f"{_key(key)} = {_value(value)}"
    for key, value in table.items():
        name = f"{prefix}{_key(key)}"
        if isinstance(value, dict):
            yield from ["", f"[{name}]", *_table_lines(f"{name}.", value)]
        elif _is_table_list(value):
            for item in value:
                yield from ["", f"[[{name}]]", *_table_lines(f"{name}.", item)]


def _is_table_list(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(v, dict) for v in value)


def _key(key: str) -> str:
    return key if _BARE_KEY.fullmatch(key) else _quoted(key)


def _quoted(text: str) -> str:
    # TOML strings are JSON strings, except that TOML escapes DEL as well.
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _value(value: Any) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case Enum():
            return _value(value.value)
        case int() | float():
            return repr(value)
        case str() | Path():
            return _quoted(str(value))
        case list():
            return "[" + ", ".join(_value(item) for item in value) + "]"
        case dict():
            return "{" + ", ".join(f"{_key(k)} = {_value(v)}" for k, v in value.items()) + "}"
    raise ConfigError(f"cannot write {value!r} to TOML; use text, numbers, lists and tables")
