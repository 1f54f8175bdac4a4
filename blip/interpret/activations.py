"""The activations of a whole data set, written in shards for training probes elsewhere; see `activation_shards.py`.

An interrupted run resumes after its last whole shard.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from torch import Tensor
from torch.nn import functional as F

from blip.files import ReadError, json_text, read_json, write_whole
from blip.inference.files import readable_items
from blip.inference.predictor import Predictor
from blip.interpret.activation_shards import (
    FORMATS,
    INDEX,
    OTHER_TENSORS,
    ActivationError,
    Index,
    damage_of,
    has_other_rows,
    remove_shard,
    write_shard,
)
from blip.interpret.explain_files import Wanted, check_wanted
from blip.interpret.objectives import OBJECTIVES, completed_answers, explained
from blip.interpret.points import is_state
from blip.interpret.trace import names, trace
from blip.models.factory import spec_of
from blip.outputs import locked

POOLS = ("all", "first", "mean")
LATER = ("precision", "view", "tokenizer")  # values that an index of earlier versions lacks


@dataclass
class Capture:
    """What is captured, and how; an interrupted run is resumed with the same values only."""

    weights: str  # fingerprint of the checkpoint
    data: str  # its path, for information; `contents` is compared
    points: list[str]
    task: str
    pool: str = "all"  # tokens: all, the first one, or the mean over those that are not padding
    format: str = "safetensors"
    shard_size: int = 1024
    precision: str = "fp32"
    view: str = ""  # `--window` or `--channels` of scans, where they are not those of the model's training
    tokenizer: str = ""  # fingerprint of `--tokenizer`, where it is not the checkpoint's own
    records: int = 0
    contents: str = ""  # fingerprint of images' paths, texts and answers
    shards: list[dict[str, Any]] = field(default_factory=list)

    def requested(self) -> dict[str, Any]:
        """The values that a resumed run has to share."""
        return {name: value for name, value in asdict(self).items() if name not in ("shards", "data")}


def capture(
    m: Predictor,
    wanted: Sequence[Wanted],
    what: Capture,
    folder: Path,
    *,
    batch_size: int = 32,
    overwrite: bool = False,
) -> list[str]:
    """Writes the shards that do not exist yet; returns a message for each image that could not be read.

    Its record is left out: the index lists the records of each shard by their number in the data.

    Args:
        overwrite: shards of other settings are replaced.

    Raises:
        ActivationError: wrong settings, or the folder holds shards of others.
        LockedError: another process writes to the folder.
    """
    _check(m, wanted, what)
    with locked(folder):
        return _capture(m, wanted, what, folder, batch_size=batch_size, overwrite=overwrite)


def _check(m: Predictor, wanted: Sequence[Wanted], what: Capture) -> None:
    """ActivationError for what cannot be captured."""
    if what.pool not in POOLS or what.format not in FORMATS or what.shard_size < 1:
        raise ActivationError(f"pool can be {', '.join(POOLS)}; format {', '.join(FORMATS)}; shard_size 1 or more")
    if wrong := [name for name in what.points if what.pool != "all" and not is_state(name)]:
        raise ActivationError(f"{wrong[0]} has a head axis: pool is for states (in, mlp, out); take pool=all")
    if what.task not in OBJECTIVES:
        raise ActivationError(f"task is {what.task!r}; it can be {', '.join(OBJECTIVES)}")
    if not wanted:
        raise ActivationError(f"{what.data} holds no records")
    if OBJECTIVES[what.task].reads_texts:
        check_wanted(m, wanted, needed=True)


def _capture(
    m: Predictor, wanted: Sequence[Wanted], what: Capture, folder: Path, *, batch_size: int, overwrite: bool
) -> list[str]:
    what.records, what.contents = len(wanted), contents_of(wanted)
    what.shards = _done(folder, what, overwrite)
    _write_index(folder, what)  # also before the first shard: by it the folder is known after a kill
    begin = sum(shard["asked"] for shard in what.shards)
    problems: list[str] = [problem for shard in what.shards for problem in shard["problems"]]
    starts = range(begin, len(wanted), what.shard_size)
    first_with: dict[tuple[str, ...], int] = {}
    images = [first_with.setdefault(tuple(map(str, one.paths)), number) for number, one in enumerate(wanted)]
    for start in track(starts, description="shards", disable=len(starts) < 2):
        part = wanted[start : start + what.shard_size]
        tensors, numbers, unread = _shard(m, part, start, what=what, batch_size=batch_size)
        problems += unread
        name = ""
        if tensors:
            name = write_shard(folder, len(what.shards), tensors, records=numbers, form=what.format)
        shapes = {point: list(tensor.shape) for point, tensor in tensors.items()}
        line = {"file": name, "asked": len(part), "records": numbers, "images": [images[one] for one in numbers]}
        what.shards.append({**line, "shapes": shapes, "problems": unread})
        _write_index(folder, what)
    return problems


def _write_index(folder: Path, what: Capture) -> None:
    write_whole(folder / INDEX, json_text(asdict(what)))


def _done(folder: Path, what: Capture, overwrite: bool) -> list[dict[str, Any]]:
    """The whole shards of an interrupted run with the same values; those of another run are removed to `overwrite`.

    ActivationError without it, and for a shard that is complete but another than was written.
    """
    path = folder / INDEX
    if not path.exists():
        return []
    try:
        index: dict[str, Any] = read_json(path, dict[str, Any])
        shards = read_json(path, Index).shards
    except ReadError as error:
        if overwrite:
            return []
        raise ActivationError(
            f"{path} is damaged ({error.problem}): give another --out, or replace what is there with --overwrite"
        ) from None
    asked = what.requested().items()
    different = [name for name, value in asked if index.get(name, value if name in LATER else None) != value]
    if different and overwrite:
        for shard in shards:
            remove_shard(folder, shard.file)
        path.unlink()
        return []
    if different:
        name = different[0]
        raise ActivationError(
            f"{folder} holds activations with {name} {index.get(name)!r}, now it is {what.requested()[name]!r}: "
            "give another --out, or replace them with --overwrite"
        )
    damage = [damage_of(folder, shard) if shard.file else "" for shard in shards]
    if OTHER_TENSORS in damage and not overwrite:
        raise ActivationError(
            f"{folder / shards[damage.index(OTHER_TENSORS)].file} {OTHER_TENSORS}, it was changed: move it away, or "
            "replace it with --overwrite"
        )
    kept = shards[: next((number for number, problem in enumerate(damage) if problem), None)]
    return [shard.model_dump() for shard in kept]


def _shard(
    m: Predictor, wanted: Sequence[Wanted], first: int, *, what: Capture, batch_size: int
) -> tuple[dict[str, Tensor], list[int], list[str]]:
    """Tensors of one shard, the numbers of its records, of which `wanted` begins with `first`, and the messages."""
    objective = explained(m, what.task)
    parts: dict[str, list[Tensor]] = {point: [] for point in what.points}
    lengths: dict[str, list[Tensor]] = {}
    numbers: list[int] = []
    problems: list[str] = []
    numbered = list(enumerate(wanted, start=first))
    for batch, images, unread in readable_items(numbered, batch_size, lambda one: one[1].paths, limits=m.limits):
        problems += unread
        if not batch:
            continue
        numbers += [number for number, _ in batch]
        texts, answers = [one.text for _, one in batch], [one.answer for _, one in batch]
        if objective.has_answers:
            answers = completed_answers(m, images, texts, answers=answers)
        with torch.no_grad(), trace(m, what.points) as t:
            objective.scores(m, images, texts, answers=answers)
        tokens = {"lengths": m.ids(texts)[1]} if objective.reads_texts else {}
        if objective.has_answers:
            tokens["answer_lengths"] = m.ids(answers)[1]
        for name, counts in tokens.items():
            lengths.setdefault(name, []).append(counts)
        for point in what.points:
            if t.passes(point) > 1:
                raise ActivationError(
                    f"{t.passes(point)} passes go through {point} in the task {what.task}, such as of queries and of a "
                    "text in BLIP-2: take the task match, or points of one of them"
                )
            of_answer = objective.has_answers and point.startswith("decoder.")
            of_tokens = tokens.get("answer_lengths" if of_answer else "lengths")
            if len(t[point]) != len(batch):
                raise ActivationError(
                    f"{point} has a row for each picture, and records have several: capture points of the texts, or "
                    "give each picture as a record of its own"
                )
            parts[point].append(_pooled(t[point], of_tokens, point=point, pool=what.pool).cpu())
    if not numbers:
        return {}, [], problems
    joined = {point: _joined(tensors) for point, tensors in parts.items()}
    return joined | {name: torch.cat(counts) for name, counts in lengths.items()}, numbers, problems


def contents_of(wanted: Sequence[Wanted]) -> str:
    """A fingerprint of records: of their images' paths, texts and answers."""
    digest = hashlib.sha256()
    for one in wanted:
        digest.update(json.dumps([str(one.image), one.text, one.answer, *map(str, one.further)]).encode())
    return digest.hexdigest()[:12]


