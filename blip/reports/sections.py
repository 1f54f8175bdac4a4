"""The parts of the page of `blip report`: curves, tables and samples of one or several runs, with sentences on them.

A part for which a run has nothing is a sentence that says so, never an empty figure.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from blip.html_page import Html
from blip.reports.charts import MAJORITY, Chart, charts_of
from blip.reports.curves import similarity_figure
from blip.reports.drawing import drawn, drawn_chart
from blip.reports.grid import cut
from blip.reports.run_files import SPLITS, RunFiles
from blip.reports.scores import HEADERS, all_scores, number

HISTOGRAMS = 3  # evaluations whose similarities are drawn
LEFT_OUT = "The run has logged none of this."


@dataclass
class Table:
    """Rows under headers; the first cell of a row names it."""

    caption: str
    headers: Sequence[str]
    rows: Sequence[Sequence[str]]
    closed: bool = False  # shown on request


@dataclass
class Section:
    """A part of the page."""

    anchor: str  # in addresses
    title: str
    sentences: list[str] = field(default_factory=list)
    figures: list[Html] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)


def sections_of(runs: Sequence[RunFiles]) -> list[Section]:
    """All parts that consist of curves and tables."""
    charts = charts_of([run.history for run in runs], [run.name for run in runs])
    return [
        _losses(charts["losses"]),
        _scores(runs, charts["scores"]),
        _matching(charts["matching"]),
        _similarities(runs),
        _curves("optimisation", "Optimisation", charts["optimisation"]),
        _speed(runs, charts["speed"]),
        _settings(runs),
    ]


def _curves(anchor: str, title: str, charts: Sequence[Chart], *sentences: str) -> Section:
    if not charts:
        return Section(anchor, title, [LEFT_OUT])
    return Section(anchor, title, list(sentences), [drawn_chart(chart) for chart in charts])


def _losses(charts: Sequence[Chart]) -> Section:
    validated = any(line.points for chart in charts for line in chart.lines)
    sentences = [
        "Training losses are measured with dropout on augmented images, those of validation without either, so "
        "that they may lie lower."
        if validated
        else "The log holds no losses of validation: the run has no val_file, or is of an earlier version.",
        "A thin line has every logged value, the thick one their running mean." if _has_long_lines(charts) else "",
    ]
    return _curves("losses", "Losses", charts, *filter(None, sentences))


def _has_long_lines(charts: Sequence[Chart]) -> bool:
    return any(len(line.y) >= 150 and not line.points for chart in charts for line in chart.lines)


def _matching(charts: Sequence[Chart]) -> Section:
    text = (
        "Of the pairs that matching sees, one in three belongs together. A model without skill calls all of them no "
        f"match: it is right for {MAJORITY:.1%} of the pairs, for none that match, and its loss is 0.6365."
    )
    section = _curves("matching", "Matching by class (ITM)", charts, text)
    if not charts:
        section.sentences = ["This task does not train matching, or the run has logged none of it."]
    return section


def _similarities(runs: Sequence[RunFiles]) -> Section:
    section = Section("similarities", "Similarities (ITC)")
    for run in runs:
        rows = run.history.similarities
        shown = sorted({0, len(rows) // 2, len(rows) - 1}) if rows else []
        for row in (rows[i] for i in (shown if len(runs) == 1 else shown[-1:])):
            alt = (
                f"Histograms of the cosines of pairs that match and of pairs that do not, after step {row.get('step')}"
            )
            try:
                section.figures.append(drawn(similarity_figure(row), f"{run.name}: {alt}" if len(runs) > 1 else alt))
            except (KeyError, TypeError, ValueError) as error:
                section.sentences.append(f"{run.name}: a line of its similarities cannot be drawn ({error}).")
        if rows and len(runs) > 1:
            section.sentences.append(
                f"Histogram {len(section.figures)} is that of {run.name}, after its last evaluation."
            )
    if section.figures:
        section.sentences.insert(
            0, "The further apart the two histograms lie, the better contrast separates right texts from wrong ones."
        )
    else:
        section.sentences.append("Histograms are written by evaluations of tasks with contrast; this run has none.")
    return section


def _scores(runs: Sequence[RunFiles], charts: Sequence[Chart]) -> Section:
    """Scores with intervals; curves where there was more than one evaluation."""
    section = Section("scores", "Scores")
    section.tables = _tables_of_run(runs[0]) if len(runs) == 1 else _tables_of_scores(runs)
    section.tables += _tables_of_evaluations(runs)
    section.tables = [table for table in section.tables if table.rows]
    several = [chart for chart in charts if any(len(line.y) > 1 for line in chart.lines)]
    section.figures = [drawn_chart(chart) for chart in several]
    if section.tables:
        section.sentences.append(
            "The interval encloses the true value in 95 of 100 such evaluations; answers about one image, patient or "
            "article count together. Of a run's own scores, those of validation are of its last evaluation, those of "
            "test of its best weights."
        )
    if not section.tables and not several:
        section.sentences.append(
            "There is no evaluation yet: it follows after eval_every_epochs epochs, with a val_file."
        )
    elif charts and not several:
        section.sentences.append("Curves of scores follow after a second evaluation.")
    return section


def _tables_of_run(run: RunFiles) -> list[Table]:
    """A table of each split."""
    return [
        Table(f"Scores of {SPLITS[split]}", HEADERS, [score.cells for score in scores])
        for split, scores in all_scores(run).items()
    ]


def _tables_of_evaluations(runs: Sequence[RunFiles]) -> list[Table]:
    """Those of evaluations without training, in folders of the run; many are shown on request."""
    tables: list[Table] = []
    for run in runs:
        owner = f"{run.name}, " if len(runs) > 1 else ""
        for one in run.evaluations:
            for table in _tables_of_run(one):
                table.caption = f"{owner}evaluation {one.name}: {table.caption[0].lower()}{table.caption[1:]}"
                tables.append(table)
    for table in tables:
        table.closed = len(tables) > 4
    return tables


def _tables_of_scores(runs: Sequence[RunFiles]) -> list[Table]:
    tables = []
    for split, name in SPLITS.items():
        by_run = [{score.label: score for score in all_scores(run).get(split, [])} for run in runs]
        labels = list(dict.fromkeys(label for scores in by_run for label in scores))
        rows: list[Sequence[str]] = []
        for label in labels:
            found = [scores.get(label) for scores in by_run]
            cells = [
                "" if one is None else f"{one.cells[1]} ({one.cells[2]})" if one.cells[2] else one.cells[1]
                for one in found
            ]
            rows.append((label, *cells))
        tables.append(Table(f"Scores of {name} with 95 % intervals", ("score", *(run.name for run in runs)), rows))
    return tables


def _speed(runs: Sequence[RunFiles], charts: Sequence[Chart]) -> Section:
    section = _curves("speed", "Speed and memory", charts)
    for run in runs:
        images = [
            line["images_per_s"] for line in run.history.steps if isinstance(line.get("images_per_s"), int | float)
        ]
        memory = [line["memory_mb"] for line in run.history.steps if isinstance(line.get("memory_mb"), int | float)]
        if images and memory:
            name = f"{run.name}: " if len(runs) > 1 else ""
            section.sentences.append(
                f"{name}{sum(images) / len(images):,.1f} images a second on average over the lines of the log, "
                f"{max(memory):,.0f} MB of memory at most."
            )
    return section


# ---- settings --------------------------------------------------------------------------------------------------------


def _settings(runs: Sequence[RunFiles]) -> Section:
    section = Section("settings", "Settings")
    if not any(run.options for run in runs):
        section.sentences = ["The run has no config.yaml that can be read."]
    elif len(runs) == 1:
        (run,) = runs
        changed = [(k, shown(value), shown(default), run.meanings.get(k, "")) for k, value, default in run.changed]
        section.tables = [
            Table(
                f"{len(changed)} options are not at the defaults of {run.kind}",
                ("option", "value", "default", "meaning"),
                changed,
            ),
            Table("All options", ("option", "value"), [(k, shown(v)) for k, v in run.options.items()], closed=True),
        ]
    else:
        keys = list(dict.fromkeys(key for run in runs for key in run.options))
        texts = {key: [shown(run.options[key]) if key in run.options else "" for run in runs] for key in keys}
        header = ("option", *(run.name for run in runs))
        differ = [(key, *texts[key]) for key in keys if len(set(texts[key])) > 1]
        same = [(key, texts[key][0]) for key in keys if len(set(texts[key])) == 1]
        section.tables = [
            Table("Options that differ", header, differ),
            Table("Options that are the same", ("option", "value"), same, closed=True),
        ]
        if not differ:
            section.sentences.append("All options are the same.")
    section.tables = [table for table in section.tables if table.rows]
    return section


def shown(value: Any) -> str:
    """A value of an option as a configuration has it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return cut(f"[{', '.join(map(shown, value))}]", 500)
    return "null" if value is None else "(empty)" if value == "" else cut(str(value), 500)


__all__ = ["Section", "Table", "number", "sections_of", "shown"]
