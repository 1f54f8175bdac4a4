"""Writes docs/configuration.md from the configuration classes: type, default, unit and meaning of every option.

python docs/make_configuration.py

The same table as that of `blip options`, see blip/options/meanings.py. The meaning of an option is the comment behind
its field, which may end with a unit in brackets; a comment on a line of its own begins a group of options.
"""

import inspect
from itertools import groupby
from pathlib import Path

from pydantic import BaseModel

from blip.cli import sections
from blip.options.meanings import options_of
from blip.options.tables import markdown_table

PAGE = Path(__file__).resolve().parent / "configuration.md"
HEAD = """# Configuration

<!-- Written by docs/make_configuration.py from the configuration classes. Change the comments there, not this page. -->

A configuration is a flat YAML file. Files in `configs/` set the options of one run each, and `--set key=value` on the
command line overrides the file; the value is in YAML's notation. Shells read brackets, braces and blanks themselves, so
such values stand in quotation marks: `--set 'train_file=[captions.json]'`. An unknown key, a wrong type or a value
outside its limits ends the run with a message before anything is read; for an unknown key the message names the nearest
known ones. `--config` takes a path, or the name of a file of `configs/` such as `pretrain_demo`. Every run writes the
configuration with all resolved values to `config.yaml` in its folder. `blip options` prints the tables of this page,
`blip options vqa` those of one task.

A section below lists the options that a group of scripts adds. Each training script takes the first two sections;
retrieval, captioning, VQA, NLVR2 and dialogues also take *Fine-tuning* and their own section, and captioning and VQA
*Generation in evaluation*. Sections of a task list the defaults that differ from those above as well.
"""


def page() -> str:
    """The whole page. Raises ValueError for an option without a meaning."""
    return HEAD + "".join(section(title, cls) for title, cls in sections().items())


def section(title: str, cls: type[BaseModel]) -> str:
    """A heading, the first paragraph of the class's docstring, and a table for each group of options."""
    lines = ["", f"## {title}", "", " ".join(inspect.cleandoc(cls.__doc__ or "").split("\n\n")[0].split())]
    for group, options in groupby(options_of(cls, inherited=False), lambda option: option.group):
        lines += [*(["", f"### {group[0].upper()}{group[1:]}"] if group else []), "", markdown_table([*options])]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
