"""The scores of probes as a picture: a panel for each label, points across, with both controls."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from blip.evaluation.bootstrap import Interval
from blip.files import whole_file
from blip.interpret.features.probes import Probe
from blip.interpret.pictures import needs_matplotlib


def draw(probes: Sequence[Probe], path: Path) -> None:
    """Writes a PNG file: scores with 95 % intervals, those on shuffled labels, and the floor as a dashed line.

    Raises:
        PictureError: matplotlib is not installed.
    """
    needs_matplotlib()
    from matplotlib.figure import Figure

    labels = list(dict.fromkeys(one.label for one in probes))
    points = list(dict.fromkeys(one.point for one in probes))
    width = 1.0 + len(labels) * max(1.6, 0.42 * len(points))
    figure = Figure(figsize=(min(30.0, width), 3.2), layout="constrained")
    panels = figure.subplots(1, len(labels), squeeze=False)[0]
    for label, axes in zip(labels, panels, strict=True):
        shown = [one for one in probes if one.label == label]
        places = np.arange(len(shown))
        axes.errorbar(places, *_with_bars([one.score for one in shown]), fmt="o-", color="#1f5fa8", label="labels")
        axes.errorbar(places, *_with_bars([one.shuffled for one in shown]), fmt="s:", color="#999999", label="shuffled")
        axes.plot(places, [one.floor for one in shown], "--", color="#c0392b", label="floor")
        axes.set_xticks(places, [one.point for one in shown], rotation=90, fontsize=7)
        axes.set_title(label, fontsize=9)
        axes.set_ylabel(shown[0].measure.replace("R2", "R²"))
        axes.set_ylim(min(-0.05, *(one.shuffled.low for one in shown)) if shown[0].measure == "R2" else 0, 1.03)
    panels[0].legend(fontsize=7)
    with whole_file(path) as file:
        figure.savefig(file, format="png", dpi=100)


def _with_bars(scores: Sequence[Interval]) -> tuple[list[float], list[list[float]]]:
    """Means, and how far the intervals reach below and above."""
    means = [one.mean for one in scores]
    return means, [[one.mean - one.low for one in scores], [one.high - one.mean for one in scores]]
