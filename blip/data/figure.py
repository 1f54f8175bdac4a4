"""A figure of records: their images in a grid, each with its text. Needs matplotlib."""

import io
import math
import textwrap
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from blip.data.images import UnreadableImage
from blip.errors import InputError, visible

NEEDS_MATPLOTLIB = "drawing figures needs matplotlib: pip install 'blip[pictures]'"
SIDE = 2.6  # inches of a picture
WIDTH = 34  # letters of a line below it
LINES = 3
MOST = 400  # records of one figure


@lru_cache
def _figure_class() -> Any:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise InputError(NEEDS_MATPLOTLIB) from None

    class Picture(Figure):
        """A figure that notebooks display, with or without `%matplotlib inline`."""

        def _repr_png_(self) -> bytes:
            data = io.BytesIO()
            FigureCanvasAgg(self).print_png(data)
            return data.getvalue()

    return Picture


def figure_of(items: Sequence[Any]) -> Any:
    """A figure with the image and the text of each `Item`; for an image that cannot be read, the reason alone.

    Raises:
        InputError: there is no item, or too many; or matplotlib is not there.
    """
    if not items:
        raise InputError("there are no records to show")
    if len(items) > MOST:
        raise InputError(f"a figure shows {MOST} records at most, not {len(items):,}")
    columns = math.ceil(math.sqrt(len(items)))
    rows = math.ceil(len(items) / columns)
    figure = _figure_class()(figsize=(SIDE * columns, (SIDE + 0.7) * rows), layout="constrained")
    fields = figure.subplots(rows, columns, squeeze=False).flat
    for item, place in zip(items, fields, strict=False):
        try:
            place.imshow(item.image)
            text = str(item)
        except UnreadableImage as error:
            text = str(error)
        lines = textwrap.wrap(visible(text), WIDTH, max_lines=LINES, placeholder=" …")
        place.set_title("\n".join(lines), fontsize=8, parse_math=False)  # $ is a letter
    for place in fields:
        place.set_visible(False)
    for place in figure.axes:
        place.set_axis_off()
    return figure
