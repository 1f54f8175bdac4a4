"""What CapFilt's filter removes and keeps at each threshold, over the seeds of `demo/capfilt.py`, as a picture.

python demo/capfilt_curve.py runs/capfilt_study/seed*/results.json --out docs/capfilt_filter.png

Lines are means over the seeds, bands the lowest and highest seed; dotted lines are what was asked of it.
"""

import json
from pathlib import Path
from typing import Annotated

import matplotlib
import numpy as np
import typer

matplotlib.use("Agg")
from matplotlib import pyplot as plt

PANELS = {
    "wrong originals that are removed": [
        "other: precision",
        "other: recall",
        "attribute: precision",
        "attribute: recall",
    ],
    "what is kept": ["right originals kept", "synthetic kept", "kept synthetic right", "wrong, before", "wrong, after"],
}
ASKED = {"wrong originals that are removed": [0.9, 0.75], "what is kept": [0.8]}


def main(
    results: Annotated[list[Path], typer.Argument(help="results.json of each seed")],
    out: Annotated[Path, typer.Option(help="picture to write")] = Path("capfilt_filter.png"),
    kind: Annotated[str, typer.Option(help="nucleus, beams or shared")] = "nucleus",
) -> None:
    """Draws precision, recall and what is kept against the threshold."""
    rows = [json.loads(path.read_text())["filters"][kind] for path in results]
    thresholds = [row["threshold"] for row in rows[0]]
    figure, axes = plt.subplots(1, len(PANELS), figsize=(11, 4), layout="constrained")
    for axis, (title, names) in zip(axes, PANELS.items(), strict=True):
        for name in names:
            values = np.array([[row[name] for row in seed] for seed in rows])
            (line,) = axis.plot(thresholds, values.mean(axis=0), marker=".", label=name)
            axis.fill_between(thresholds, values.min(axis=0), values.max(axis=0), color=line.get_color(), alpha=0.2)
        for height in ASKED[title]:
            axis.axhline(height, color="grey", linestyle=":", linewidth=1)
        axis.set(title=title, xlabel="threshold of the match probability", xlim=(0, 1), ylim=(0, 1.02))
        axis.legend(fontsize=8, loc="center left")
    figure.suptitle(f"{kind}, {len(rows)} seeds")
    figure.savefig(out, dpi=80)
    typer.echo(str(out))


if __name__ == "__main__":
    typer.run(main)
