"""`blip report`: one page on a run, or on several that are compared.

The page is one file that loads nothing from elsewhere. It is made from what a run has written, while it is going on or
afterwards, and reads neither weights nor, but for the samples, images.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from blip.data.image_bytes import LIMITS, ImageLimits
from blip.errors import InputError
from blip.html_page import page, write_page
from blip.reports.curves import needs_matplotlib
from blip.reports.findings import findings
from blip.reports.run_files import RunFiles, names_of, read_run
from blip.reports.samples import samples_of
from blip.reports.sections import sections_of

DEFAULT_NAME = "report.html"  # in the folder of the run
MOST_RUNS = 12


def report(
    runs: str | Path | Sequence[str | Path], out: str | Path | None = None, *, limits: ImageLimits = LIMITS
) -> str:
    """A page on a run: settings, losses, scores with intervals, samples, speed, data; several runs are compared.

    Args:
        runs: the folder of a run, or of several.
        out: a file to write the page to; it is only returned unless given.
        limits: of images that the page shows.

    Returns:
        The page, HTML in one file.

    Raises:
        InputError: a folder holds no run.
        CurveError: matplotlib is not installed.
        WriteError: `out` cannot be written.

    Example:
        >>> page = report("runs/vqa", "runs/vqa/report.html")  # doctest: +SKIP
        >>> page = report(["runs/vqa", "runs/vqa_large"])  # doctest: +SKIP
    """
    content = page_of(read_runs([runs] if isinstance(runs, str | Path) else runs), limits)
    if out is not None:
        write_page(Path(out), content)
    return content


def read_runs(folders: Sequence[str | Path]) -> list[RunFiles]:
    """The runs in several folders, with names that tell them apart. Errors as in `report`."""
    needs_matplotlib()
    if not 0 < len(folders) <= MOST_RUNS:
        raise InputError(f"a report compares 1 to {MOST_RUNS} runs, not {len(folders)}")
    places = [Path(one) for one in folders]
    return [read_run(folder, name) for folder, name in zip(places, names_of(places), strict=True)]


def page_of(runs: Sequence[RunFiles], limits: ImageLimits = LIMITS) -> str:
    """The page of runs that have been read."""
    one = runs[0]
    kind = "Evaluation" if one.evaluated and not one.history.steps else "Run"
    heading = f"{kind} {one.name}" if len(runs) == 1 else f"{len(runs)} runs: {', '.join(run.name for run in runs)}"
    samples = samples_of(runs, limits)
    sections = sections_of(runs)
    return page(
        "reports/report.html",
        title=heading,
        heading=heading,
        about=[(run.kind or "a run", str(run.folder)) for run in runs],
        figures=summary(one) if len(runs) == 1 else [],
        findings=[(run.name if len(runs) > 1 else "", findings(run)) for run in runs],
        samples=samples,
        samples_heading="Samples of validation" if any(run.history.samples for run in runs) else "Samples",
        about_samples=_about_samples(runs, len(samples)),
        first=sections[:2],
        rest=sections[2:],
        footer="Made by blip report from the files of the run. For research, not for clinical use.",
    )


def _about_samples(runs: Sequence[RunFiles], count: int) -> str:
    if not count:
        return (
            "Outputs for the same validation records are written at each evaluation, which needs a val_file; this run "
            "has none."
        )
    if len(runs) == 1 and not runs[0].history.samples:
        return "Some records of the results; blip show makes a page of all of them."
    if len(runs) > 1:
        return "The outputs of each run's last evaluation for the same validation records."
    return (
        "The same validation records at some evaluations, among them the first and the last. Equal outputs that "
        "follow each other stand in one line."
    )


def summary(run: RunFiles) -> list[tuple[str, str]]:
    """(name, value) of the few numbers that stand at the top of the page."""
    steps = run.history.steps
    last: dict[str, Any] = steps[-1] if steps else {}
    shown: list[tuple[str, Any]] = [("steps", last.get("step")), ("epochs", last.get("epoch"))]
    metric = str(run.options.get("best_metric") or "")
    shown.append((f"best {metric.removeprefix('val_').replace('_', ' ')}", run.last("best") if metric else None))
    losses = ("loss",) if "loss" in last or "itc" not in last else ("itc", "itm", "lm")
    shown += [(f"training {key.upper() if key != 'loss' else key}", last.get(key)) for key in losses]
    shown.append(("validation loss", run.last("val_loss")))
    speeds = [line["images_per_s"] for line in steps if isinstance(line.get("images_per_s"), int | float)]
    shown.append(("images a second", sum(speeds) / len(speeds) if speeds else None))
    shown.append(
        (
            "memory, MB",
            max((x["memory_mb"] for x in steps if isinstance(x.get("memory_mb"), int | float)), default=None),
        )
    )
    return [(name, _short(value)) for name, value in shown if isinstance(value, int | float)]


def _short(value: float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
