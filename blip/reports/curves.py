"""Charts of runs as matplotlib figures, for notebooks and for the pages of `blip report`.

    figure = overview([read_history("runs/vqa")])  # losses, scores, learning rate of one or several runs
    figure.savefig("curves.png")

Matplotlib is imported when a figure is drawn.
"""

import importlib.util
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from blip.errors import BlipError, visible
from blip.reports.charts import SMOOTH_FROM, SPREAD, TRAIN, Chart, Line, charts_of, smoothed, thinned
from blip.train.history import History

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# readable on white, and told apart by people who do not see all colours; pages exchange them for those of their scheme
PALETTE = ("#0067b1", "#b84a00", "#00795a", "#8a4593", "#7a5c00", "#555e66")
INK, FAINT, GRID = "#1c2128", "#57606a", "#e1e5ea"
SIZE = (4.6, 2.9)  # inches of a chart
LONGEST = 48  # characters of a label
NEEDS_MATPLOTLIB = "curves need matplotlib: pip install -e '.[pictures]'"


class CurveError(BlipError):
    """Curves that cannot be drawn; the message gives the reason."""


def needs_matplotlib() -> None:
    """CurveError where it is not installed."""
    if importlib.util.find_spec("matplotlib") is None:
        raise CurveError(NEEDS_MATPLOTLIB)


def figures(histories: Sequence[History], names: Sequence[str] = ()) -> dict[str, "Figure"]:
    """A figure for each chart of `charts_of`, by its name, such as `loss`, `lr` or `val_exact_match`.

    Args:
        histories: of one run or of several, whose curves are drawn over each other.
        names: of the runs, for the legend.

    Raises:
        CurveError: matplotlib is not installed.
    """
    return {chart.name: figure_of(chart) for part in charts_of(histories, names).values() for chart in part}


def overview(histories: Sequence[History], names: Sequence[str] = (), most: int = 9) -> "Figure":
    """One figure with the charts that tell most of a run: losses, scores, learning rate, gradient norm.

    Args:
        histories, names: as in `figures`.
        most: charts at most.

    Raises:
        CurveError: matplotlib is not installed, or the runs have logged nothing.
    """
    needs_matplotlib()
    from matplotlib.figure import Figure

    parts = charts_of(histories, names)
    shown = [*parts["losses"], *parts["scores"], *parts["optimisation"][:2], *parts["matching"]][:most]
    if not shown:
        raise CurveError("nothing is logged yet: the first line follows after log_every_steps steps")
    columns = min(3, len(shown))
    rows = -(-len(shown) // columns)
    figure = Figure(figsize=(SIZE[0] * columns, SIZE[1] * rows), layout="constrained")
    places = figure.subplots(rows, columns, squeeze=False).flatten()
    for place, chart in zip(places, shown, strict=False):
        draw(place, chart)
    for place in places[len(shown) :]:
        place.axis("off")
    return figure


def figure_of(chart: Chart) -> "Figure":
    """A figure of one chart. CurveError where matplotlib is not installed."""
    needs_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=SIZE, layout="constrained")
    draw(figure.subplots(), chart)
    return figure


def draw(axes: "Axes", chart: Chart) -> None:
    """Draws a chart."""
    _frame(axes, chart.title)
    for line in chart.lines:
        _draw_line(axes, line)
    for _, level in chart.levels:
        axes.axhline(level, color=FAINT, linewidth=1, linestyle=(0, (2, 2)), zorder=1)
    lowest, highest = _range(chart)
    if chart.logarithmic and lowest > 0 and SPREAD <= highest / lowest < 1e100:  # beyond, its margins overflow
        axes.set_yscale("log")
    if chart.share:
        axes.set_ylim(-0.02, 1.02)
    axes.set_xlabel(chart.x, loc="right")  # beside the legend, not above it
    axes.set_ylabel(chart.unit)
    axes.xaxis.set_major_formatter(_number)
    axes.yaxis.set_major_formatter(_number)
    axes.yaxis.set_minor_formatter("")
    axes.locator_params(axis="x", nbins=6, integer=True)
    labels = [line.label for line in chart.lines] + [f"{name}: {_number(level)}" for name, level in chart.levels]
    if labels != [TRAIN]:  # a line alone needs no name
        _legend(axes, labels)


