"""What a model made of the same few records at each evaluation, or in an evaluation by itself, as parts of a page."""

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from blip.config import ModelConfig
from blip.data.image_bytes import LIMITS, ImageLimits, UnreadableImage
from blip.data.pictures import open_pictures
from blip.errors import BlipError
from blip.html_page import Html, image
from blip.reports.grid import cut
from blip.reports.items import Item
from blip.reports.results import files_of_run, results_in
from blip.reports.run_files import RunFiles
from blip.reports.tiles import QUALITY, small
from blip.tasks.config import NlvrConfig

SIDE = 256  # pixels of a picture's longer side
MOST_RECORDS, MOST_RESULTS, MOST_IMAGES = 32, 16, 2  # on a page, of an evaluation by itself, of a record
MOST_SHOWN, MOST_OUTPUTS = 4, 40  # outputs of a record that are shown at once, and on request
LONGEST = 600  # characters of a text


@dataclass
class Sample:
    """A validation record with what the model, or several models, made of it."""

    pictures: list[Html]  # two of a statement
    problem: str  # why there is no picture
    text_name: str  # question or statement
    text: str
    truth: str
    outputs: list[tuple[str, str]]  # ("epochs 2 to 4", text) of some evaluations, the last one among them
    more: list[tuple[str, str]]  # of nearly all of them; empty where `outputs` has all


def samples_of(runs: Sequence[RunFiles], limits: ImageLimits = LIMITS) -> list[Sample]:
    """The records of `samples.jsonl`, with the outputs of each evaluation or, of several runs, of the last one.

    An evaluation without training has none: then some of its results are shown.
    """
    if len(runs) == 1 and not runs[0].history.samples:
        return _of_results(runs[0], limits)
    found: dict[tuple[Any, str], list[tuple[RunFiles, list[dict[str, Any]]]]] = {}
    for run in runs:
        own: dict[tuple[Any, str], list[dict[str, Any]]] = {}
        for line in run.history.samples:
            own.setdefault((line.get("index"), str(line.get("image", ""))), []).append(line)
        for key, lines in own.items():
            found.setdefault(key, []).append((run, lines))
    return [_sample(of_runs, several=len(runs) > 1, limits=limits) for of_runs in list(found.values())[:MOST_RECORDS]]


def _sample(of_runs: list[tuple[RunFiles, list[dict]]], *, several: bool, limits: ImageLimits) -> Sample:
    run, lines = of_runs[0]
    given = lines[-1].get("image", "")
    pictures, problem = _pictures(given if isinstance(given, list) else [given], run, limits)
    if several:
        everything = [(one.name, _text(own[-1].get("output"))) for one, own in of_runs]
        outputs = everything
    else:
        everything = list(_changes(lines))
        outputs = _thinned(everything, MOST_SHOWN)
    more = _thinned(everything, MOST_OUTPUTS) if len(outputs) < len(everything) else []
    text_name = "statement" if isinstance(run.config, NlvrConfig) else "question"
    text, truth = (_text(lines[-1].get(key)) for key in ("text", "truth"))
    return Sample(pictures, problem, text_name, text, truth, outputs, more)


def _of_results(run: RunFiles, limits: ImageLimits) -> list[Sample]:
    """Some records of the first file of results, spread evenly; none where a run has no results that can be read."""
    items: list[Item] = []
    for file in files_of_run(run.folder):
        with suppress(BlipError):
            items = results_in(file) or []
        if items:
            break
    samples = []
    for place in sorted({len(items) * number // MOST_RESULTS for number in range(MOST_RESULTS)}) if items else []:
        item = items[place]
        pictures, problem = _pictures(item.images, run, limits)
        outputs = [(f"record {item.name}" if item.name else "output", _text(item.output))]
        samples.append(Sample(pictures, problem, item.text_name, _text(item.text), _text(item.truth), outputs, []))
    return samples


def _pictures(paths: Sequence[Any], run: RunFiles, limits: ImageLimits) -> tuple[list[Html], str]:
    """(the first images, why there is none); paths may be relative to the run's folder.

    Scans are shown as the limits say or, where these have no window, as in training.
    """
    pictures = list[Html]()
    if not (limits.window or limits.channels) and isinstance(run.config, ModelConfig):
        limits = replace(limits, window=run.config.window, channels=tuple(run.config.channels))
    try:
        for path in map(str, paths[:MOST_IMAGES]):
            if not os.path.exists(path) and os.path.exists(run.folder / path):
                path = str(run.folder / path)
            shown = [small(one, SIDE) for one in open_pictures([path], limits)[: MOST_IMAGES - len(pictures)]]
            pictures += [image(one, "JPEG", QUALITY, alt="image of this record") for one in shown]
    except UnreadableImage as error:
        return pictures, str(error)
    return pictures, ""


def _changes(lines: Sequence[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    """The outputs that follow each other, with the epochs in which each was written."""
    first = 0
    for number, line in enumerate(lines):
        if number + 1 < len(lines) and lines[number + 1].get("output") == line.get("output"):
            continue
        yield _when(lines[first], line), _text(line.get("output"))
        first = number + 1


def _when(first: dict[str, Any], last: dict[str, Any]) -> str:
    unit = "epoch" if "epoch" in last else "step"
    one, other = f"{first.get(unit, 0):,}", f"{last.get(unit, 0):,}"
    return f"{unit} {other}" if one == other else f"{unit}s {one} to {other}"


def _thinned(outputs: list[tuple[str, str]], most: int) -> list[tuple[str, str]]:
    """The first and the last outputs, and some between them."""
    if len(outputs) <= most:
        return outputs
    places = {round(i * (len(outputs) - 1) / (most - 1)) for i in range(most)}
    return [one for place, one in enumerate(outputs) if place in places]


def _text(value: Any) -> str:
    several = value if isinstance(value, list) else [] if value is None else [value]
    return cut(" / ".join(map(str, several)), LONGEST)