def _pooled(x: Tensor, lengths: Tensor | None, *, point: str, pool: str) -> Tensor:
    if pool == "all":
        return x.clone()
    if pool == "first":
        return x[:, 0].clone()
    if lengths is None or point.startswith("image.") or x.shape[1] == 1:
        return x.mean(dim=1)
    if has_other_rows(point):
        return x.sum(dim=1) / x.ne(0).any(dim=-1).sum(dim=1, keepdim=True)
    return x.sum(dim=1) / lengths.to(x.device)[:, None]  # padding is zero


def _joined(tensors: list[Tensor]) -> Tensor:
    """Batches of one shard, each padded with zeros to the longest text."""
    shape = [max(t.shape[axis] for t in tensors) for axis in range(tensors[0].dim())]
    padded = []
    for t in tensors:
        missing = [size for axis in reversed(range(1, t.dim())) for size in (0, shape[axis] - t.shape[axis])]
        padded.append(F.pad(t, missing))
    return torch.cat(padded).contiguous()


def usual_task(m: Predictor, points: Sequence[str]) -> str:
    """The task where none is given: `image` if no point needs a text, else what the checkpoint is explained as."""
    if all(point.startswith("image.") for point in points):
        return "image"
    return spec_of(m.info["task"]).explained_as


def points_of(m: Predictor, patterns: Sequence[str]) -> list[str]:
    """Names that match the patterns, in the order of computation."""
    with trace(m, patterns) as t:  # raises for a pattern without any point
        return [name for name in names(m) if name in t.wanted]
