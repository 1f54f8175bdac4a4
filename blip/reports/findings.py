"""What a run's log and data say, in words: whether it learns, whether it overfits, what was skipped, what leaks."""

import itertools
import math
import os
from dataclasses import dataclass
from typing import Any

from blip.config import ModelConfig, PairConfig
from blip.data.pairs import caption_id, read_pairs
from blip.data.statements import read_statements
from blip.errors import BlipError
from blip.hub.names import is_hub_name
from blip.models.losses import ITM_NO_SKILL
from blip.reports.charts import OBJECTIVES, values
from blip.reports.run_files import SPLITS, RunFiles
from blip.reports.scores import all_scores, number
from blip.tasks.config import NlvrConfig, VqaConfig
from blip.tasks.data_options import entries, read_as

MOST_BYTES = 300 << 20  # of annotation files that are read to find leaks


@dataclass(frozen=True)
class Finding:
    """A sentence; `level` is good, note or warning."""

    level: str
    text: str


def warning(text: str) -> Finding:
    return Finding("warning", text)


def note(text: str) -> Finding:
    return Finding("note", text)


def good(text: str) -> Finding:
    return Finding("good", text)


def findings(run: RunFiles) -> list[Finding]:
    """Everything that can be said of a run, warnings first."""
    found = [*_state(run), *_learning(run), *_levels(run), *_data(run)]
    found += [warning(f"A part of the run could not be read: {problem}") for problem in run.problems]
    order = {"warning": 0, "note": 1, "good": 2}
    return sorted(found, key=lambda one: order[one.level])


def _state(run: RunFiles) -> list[Finding]:
    steps, epochs = run.history.steps, run.options.get("epochs")
    if not steps and run.evaluated:
        return [note(f"This is an evaluation without training, of {run.evaluated.get('weights', 'some weights')}.")]
    if not steps:
        return [warning("Nothing is logged yet: the first line follows after log_every_steps steps.")]
    last = steps[-1]
    text = f"{last['step']:,} steps are logged"
    if isinstance(last.get("epoch"), int | float):
        text += f", {last['epoch']:.4g} of {epochs} epochs" if epochs else f", {last['epoch']:.4g} epochs"
    if run.options.get("max_steps"):
        text += f"; max_steps ends the run at {run.options['max_steps']:,}"
    return [note(f"{text}.")]


