"""Writes docs/configuration.md from the configuration classes: type, default and meaning of every option.

python docs/make_configuration.py

The meaning of an option is the comment behind its field; a comment on a line of its own begins a group of options.
"""

import inspect
import io
import json
import tokenize
import types
import typing
from pathlib import Path
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from blip.capfilt.config import CapFiltConfig
from blip.config import ModelConfig, PretrainConfig, RunConfig
from blip.pubmed.run import PubmedConfig
from blip.tasks.config import (
    CaptionConfig,
    FineTuneConfig,
    LoraConfig,
    NlvrConfig,
    RetrievalConfig,
    VqaConfig,
    WritingConfig,
)

PAGE = Path(__file__).resolve().parent / "configuration.md"
CLASSES = {  # in the page's order: title -> class
    "Every training script": RunConfig,
    "Data and model": ModelConfig,
    "Pre-training": PretrainConfig,
    "Fine-tuning": FineTuneConfig,
    "Generation in evaluation": WritingConfig,
    "Retrieval": RetrievalConfig,
    "Captions": CaptionConfig,
    "Questions": VqaConfig,
    "Statements about two images": NlvrConfig,
    "LoRA": LoraConfig,
    "CapFilt": CapFiltConfig,
    "PubMed Central": PubmedConfig,
}
HEAD = """# Configuration

<!-- Written by docs/make_configuration.py from the configuration classes. Change the comments there, not this page. -->

A configuration is a flat YAML file. Files in `configs/` set the options of one run each, and `--set key=value` on the
command line overrides the file; the value is in YAML's notation. An unknown key, a wrong type or a value outside its
limits ends the run with a message before anything is read; for an unknown key the message names the nearest known one.
`--config` takes a path, or the name of a file of `configs/` such as `pretrain_demo`. Every run writes the
configuration with all resolved values to `config.yaml` in its folder.

A section below lists the options that a group of scripts adds. Each training script takes the first two sections;
retrieval, captioning, VQA and NLVR2 also take *Fine-tuning* and their own section, and captioning and VQA
*Generation in evaluation*. Sections of a task list the defaults that differ from those above as well.
"""


def page() -> str:
    """The whole page. Raises ValueError for an option without a meaning."""
    return HEAD + "".join(section(title, cls) for title, cls in CLASSES.items())


def section(title: str, cls: type[BaseModel]) -> str:
    """A heading, the first paragraph of the class's docstring, and a table for each group of options."""
    groups, meanings = comments(cls)
    lines = ["", f"## {title}", "", " ".join(inspect.cleandoc(cls.__doc__ or "").split("\n\n")[0].split())]
    group = None
    for name in (name for name in cls.__annotations__ if name in cls.model_fields):
        if name == next(iter(meanings)) or groups[name] != group:
            group = groups[name]
            heading = ["", f"### {group[0].upper()}{group[1:]}"] if group else []
            lines += [*heading, "", "| option | type | default | meaning |", "| --- | --- | --- | --- |"]
        field = cls.model_fields[name]
        lines.append(f"| `{name}` | {type_of(field)} | {default_of(field)} | {meaning(cls, name)} |")
    return "\n".join(lines) + "\n"


def meaning(cls: type[BaseModel], name: str) -> str:
    """The comment behind the field in the class, or in the nearest parent that explains it."""
    for owner in cls.__mro__:
        if name not in inspect.get_annotations(owner):
            continue
        if found := owner.model_fields[name].description or comments(owner)[1][name]:
            return cell(found)
    raise ValueError(f"{cls.__name__}.{name} has no meaning: write a comment behind the field")


def comments(cls: type[BaseModel]) -> tuple[dict[str, str], dict[str, str]]:
    """(group of each field, comment behind each field), both by the field's name and "" where there is none."""
    source = inspect.getsource(cls)
    group, groups, meanings = "", {}, {}
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


def type_of(field: FieldInfo) -> str:
    """The type in words, with the field's limits, such as "number, > 0"."""
    parts = [words(field.annotation)]
    for limit in field.metadata:
        for name, sign in {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}.items():
            if hasattr(limit, name):
                parts.append(f"{sign} {short(getattr(limit, name))}")
    return cell(", ".join(parts))


def words(annotation: Any) -> str:
    """A type as a user of YAML would call it."""
    plain = {int: "integer", float: "number", str: "text", bool: "true, false", types.NoneType: "null", Any: "value"}
    if annotation in plain:
        return plain[annotation]
    origin, inner = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return ", ".join(f"`{value}`" for value in inner)
    if origin in (types.UnionType, typing.Union):
        return " or ".join(words(one) for one in inner)
    if origin is list:
        return f"list of {words(inner[0])}"
    if origin is tuple:
        return f"[{', '.join(words(one) for one in inner)}]"
    return "options"  # a mapping, or a class of options


def default_of(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    return f"`{short(value)}`"


def short(value: Any) -> str:
    """A value in YAML's notation."""
    if isinstance(value, str):
        return value if value.strip() == value and value else json.dumps(value)
    if isinstance(value, int) and value == 2**63:
        return "2^63"
    return json.dumps(value)


def cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
