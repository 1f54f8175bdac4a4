"""`blip show`: a grid of images with their texts, true answers, outputs and scores, as an HTML page or a PNG."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from blip.data.image_bytes import LIMITS, ImageLimits
from blip.errors import InputError
from blip.html_page import Html, image, page, write_page
from blip.inference.predictor import Predictor
from blip.reports.grid_picture import save_picture
from blip.reports.items import Choice, Item
from blip.reports.sources import Source, open_source
from blip.reports.tiles import QUALITY, Grid, Tile, read_tiles, rows_of

ENDINGS = (".html", ".png")
LONGEST = 1500  # characters of one text on the page


def show(
    place: str | Path,
    out: str | Path | None = None,
    choice: Choice | None = None,
    *,
    dataset: str = "json",
    split: str = "",
    columns: Mapping[str, str] | None = None,
    image_root: str = "",
    model: Predictor | None = None,
    limits: ImageLimits = LIMITS,
) -> Grid:
    """Shows data, or results of a model, as a grid of images with texts, true answers, outputs and scores.

    Args:
        place: the folder of a run, a file of results, or data; see `open_source`.
        out: page.html or grid.png to write; nothing is written unless given.
        choice: which records, in which order; the first twenty unless given.
        dataset, split, columns, image_root: of the data, as in `open_source`.
        model: draws maps over the images, which show what its outputs depend on.

    Raises:
        InputError: there is nothing to show, or `out` ends otherwise.
        WriteError: `out` cannot be written.

    Example:
        >>> grid = show("runs/vqa", "worst.html", Choice(sort="worst"))  # doctest: +SKIP
        >>> len(grid.tiles), grid.unreadable  # doctest: +SKIP
        (20, 0)
    """
    choice = choice or Choice()
    source = open_source(str(place), dataset=dataset, split=split, columns=columns, image_root=image_root)
    path = None if out is None else check_ending(Path(out))
    grid = make_grid(source, choice, choice.of(source.items, source.place), model=model, limits=limits)
    if path is not None:
        write_grid(grid, path)
    return grid


def make_grid(
    source: Source,
    choice: Choice,
    items: Sequence[Item],
    *,
    model: Predictor | None = None,
    limits: ImageLimits = LIMITS,
) -> Grid:
    """The grid of chosen items, with their images read and, with a model, their maps."""
    total = choice.count(source.items) if isinstance(source.items, list) else None
    grid = Grid(source, choice, read_tiles(items, limits), total)
    if model is not None:
        from blip.reports.maps import add_maps  # torch and the model's code are not needed without maps

        grid.about_maps = add_maps(model, grid.tiles)
    return grid


def write_grid(grid: Grid, out: Path) -> None:
    """Writes the page or the picture. InputError and WriteError as in `show`."""
    if check_ending(out).suffix == ".png":
        save_picture(grid, out)
    else:
        write_page(out, page_of(grid))


def check_ending(out: Path) -> Path:
    """The same path; InputError for a name that ends otherwise than pages and pictures do."""
    if out.suffix not in ENDINGS:
        raise InputError(f"{out}: --out has to end in {' or '.join(ENDINGS)}")
    return out


def page_of(grid: Grid) -> str:
    """The HTML page."""
    cards = [_card(tile) for tile in grid.tiles]
    judged = {card["state"] for card in cards} >= {"right", "wrong"}
    return page(
        "reports/grid.html",
        title=grid.heading,
        heading=grid.heading,
        place=grid.source.place,
        sentences=[*grid.sentences(), *filter(None, [grid.about_maps])],
        cards=cards,
        filters=judged,
        footer="Made by blip show. For research, not for clinical use.",
    )


def _card(tile: Tile) -> dict[str, Any]:
    """What the page shows of an item."""
    item = tile.item
    pictures = [
        image(picture, "JPEG", QUALITY, alt=alt) for picture, alt in zip(tile.pictures, alts(tile), strict=True)
    ]
    state = "" if item.right is None else "right" if item.right else "wrong"
    return {
        "name": item.name,
        "files": item.images,
        "pictures": pictures,
        "map": _map_of(tile),
        "problems": [*tile.problems, *filter(None, [tile.map_problem])],
        "rows": [(name, cut(value)) for name, value in rows_of(item)],
        "state": state,
    }


def _map_of(tile: Tile) -> Html | None:
    return None if tile.map is None else image(tile.map, "JPEG", QUALITY, alt="map over the image above")


def alts(tile: Tile) -> list[str]:
    """What is said of the pictures of a tile to those who do not see them."""
    item, count = tile.item, len(tile.pictures)
    if count > 1:
        return [f"image {number} of {count} of record {item.name}" for number in range(1, count + 1)]
    return [f"image of record {item.name}"] * count


def cut(text: str, most: int = LONGEST) -> str:
    """The beginning of a very long text."""
    return text if len(text) <= most else f"{text[:most]} ... ({len(text):,} characters)"


def described(grid: Grid) -> str:
    """One line for the terminal."""
    unreadable = f", {grid.unreadable} of them unreadable" if grid.unreadable else ""
    return f"{grid.counted} shown{unreadable}"
