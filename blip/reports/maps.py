"""Maps over the images of items: which parts of an image a model's output, or the text of the data, depends on."""

from collections.abc import Sequence

from PIL import Image

from blip.data.pictures import open_pictures
from blip.errors import BlipError, InputError
from blip.inference.predictor import Predictor
from blip.interpret.explain import explain_pairs
from blip.interpret.objectives import explained
from blip.interpret.pictures import blend
from blip.models.factory import spec_of
from blip.reports.tiles import Tile

METHOD = "relevance"
ABOUT_MAPS = (
    "The map shows which parts of the image {what} depends on in this model (method {method}): bright is much, dark "
    "little, each map with its own scale. It is not a diagnosis."
)


def add_maps(model: Predictor, tiles: Sequence[Tile], method: str = METHOD) -> str:
    """Adds a map to each tile with one image -> a sentence on what the maps show.

    A record whose map cannot be drawn keeps the reason; the others are drawn.
    """
    task = model.info["task"]
    if not spec_of(task).explained_as:
        raise InputError(f"there are no maps of what a checkpoint of {task} makes of its texts: leave out --map")
    objective = explained(model, "")
    for tile in tiles:
        if len(tile.pictures) != 1:
            continue
        try:
            tile.map = _map(model, tile, method, answers=objective.has_answers, writes=objective.writes_texts)
        except BlipError as error:
            tile.map_problem = str(error)
    what = "the answer" if objective.has_answers else "the caption" if objective.writes_texts else "the match"
    return ABOUT_MAPS.format(what=what, method=method)


def _map(model: Predictor, tile: Tile, method: str, *, answers: bool, writes: bool) -> Image.Image:
    item, picture = tile.item, open_pictures(tile.item.images, model.limits)[0]
    shown = item.output if item.output is not None else next(iter(item.truth), "")
    text = item.text if answers else shown if writes or not item.text else item.text
    found = explain_pairs(model, picture, text, answers=shown if answers else "", method=method)
    return blend(tile.pictures[0], found[0].sentence)
