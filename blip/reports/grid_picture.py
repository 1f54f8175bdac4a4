"""The grid of `blip show` as one picture, by matplotlib."""

import textwrap
from pathlib import Path
from typing import Any

from blip.errors import InputError, visible
from blip.files import whole_file
from blip.interpret.pictures import needs_matplotlib
from blip.reports.tiles import Grid, Tile, rows_of

COLUMNS, WIDTH = 4, 3.2  # cells side by side; inches of a cell
PICTURE, LINE = 2.5, 0.155  # inches of the height of its pictures, and of a line of text below them
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
    texts = [_lines(tile) for tile in grid.tiles]
    text_height = LINE * max(map(len, texts)) + 0.1
    cell = PICTURE + text_height + 0.2
    figure = Figure(figsize=(WIDTH * columns, cell * rows + 0.8), dpi=100)
    title = _wrapped(f"{grid.heading}. {' '.join(grid.sentences())}", 40 * columns, 3)
    top = figure.get_figheight() - 0.12
    figure.text(0.01, top / figure.get_figheight(), title, va="top", fontsize=10, parse_math=False)
    figure.text(
        0.01, 0.06 / figure.get_figheight(), "for research, not for clinical use", fontsize=7, color=COLOURS[None]
    )
    for number, (tile, lines) in enumerate(zip(grid.tiles, texts, strict=True)):
        row, column = divmod(number, columns)
        middle = figure.get_figheight() - 0.5 - cell * row - PICTURE
        _draw(figure, tile, lines, left=column * WIDTH + 0.08, middle=middle)
    return figure


def _lines(tile: Tile) -> list[str]:
    """The texts of a cell, in lines."""
    lines: list[str] = []
    texts = [("", tile.item.name), *rows_of(tile.item)]
    texts += [("cannot be read", problem) for problem in tile.problems if tile.pictures]
    for name, value in texts:
        text = _line(f"{name}: {value}" if name else value)
        lines += textwrap.wrap(text, LETTERS, max_lines=3, placeholder=" ...") or [""]
    return lines[:LINES] + ([" ..."] if len(lines) > LINES else [])


def _draw(figure: Any, tile: Tile, lines: list[str], *, left: float, middle: float) -> None:
    """One cell: its pictures above `middle`, its texts below. Places in inches."""
    wide, tall = figure.get_figwidth(), figure.get_figheight()
    width = WIDTH - 0.16
    pictures = [tile.map] if tile.map is not None else tile.pictures
    count = max(1, len(pictures))
    for place in range(count):
        box = ((left + place * width / count) / wide, middle / tall, width / count / wide, PICTURE / tall)
        axes = figure.add_axes(box)
        axes.axis("off")
        if place < len(pictures):
            axes.imshow(pictures[place], aspect="equal")
        else:
            reason = _wrapped("; ".join(tile.problems), 36, 8)
            axes.text(0.5, 0.5, reason, ha="center", va="center", fontsize=8, color=COLOURS[False], parse_math=False)
    figure.text(
        left / wide, (middle - 0.06) / tall, "\n".join(lines), va="top", fontsize=8, linespacing=1.25,
        color="#1c2128", parse_math=False,
    )  # fmt: skip
    if tile.item.right is not None:
        mark = "right" if tile.item.right else "wrong"
        figure.text(
            (left + width) / wide, (middle - 0.06) / tall, mark, va="top", ha="right", fontsize=8,
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
