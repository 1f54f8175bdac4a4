"""`blip ablate`: an ablation over a data set, in shards that an interrupted run continues, and its table.

FOLDER/shard-00000.jsonl    a line for each pair: its metric, and the change by each component
FOLDER/ablation.json        components, ranked, with intervals; what was measured
FOLDER/ablation.csv         the same as a table
FOLDER/ablation.png         the heat map, with matplotlib
"""

import csv
import io
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from blip.console.bars import Bars
from blip.data.image_bytes import UnreadableImage
from blip.data.jsonl_shards import Line, read_lines, settings_of, write_jsonl_shards
from blip.errors import BlipError, InputError
from blip.files import json_text, write_whole
from blip.inference.files import of_item
from blip.inference.inputs import OneImage, Study
from blip.inference.predictor import Predictor
from blip.interpret.activations import contents_of
from blip.interpret.causes.ablation import Ablation, Ablator, Effect
from blip.interpret.causes.metrics import METRICS
from blip.interpret.causes.patching import Pair
from blip.interpret.explain_files import Wanted, check_wanted
from blip.interpret.pictures import PictureError

STEP = {"step": "ablate"}  # in the settings of the shards
ALIASES = {"vqa": "answer"}
NAMES = ("ablation.json", "ablation.csv", "ablation.png")


def usual_metric(name: str) -> str:
    """The metric of a name on the command line."""
    return ALIASES.get(name, name)


def pairs_of(m: Predictor, wanted: Sequence[Wanted], metric: str) -> list[Pair]:
    """The pairs of records; no image is opened.

    Raises:
        InputError: a record lacks what the metric reads, or there are none.
        PictureError: a text or an answer is empty or too long for the model.
    """
    asks = metric == "answer"
    if not wanted:
        raise InputError("the data hold no records")
    for one in wanted:
        if asks and not one.answer:
            raise InputError(f"{one.image}: the metric vqa needs records with question and answer")
        if not asks and one.answer:
            raise InputError(f"{one.image}: the record is a question, which the metric vqa reads, not {metric}")
    check_wanted(m, wanted, needed=True)
    if asks:
        check_wanted(m, [replace(one, text=one.answer) for one in wanted], needed=True)
    images: list[OneImage] = [Study(list(map(str, one.paths))) if one.further else str(one.image) for one in wanted]
    return [(image, (one.text, one.answer) if asks else one.text) for image, one in zip(images, wanted, strict=True)]


def ablate_files(
    m: Predictor,
    wanted: Sequence[Wanted],
    folder: Path,
    *,
    settings: dict[str, Any],
    metric: str,
    shard_size: int = 64,
    batch_size: int = 256,
    overwrite: bool = False,
) -> tuple[Ablation, list[str]]:
    """Writes the shards that are missing, then reads all of them -> the ablation, and messages about images that cannot
    be read, whose records are left out. An image is read when its turn comes, and not before.

    Args:
        settings: `by`, `method` and `seed`, and what else the results depend on, such as the weights. A run is
            continued with equal ones only.
        metric: as in `ablate`, by name.
        shard_size: pairs of a shard.
        overwrite: shards of other settings are replaced.

    Raises:
        InputError, PictureError: as in `pairs_of`.
        UnreadableImage: no image can be read.
        ShardError: the folder holds shards of other settings.
    """
    if shard_size < 1:
        raise InputError(f"shard_size is {shard_size}, it must be 1 or more")
    if metric not in METRICS:
        raise InputError(f"metric is {metric!r}; it can be vqa, {', '.join(METRICS)}")
    pairs = pairs_of(m, wanted, metric)
    how = {name: settings[name] for name in ("by", "method", "seed")}
    ablator = Ablator(m, pairs, metric=metric, batch_size=batch_size, **how)
    count = -(-len(pairs) // shard_size)
    about = {**STEP, **settings, "metric": metric, "shard_size": shard_size, "records": len(pairs)}
    about["contents"] = contents_of(wanted)

    def make_lines(shard: int) -> Iterator[Line]:
        for number in range(shard * shard_size, min(len(pairs), (shard + 1) * shard_size)):
            try:
                clean, changes = ablator.of_pair(number)
            except UnreadableImage as error:
                yield {**of_item(wanted[number].paths), "problem": str(error)}
            else:
                yield {**of_item(wanted[number].paths), "clean": clean, "changes": changes}

    shards = write_jsonl_shards(folder, about, count, make_lines=make_lines, overwrite=overwrite)
    for _ in Bars().over(shards, "shards", count):
        pass
    lines = list(enumerate(read_lines(folder)))
    problems = [line["problem"] for _, line in lines if "problem" in line]
    found = {number: (line["clean"], line["changes"]) for number, line in lines if "problem" not in line}
    if not found:
        raise PictureError(problems[0])
    return ablator.ablation(found), problems


def is_ablation(folder: Path) -> bool:
    """Whether a folder holds shards of an ablation, whose settings are compared."""
    try:
        return settings_of(folder).items() >= STEP.items()
    except BlipError:
        return False


# ---- the table -------------------------------------------------------------------------------------------------------


def row_of(effect: Effect) -> dict[str, Any]:
    """An effect as the files hold it."""
    interval = asdict(effect.change)
    return {"point": effect.component.point, "head": effect.component.head,
            **{name: interval[name] for name in ("mean", "low", "high")}, "falls": effect.falls}  # fmt: skip


def save(ablation: Ablation, folder: Path, about: dict[str, Any]) -> None:
    """Writes the ranked table as JSON and CSV, and the heat map where matplotlib is installed."""
    rows = [row_of(effect) for effect in ablation.ranked()]
    clean = float(ablation.clean.mean())
    content = {**about, "pairs": len(ablation.clean), "unit": ablation.unit, "clean": clean, "components": rows}
    write_whole(folder / "ablation.json", json_text(content))
    text = io.StringIO()
    table = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    write_whole(folder / "ablation.csv", text.getvalue())
    with suppress(PictureError):  # matplotlib is not installed
        ablation.labelled().picture(folder / "ablation.png")


def show(ablation: Ablation, first: int = 20) -> None:
    """Prints the components whose ablation changes the metric most."""
    effects = ablation.ranked()
    table = Table(ablation.by, f"change ({ablation.unit})", "falls, % of pairs")
    table.title = (
        f"{ablation.method} ablation, {len(ablation.clean)} pairs; of the whole model {ablation.clean.mean():.3f}"
    )
    for effect in effects[:first]:
        one = effect.change
        change = f"{one.mean:+.3f} [{one.low:+.3f}, {one.high:+.3f}]"
        table.add_row(str(effect.component), change, f"{100 * effect.falls:.0f}")
    if len(effects) > first:
        table.caption = f"{len(effects) - first} others have smaller changes"
    Console(width=max(90, Console().width)).print(table, markup=False)