def similarity_figure(row: dict[str, Any]) -> "Figure":
    """Histograms of the similarities of pairs that match and of those that do not, of a line of `similarities.jsonl`.

    CurveError where matplotlib is not installed.
    """
    needs_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.subplots()
    _frame(axes, f"After epoch {_number(row['epoch'])}" if "epoch" in row else f"After step {row['step']:,}")
    edges = np.asarray(row["edges"], np.float64)
    for colour, key in enumerate(("matched", "unmatched")):
        counts = np.asarray(row[key], np.float64)
        shares = counts / max(1.0, counts.sum())
        axes.stairs(shares, edges, color=PALETTE[colour], linewidth=1.4, linestyle=("-", (0, (4, 1.5)))[colour])
        axes.stairs(shares, edges, color=PALETTE[colour], fill=True, alpha=0.15)
    axes.set_xlabel("cosine of image and text", loc="right")
    axes.set_ylabel("share of the pairs")
    axes.yaxis.set_major_formatter(_number)
    axes.set_ylim(bottom=0)
    from matplotlib.lines import Line2D

    handles = [Line2D([], [], color=PALETTE[0]), Line2D([], [], color=PALETTE[1], linestyle=(0, (4, 1.5)))]
    _legend(axes, ["pairs that match", "pairs that do not"], handles)
    return figure


# ---- parts -----------------------------------------------------------------------------------------------------------


def _frame(axes: "Axes", title: str) -> None:
    axes.set_title(_clean(title), fontsize=10, loc="left", color=INK, fontweight="bold", parse_math=False)
    axes.grid(True, color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(FAINT)
        spine.set_linewidth(0.8)
    axes.tick_params(colors=FAINT, labelsize=8.5, width=0.8, which="both")
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set(color=FAINT, fontsize=8.5)


def _draw_line(axes: "Axes", line: Line) -> None:
    colour = PALETTE[line.colour % len(PALETTE)]
    style = "-" if not (line.dashed or line.colour >= len(PALETTE)) else (0, (4, 1.5))
    x, y = thinned(line.x, line.y)
    marked = len(x) == 1 or (line.points and len(x) <= 60)  # a line of one point would not be seen
    marks = {"marker": "o" if not line.dashed else "s", "markersize": 3} if marked else {}
    if len(line.y) >= SMOOTH_FROM and not line.points and _is_noisy(line.y):
        axes.plot(x, y, color=colour, linewidth=0.7, alpha=0.35, zorder=2)
        x, y = thinned(line.x, smoothed(line.y), 300)
    axes.plot(x, y, color=colour, linewidth=1.5, linestyle=style, zorder=3, **marks)  # type: ignore[arg-type]


def _range(chart: Chart) -> tuple[float, float]:
    """The lowest and the highest value."""
    return min(float(line.y.min()) for line in chart.lines), max(float(line.y.max()) for line in chart.lines)


def _is_noisy(y: np.ndarray) -> bool:
    """Whether a line goes up and down, unlike a learning rate."""
    steps = np.diff(y)
    return bool((steps[1:] * steps[:-1] < 0).mean() > 0.1)


def _legend(axes: "Axes", labels: Sequence[str], handles: Sequence[Any] | None = None) -> None:
    """The legend above the lines; its texts are set afterwards, since matplotlib leaves out those that begin with _."""
    from matplotlib.lines import Line2D

    if handles is None:
        wide = [line for line in axes.get_lines() if line.get_linewidth() >= 1]
        handles = [Line2D([], [], color=one.get_color(), linestyle=one.get_linestyle(), marker=one.get_marker(),
                          markersize=3, linewidth=one.get_linewidth()) for one in wide]  # fmt: skip
    columns = 3 if sum(map(len, labels)) < 50 else 2 if len(max(labels, key=len)) < 26 else 1
    legend = axes.legend(handles, list(map(str, range(len(labels)))), fontsize=8, frameon=False, labelcolor=INK,
                         loc="upper left", bbox_to_anchor=(0, -0.2), ncols=columns,
                         borderaxespad=0, handlelength=1.8, columnspacing=1.2)  # fmt: skip
    for text, label in zip(legend.get_texts(), labels, strict=True):
        text.set_parse_math(False)
        text.set_text(_clean(label))


def _number(value: float, _: Any = None) -> str:
    """A number of an axis: 12,500 or 0.002 or 3e-05."""
    return f"{value:,.0f}" if value == round(value) and 1 <= abs(value) < 1e9 else f"{value:.3g}"


def _clean(text: str) -> str:
    """A label in one line, without characters that a drawing cannot hold."""
    text = re.sub("[\ufffe\uffff]", "\ufffd", visible(" ".join(text.split())))
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."
