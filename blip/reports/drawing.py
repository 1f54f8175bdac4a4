"""Matplotlib figures as parts of a page, in the colours of its scheme."""

import io
import warnings
from typing import TYPE_CHECKING

from blip.html_page import Html, drawing
from blip.reports.charts import Chart, Line
from blip.reports.curves import FAINT, GRID, INK, PALETTE, figure_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# colours of figures -> what `page.html` calls them, which differs in the light and the dark
COLOURS = {INK: "var(--ink)", FAINT: "var(--faint)", GRID: "var(--grid)"} | {
    colour: f"var(--s{number})" for number, colour in enumerate(PALETTE)
}


def drawn(figure: "Figure", alt: str) -> Html:
    """A figure as part of a page. `alt`: what it shows, for those who do not see it."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    for patch in (figure.patch, *(axes.patch for axes in figure.axes)):
        patch.set_visible(False)  # the page is the ground
    file = io.StringIO()
    # texts stay texts; without a salt, the names of parts would differ each time
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "blip", "path.simplify": True}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing")  # the browser has other fonts
        if (layout := figure.get_layout_engine()) is not None:
            layout.execute(figure)  # drawing lays out again: the space that the legend takes changes the ticks
        metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        FigureCanvasSVG(figure).print_svg(file, metadata=metadata)
    return drawing(file.getvalue(), alt, COLOURS)


def drawn_chart(chart: Chart) -> Html:
    """A chart as part of a page, described in words for those who do not see it."""
    return drawn(figure_of(chart), described(chart))


def described(chart: Chart) -> str:
    """A chart in words: where each line begins and ends, and its extremes."""
    levels = [f"{name} is {level:.4g}" for name, level in chart.levels]
    return f"{chart.title}. " + "; ".join([*(_line(line, chart.x) for line in chart.lines), *levels])


def _line(line: Line, x: str) -> str:
    first, last = f"{line.y[0]:.4g}", f"{line.y[-1]:.4g}"
    if len(line.y) == 1:
        return f"{line.label}: {first} at {x} {line.x[0]:g}"
    extremes = f"between {line.y.min():.4g} and {line.y.max():.4g}"
    return f"{line.label}: from {first} at {x} {line.x[0]:g} to {last} at {x} {line.x[-1]:g}, {extremes}"
