"""Images of items as small pictures; what cannot be read stays in its place, with the reason."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from blip.data.image_bytes import LIMITS, ImageLimits, UnreadableImage
from blip.data.pictures import open_pictures
from blip.reports.items import Choice, Item, count_right
from blip.reports.sources import Source

QUALITY = 80  # of the JPEGs
TEXTS = 5  # true texts of an item that are shown at most
SIDES = ((24, 320), (120, 224), (10**9, 128))  # items on a page up to which a tile's longer side has so many pixels


@dataclass
class Tile:
    """An item with its images."""

    item: Item
    pictures: list[Image.Image] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)  # of images that cannot be read
    map: Image.Image | None = None  # the image with the map over it
    map_problem: str = ""


def side_for(count: int) -> int:
    """Pixels of a tile's longer side, so that a page of so many items stays small."""
    return next(side for most, side in SIDES if count <= most)


def read_tiles(items: Sequence[Item], limits: ImageLimits = LIMITS, side: int = 0) -> list[Tile]:
    """A tile for each item. `side`: pixels of the longer side, by the number of items unless given."""
    side = side or side_for(len(items))
    return [_tile(item, limits, side) for item in items]


def _tile(item: Item, limits: ImageLimits, side: int) -> Tile:
    tile = Tile(item, problems=[item.problem] if item.problem else [])
    for path in item.images:
        try:
            tile.pictures += [small(picture, side) for picture in open_pictures([path], limits)]
        except UnreadableImage as error:
            tile.problems.append(str(error))
    return tile


def small(image: Image.Image, side: int) -> Image.Image:
    """The image, not larger than `side`; very small ones are enlarged by whole pixels."""
    longer = max(image.size)
    if longer * 2 <= side:
        times = side // longer
        return image.resize((image.width * times, image.height * times), Image.Resampling.NEAREST)
    image = image.copy()
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    return image


def rows_of(item: Item) -> list[tuple[str, str]]:
    """(name, text) of everything that is known of an item, in the order in which it is read."""
    rows = [(item.text_name, item.text)] if item.text else []
    shown, rest = item.truth[:TEXTS], len(item.truth) - TEXTS
    if shown:
        true = " / ".join(shown) + (f" / and {rest} more" if rest > 0 else "")
        rows.append(("truth" if item.output is not None or item.text else "caption", true))
    if item.output is not None:
        rows.append(("output", item.output or "(empty)"))
    if item.score is not None:
        rows.append((item.score_name, f"{item.score:.3f}"))
    kind = ", ".join(filter(None, [item.answer_type, item.category]))
    return rows + ([("type", kind)] if kind else []) + item.more


# ---- a grid ---------------------------------------------------------------------------------------------------------

ORDERS = {
    "worst": "the worst first: confident wrong answers, then unsure ones",
    "best": "the best first: confident right answers, then unsure ones",
}


@dataclass
class Grid:
    """What a page or a picture shows."""

    source: Source
    choice: Choice
    tiles: list[Tile]
    total: int | None = None  # records of the chosen kind, shown or not; None where no more are read than are shown
    about_maps: str = ""

    @property
    def unreadable(self) -> int:
        """Items of which an image, or the record itself, cannot be read."""
        return sum(bool(tile.problems) for tile in self.tiles)

    @property
    def heading(self) -> str:
        return f"{'Results' if self.source.what == 'results' else 'Data'}: {Path(self.source.place).name}"

    @property
    def counted(self) -> str:
        """How many records are shown, and of how many; "the first 20" where the rest is not read."""
        shown = len(self.tiles)
        if self.total is None:
            return f"the first {shown:,}" if shown == self.choice.limit else f"{shown:,}"
        return f"{shown:,}" + (f" of {self.total:,}" if self.total > shown else "")

    def sentences(self) -> list[str]:
        """What is shown, in words."""
        count, choice = len(self.tiles), self.choice
        kind = "" if choice.correct is None else " that are right" if choice.correct else " that are wrong"
        kind += f" of type {choice.type}" if choice.type else ""
        records = "record" if (self.total or count) == 1 else "records"
        counted = self.counted[0].upper() + self.counted[1:]
        lines = [f"{counted} {records}{kind}, {self._order()}."]
        right, judged = count_right([tile.item for tile in self.tiles])
        if judged and choice.correct is None:
            lines.append(f"{right} of {judged} shown outputs are right.")
        if self.unreadable:
            lines.append(f"{self.unreadable} of them cannot be read; their places have the reason.")
        return lines

    def _order(self) -> str:
        items, sort = [tile.item for tile in self.tiles], self.choice.sort
        if sort == "file":
            return "in the order of the file"
        if any(item.right is not None for item in items):
            return ORDERS[sort]
        return f"the {sort} first, by {next(filter(None, (item.score_name for item in items)), 'score')}"
