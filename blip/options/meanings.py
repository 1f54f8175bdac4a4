"""Every option of a configuration class in words: its type, limits, default, unit and meaning.

The meaning is the comment behind the field, in the class or in the nearest parent that has one; a comment on a line of
its own begins a group of options. A comment that ends with a unit in brackets gives the unit:

    image_size: int = Field(224, gt=0)  # a side, after cropping and scaling [pixels]

`blip options` and docs/configuration.md are made from this.
"""

import inspect
import io
import json
import re
import tokenize
import types
import typing
from dataclasses import dataclass
from functools import cache
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

Model = type[BaseModel]
UNIT = re.compile(r"(.*?)\s*\[([^][]+)\]")


@dataclass(frozen=True)
class Option:
    """An option of a configuration, in words."""

    name: str
    group: str  # "" without one
    type: str  # with limits, such as "integer, > 0"
    default: str  # in YAML's notation; "required" without one
    unit: str  # "" where it has none
    meaning: str
    owner: Model  # the class that introduces it


def options_of(cls: type[BaseModel], *, inherited: bool = True) -> list[Option]:
    """The options of a configuration class, in the order of its fields.

    Args:
        inherited: those of its parents too; otherwise those that the class itself names.

    Raises:
        ValueError: an option has no meaning.

    Example:
        >>> from blip.config import RunConfig
        >>> options_of(RunConfig)[0].default
        '32'
    """
    names = cls.model_fields if inherited else [n for n in inspect.get_annotations(cls) if n in cls.model_fields]
    return [_option(cls, name, inherited=inherited) for name in names]


def _option(cls: type[BaseModel], name: str, *, inherited: bool) -> Option:
    field = cls.model_fields[name]
    owners = [one for one in cls.__mro__ if issubclass(one, BaseModel) and name in inspect.get_annotations(one)]
    found = [owner.model_fields[name].description or comments(owner)[1][name] for owner in owners]
    meaning = next(filter(None, found), "")
    if not meaning:
        raise ValueError(f"{cls.__name__}.{name} has no meaning: write a comment behind the field")
    group = comments(owners[-1] if inherited else cls)[0][name]  # others only change the default
    parts = UNIT.fullmatch(meaning)
    meaning, unit = (parts[1], parts[2]) if parts else (meaning, "")
    return Option(name, group, type_of(field), default_of(field), unit, meaning, owners[-1])


@cache
def comments(cls: type[BaseModel]) -> tuple[dict[str, str], dict[str, str]]:
    """(group of each field, comment behind each field), both by the field's name and "" where there is none."""
    source = inspect.getsource(cls)
    group = ""
    groups: dict[str, str] = {}
    meanings: dict[str, str] = {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.NAME and token.start[1] == 4 and token.string in cls.model_fields:
            groups.setdefault(token.string, group)
            meanings.setdefault(token.string, "")
        elif token.type == tokenize.COMMENT:
            text = token.string.removeprefix("#").strip()
            before = token.line[: token.start[1]].strip()
            if not before and token.start[1] == 4:
                group = text
            elif (name := before.partition(":")[0]) in meanings:
                meanings[name] = text
    return groups, meanings


# ---- types and values ------------------------------------------------------------------------------------------------


def type_of(field: FieldInfo) -> str:
    """The type in words, with the field's limits, such as "number, > 0"."""
    parts = [words(field.annotation)]
    for limit in field.metadata:
        for name, sign in {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}.items():
            if hasattr(limit, name):
                parts.append(f"{sign} {short(getattr(limit, name))}")
    return ", ".join(parts)


def words(annotation: Any) -> str:
    """A type as a user of YAML would call it."""
    plain = {int: "integer", float: "number", str: "text", bool: "true, false", types.NoneType: "null", Any: "value"}
    if annotation in plain:
        return plain[annotation]
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return ", ".join(map(str, inner))
    if origin in (types.UnionType, typing.Union):
        return " or ".join(words(one) for one in inner)
    if origin is list:
        return f"list of {words(inner[0])}"
    if origin is tuple:
        return f"[{', '.join(words(one) for one in inner)}]"
    return "options"  # a mapping, or a class of options


def has_numbers(annotation: Any) -> bool:
    """Whether values of a type are, or hold, integers or numbers with fractions."""
    return annotation in (int, float) or any(map(has_numbers, typing.get_args(annotation)))


def default_of(field: FieldInfo) -> str:
    """The default in YAML's notation."""
    return "required" if field.is_required() else short(field.get_default(call_default_factory=True))


def short(value: Any) -> str:
    """A value in YAML's notation."""
    if isinstance(value, str):
        return value if value.strip() == value and value else json.dumps(value)
    if isinstance(value, int) and value == 2**63:
        return "2^63"
    return json.dumps(value)
