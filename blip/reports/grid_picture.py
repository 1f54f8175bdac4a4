"""The grid of `blip show` as one picture, by matplotlib."""

import textwrap
from pathlib import Path
from typing import Any

from blip.errors import InputError, visible
from blip.files import whole_file
from blip.interpret.pictures import needs_matplotlib
from blip.reports.tiles import Grid, Tile, rows_of

COLUMNS, WIDTH, HEIGHT = 4, 3.2, 4.3  # cells side by side; inches of a cell
LETTERS, LINES = 44, 9  # of a line below an image; lines
MOST = 400  # cells of one picture
COLOURS = {None: "#57606a", True: "#12703a", False: "#b3261e"}


def grid_figure(grid: Grid) -> Any:
    """A matplotlib figure of the grid, such as for a notebook.

    Raises:
        PictureError: matplotlib is not installed.
        InputError: there are more items than one picture can show.
    """
    needs_matplotlib()
    from matplotlib.figure import Figure

    if len(grid.tiles) > MOST:
        raise InputError(f"a picture shows {MOST} records at most, not {len(grid.tiles)}: use --limit, or a page.html")
    columns = min(COLUMNS, len(grid.tiles))
    rows = -(-len(grid.tiles) // columns)
    figure = Figure(figsize=(WIDTH * columns, HEIGHT * rows + 0.9), dpi=100)
    title = _wrapped(f"{grid.heading}. {' '.join(grid.sentences())}", 40 * columns, 3)
    top = figure.get_figheight() - 0.12
    figure.text(0.01, top / figure.get_figheight(), title, va="top", fontsize=10, parse_math=False)
    figure.text(
        0.01, 0.06 / figure.get_figheight(), "for research, not for clinical use", fontsize=7, color=COLOURS[None]
    )
    for number, tile in enumerate(grid.tiles):
        row, column = divmod(number, columns)
        bottom = figure.get_figheight() - 0.8 - HEIGHT * (row + 1)
        _draw(figure, tile, column * WIDTH + 0.08, bottom + 0.15)
    return figure


def _draw(figure: Any, tile: Tile, left: float, bottom: float) -> None:
    """One cell: its pictures in the upper part, its texts below them. Places in inches."""
    wide, tall = figure.get_figwidth(), figure.get_figheight()
    width, height, text_height = WIDTH - 0.16, 2.35, 1.7
    pictures = [tile.map] if tile.map is not None else tile.pictures
    count = max(1, len(pictures))
    for place in range(count):
        box = (
            (left + place * width / count) / wide,
            (bottom + text_height) / tall,
            width / count / wide,
            height / tall,
        )
        axes = figure.add_axes(box)
        axes.axis("off")
        if place < len(pictures):
            axes.imshow(pictures[place], aspect="equal")
        else:
            reason = _wrapped("cannot be read: " + "; ".join(tile.problems), 36, 8)
            axes.text(0.5, 0.5, reason, ha="center", va="center", fontsize=8, color=COLOURS[False], parse_math=False)
    lines: list[str] = []
    for name, value in [("", tile.item.name), *rows_of(tile.item)]:
        lines += textwrap.wrap(
            _line(f"{name}: {value}" if name else value), LETTERS, max_lines=3, placeholder=" ..."
        ) or [""]
    shown = lines[:LINES] + ([" ..."] if len(lines) > LINES else [])
    figure.text(
        left / wide, (bottom + text_height - 0.06) / tall, "\n".join(shown), va="top", fontsize=8, linespacing=1.25,
        color="#1c2128", parse_math=False,
    )  # fmt: skip
    if tile.item.right is not None:
        mark = "right" if tile.item.right else "wrong"
        figure.text(
            (left + width) / wide, (bottom + text_height - 0.06) / tall, mark, va="top", ha="right", fontsize=8,
            fontweight="bold", color=COLOURS[tile.item.right],
        )  # fmt: skip


def _line(text: str) -> str:
    return visible(" ".join(text[:2000].split()))


def _wrapped(text: str, width: int, lines: int) -> str:
    return "\n".join(textwrap.wrap(_line(text), width, max_lines=lines, placeholder=" ..."))


def save_picture(grid: Grid, path: Path) -> None:
    """Writes the grid as a PNG. WriteError where it cannot be written."""
    figure = grid_figure(grid)
    with whole_file(path) as file:
        figure.savefig(file, format="png", facecolor="white")
