"""The scores of maps as a table, as JSON and CSV, and as a picture of curves."""

import csv
import importlib.util
import io
import itertools
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from blip.evaluation.bootstrap import Interval
from blip.files import json_text, whole_file, write_whole
from blip.interpret.map_scores import OWN, Scored
from blip.interpret.pictures import needs_matplotlib

JSON, CSV, PICTURE = "scores.json", "scores.csv", "curves.png"
TITLES = {
    "hit": "hit %", "energy": "energy %", "iou": "IoU %", "deletion": "deletion", "insertion": "insertion",
    "rank": "rank",
}  # fmt: skip
PER_CENT = ("hit", "energy", "iou")


def shown(name: str, value: Interval | None) -> str:
    """A score with its interval, as a table prints it; empty where it was not computed."""
    if value is None:
        return ""
    scale, digits = (100, 0) if name in PER_CENT else (1, 2)
    mean, low, high = (f"{scale * x:.{digits}f}".replace("0.", ".") for x in (value.mean, value.low, value.high))
    return f"{mean} [{low}, {high}]"


def columns_of(lines: Sequence[Scored]) -> list[str]:
    """The scores that any line has, in the order of the table."""
    return [name for name in TITLES if any(name in line.scores for line in lines)]


def show(lines: Sequence[Scored], count: int, text_name: str) -> None:
    """Prints the table."""
    names = columns_of(lines)
    table = Table()
    for title in ("method", "maps", *(TITLES[name] for name in names)):
        table.add_column(title, no_wrap=True)
    table.title = f"maps of {count} images with {text_name}, with 95 % intervals"
    for line in lines:
        table.add_row(line.method, line.maps, *(shown(name, line.scores.get(name)) for name in names))
    Console(width=max(135, Console().width)).print(table, markup=False)


def save(lines: Sequence[Scored], count: int, folder: Path) -> list[str]:
    """Writes JSON, CSV, and with matplotlib a picture of curves; returns the names of the files."""
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / JSON, json_text({"records": count, "lines": [asdict(line) for line in lines]}))
    text, names = io.StringIO(), columns_of(lines)
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["method", "maps", *(f"{name}{end}" for name in names for end in ("", "_low", "_high"))])
    for line in lines:
        found = [line.scores.get(name) for name in names]
        cells = [(one.mean, one.low, one.high) if one else ("", "", "") for one in found]
        rows.writerow([line.method, line.maps, *itertools.chain(*cells)])
    write_whole(folder / CSV, text.getvalue())
    drawn = importlib.util.find_spec("matplotlib") and any(line.curves or line.cascade for line in lines)
    if not drawn:
        return [JSON, CSV]
    picture(lines, folder / PICTURE)
    return [JSON, CSV, PICTURE]


def picture(lines: Sequence[Scored], path: Path) -> None:
    """Deletion and insertion curves, and rank correlations while the model becomes random.

    Raises:
        PictureError: matplotlib is not installed.
    """
    needs_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 3.6), layout="constrained")
    axes = figure.subplots(1, 3)
    drawn = [line for line in lines if line.maps in (OWN, "")]
    for number, line in enumerate(drawn):
        style = {"color": f"C{number}", "linestyle": "-" if line.maps else ":", "label": line.method}
        for axis, name in zip(axes, ("deletion", "insertion"), strict=False):
            if name in line.curves:
                values = line.curves[name]
                axis.plot([i / (len(values) - 1) for i in range(len(values))], values, **style)
        if line.cascade:
            axes[2].plot(list(line.cascade), [one.mean for one in line.cascade.values()], marker=".", **style)
    for axis, name in zip(axes, ("deletion", "insertion"), strict=False):
        axis.set(title=name, xlabel="share of patches", ylabel="probability", ylim=(0, 1.02))
    axes[2].set(title="rank correlation with the map", xlabel="made random, up to", ylim=(-0.3, 1.02))
    axes[2].tick_params(axis="x", rotation=90)
    axes[2].axhline(0, color="grey", linewidth=0.5)
    if named := [axis for axis in axes[1:] if axis.get_legend_handles_labels()[0]]:
        named[0].legend(fontsize=8)
    with whole_file(path) as file:
        figure.savefig(file, format="png", dpi=80)
