"""Tables of options: in a terminal, in Markdown, as JSON."""

import json
from collections.abc import Mapping
from itertools import groupby

import typer
from pydantic import BaseModel
from rich import box
from rich.console import Console
from rich.table import Table

from blip.errors import InputError
from blip.options import published
from blip.options.meanings import Option, options_of

COLUMNS = ("name", "type", "default", "unit", "meaning")
WIDE = 120  # characters: below, each option takes a line of its own for type, default and unit
Titled = list[tuple[str, Option]]  # the title of a section, and an option of it


def sections_of(classes: Mapping[str, type[BaseModel]]) -> Titled:
    """The options that each of several classes adds to those of its parents; `classes`: by title."""
    return [
        (f"{title}: {one.group}" if one.group else title, one)
        for title, cls in classes.items()
        for one in options_of(cls, inherited=False)
    ]


def all_of(cls: type[BaseModel], classes: Mapping[str, type[BaseModel]]) -> Titled:
    """All options of a class, each under the title of the class that introduces it."""
    titles = {one: title for title, one in classes.items()}
    listed = [(_title(titles, one), one) for one in options_of(cls)]
    order = list(dict.fromkeys(title for title, _ in listed))
    return sorted(listed, key=lambda pair: order.index(pair[0]))


def print_options(listed: Titled, *, find: str = "", markdown: bool = False, as_json: bool = False) -> None:
    """Prints options as tables, in Markdown or as JSON.

    Args:
        find: only those whose name, unit or meaning has this text.

    Raises:
        InputError: there is no such option.
    """
    found = [(title, one) for title, one in listed if find.lower() in f"{one.name} {one.unit} {one.meaning}".lower()]
    if not found:
        about = published.hint(find)
        raise InputError(f"no option has {find!r} in its name, unit or meaning" + (f"; {about}" if about else ""))
    if as_json:
        rows = [{"section": title} | {name: getattr(one, name) for name in COLUMNS} for title, one in found]
        typer.echo(json.dumps(rows, indent=1, ensure_ascii=False))
        return
    console = Console()
    for title, group in groupby(found, lambda pair: pair[0]):
        options = [one for _, one in group]
        if markdown:
            typer.echo(f"## {title}\n\n{markdown_table(options)}\n")
        else:
            console.print(_table(title, options) if console.width >= WIDE else _narrow_table(title, options))


def markdown_table(options: list[Option]) -> str:
    """A Markdown table of options."""
    lines = ["| option | type | default | unit | meaning |", "| --- | --- | --- | --- | --- |"]
    for option in options:
        default = option.default if option.default == "required" else f"`{option.default}`"
        cells = (f"`{option.name}`", option.type, default, option.unit, option.meaning)
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(lines)


def _title(titles: dict, option: Option) -> str:
    title = titles[option.owner]
    return f"{title}: {option.group}" if option.group else title


def _table(title: str, options: list[Option]) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, expand=True)
    for name in ("option", "type", "default", "unit"):
        table.add_column(name, overflow="fold")
    table.add_column("meaning", ratio=1)
    for option in options:
        table.add_row(*(getattr(option, name).replace("[", "\\[") for name in COLUMNS))
    return table


def _narrow_table(title: str, options: list[Option]) -> Table:
    """For a window in which five columns leave no place for the meaning."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, expand=True)
    table.add_column("option", overflow="fold", max_width=30)
    table.add_column("meaning, type, default, unit", ratio=1)
    for option in options:
        about = "; ".join(filter(None, (option.type, f"default {option.default}", option.unit)))
        table.add_row(option.name, f"{option.meaning}\n{about}".replace("[", "\\["))
    return table