def _learning(run: RunFiles) -> list[Finding]:
    last = run.history.steps[-1] if run.history.steps else {}
    lost = [key for key in OBJECTIVES if isinstance(last.get(key), float) and not math.isfinite(last[key])]
    found = [warning(f"At the last step {', '.join(lost)} is no finite number: the run diverged.")] if lost else []
    _, itm = values(run.history.steps, "itm")
    if len(itm) >= 10 and abs(float(itm[-max(5, len(itm) // 20) :].mean()) - ITM_NO_SKILL) < 0.02:
        found.append(
            warning(
                f"Matching (ITM) is at {itm[-1]:.3f}, and a model without skill is at "
                f"{ITM_NO_SKILL:.4f}: it has learned little about which texts fit an image."
            )
        )
    x, losses = values(run.history.epochs, "val_loss")
    if len(losses) > 2:
        best = int(losses.argmin())
        if losses[-1] > 1.02 * losses[best]:
            lowest = f"The validation loss was lowest at step {x[best]:,.0f} ({losses[best]:.4g})"
            found.append(
                warning(f"{lowest} and is now {losses[-1]:.4g}: since then the run fits its training data alone.")
            )
        else:
            found.append(good(f"The validation loss fell from {losses[0]:.4g} to {losses[-1]:.4g}."))
    metric, best_score = run.options.get("best_metric"), run.last("best")
    if metric and best_score is not None:
        at = f", reached at step {run.best['step']:,}" if isinstance(run.best.get("step"), int) else ""
        found.append(note(f"The best {metric} is {best_score:.4g}{at}; its weights are in the folder best."))
    return found


def _levels(run: RunFiles) -> list[Finding]:
    """Scores that a model without skill reaches as well."""
    found = []
    for split, scores in all_scores(run).items():
        for score in scores:
            if score.floor is not None and score.interval.low <= score.floor:
                what = f"{score.label} of {SPLITS[split]} ({number(score.interval.mean)})"
                found.append(warning(f"{what} is not clearly above {number(score.floor)} ({score.floor_name})."))
    return found


def _data(run: RunFiles) -> list[Finding]:
    found = []
    if run.skipped:
        first = run.skipped[0]
        found.append(
            warning(
                f"{len(run.skipped):,} training images could not be read and were skipped, the "
                f"first being {first['path']} ({first['reason']})."
            )
        )
    elif run.history.steps:
        found.append(good("No training image was skipped."))
    for split, paths in run.unreadable.items():
        found.append(
            warning(
                f"{len(paths):,} images of {SPLITS[split]} could not be read, the first being "
                f"{paths[0]}; they are no part of the scores."
            )
        )
    return [*found, *leaks(run)]


# ---- leaks -----------------------------------------------------------------------------------------------------------


def leaks(run: RunFiles) -> list[Finding]:
    """Whether images, patients or texts of validation and test also occur in training."""
    found = []
    for split in SPLITS:
        line = (
            run.test
            if split == "test"
            else {"shared": run.last("val_images_in_training"), "all": run.last("val_images")}
        )
        shared, count = (
            line.get("shared", line.get("test_images_in_training")),
            line.get("all", line.get("test_images")),
        )
        if shared is not None:
            found.append(_shared(shared, count, SPLITS[split]))
        elif run.options.get("train_file") and run.options.get(f"{split}_file"):
            found += _compared(run, split)
    return found


def _shared(shared: int, count: Any, split: str) -> Finding:
    of = f" of {count:,}" if isinstance(count, int) else ""
    if shared:
        return warning(
            f"{shared:,}{of} images of {split} also occur in training, by their name or content: "
            "scores on them say little about new images."
        )
    return good(f"No image of {split} occurs in training, by its name or content.")


def _compared(run: RunFiles, split: str) -> list[Finding]:
    """The same for tasks whose runs do not compare them: reads the annotations again, as the run read them."""
    name, parts = SPLITS[split], ("train", split)
    if isinstance(run.config, VqaConfig):  # its evaluations compare them
        return []
    if run.config is None:
        return [note(f"Whether training and {name} share images was not checked: its configuration cannot be read.")]
    listed = itertools.chain(*(getattr(run.config, f"{part}_file") for part in parts))
    places = [one if isinstance(one, str) else one.path for one in listed]
    if any("{" in place or place.endswith(".tar") for place in places):
        return []
    if hub := [place for place in places if is_hub_name(place)]:
        return [note(f"Whether training and {name} share images was not checked: {hub[0]} is a data set of the hub.")]
    if missing := [place for place in places if not os.path.exists(place)]:
        return [note(f"Whether training and {name} share images was not checked: {missing[0]} is not there.")]
    if sum(_size(place) for place in places) > MOST_BYTES:
        return [note(f"Whether training and {name} share images was not checked: the annotations are large.")]
    try:
        (train, train_groups, train_texts), (own, groups, texts) = (_names(run.config, part) for part in parts)
    except BlipError as error:
        return [note(f"Whether training and {name} share images was not checked: {error}")]
    found = [_shared(len(train & own), len(own), name)]
    if shared := len((groups - own) & (train_groups - train)):
        found.append(warning(f"{shared:,} patients or articles of {name} also have images in training."))
    if texts and (equal := len(texts & train_texts)):
        found.append(note(f"{equal:,} of the {len(texts):,} different texts of {name} also occur in training."))
    return found


Names = tuple[set[Any], set[Any], set[int]]  # images, groups, texts


def _names(config: ModelConfig, part: str) -> Names:
    """Of the records that a run takes of a part, `train`, `val` or `test`."""
    files = entries(getattr(config, f"{part}_file"))
    if isinstance(config, NlvrConfig):
        statements = read_statements(files, **read_as(config, part))
        items = [statements[i] for i in range(len(statements))]
        images = {one for item in items for one in ([item.images] if isinstance(item.images, str) else item.images)}
        return images, images, {caption_id(item.sentence) for item in items}
    if isinstance(config, PairConfig):
        from blip.tasks.pretrain_data import read_part

        pairs = read_part(config, files, part)
    else:
        pairs = read_pairs(files, **read_as(config, part))
    numbers = range(len(pairs))
    texts = {caption_id(text) for i in numbers for text in pairs.captions(i)}
    return {pairs.image_id(i) for i in numbers}, {pairs.group(i) for i in numbers}, texts


def _size(path: str) -> int:
    return (
        sum(f.stat().st_size for f in os.scandir(path) if f.is_file()) if os.path.isdir(path) else os.path.getsize(path)
    )
