"""What passes through a model for a whole data set, in shards on disk, so that probes can be trained elsewhere.

FOLDER/index.json              what was captured with which model and settings; of each shard file, records, shapes
FOLDER/shard-00000.safetensors a tensor for each point, (records, ...); `lengths` (records,): tokens of each text;
                               `answer_lengths`, where a decoder reads answers: of each answer
FOLDER/shard-00000/POINT.npy   the same with --format npy

Texts of a shard are padded with zeros to its longest. An interrupted run goes on after its last whole shard.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from blip.data.images import UnreadableImage, open_image
from blip.errors import BlipError
from blip.files import flush, write_whole
from blip.inference.predictor import Predictor
from blip.inference.scoring import scores_of
from blip.interpret.explain_files import Wanted, check_wanted
from blip.interpret.points import STATES
from blip.interpret.trace import names, trace

INDEX, FORMATS = "index.json", ("safetensors", "npy")
TASKS = ("match", "caption", "answer", "image")
POOLS = ("all", "first", "mean")


class ActivationError(BlipError):
    """Activations that cannot be captured or continued; the message says why."""


@dataclass
class Capture:
    """What is captured, and how; a run that goes on has to be asked for the same."""

    weights: str  # fingerprint of the checkpoint
    data: str  # where it lies, for the reader; `contents` is compared
    points: list[str]
    task: str
    pool: str = "all"  # tokens: all, the first one, or the mean over those that are not padding
    format: str = "safetensors"
    shard_size: int = 1024
    records: int = 0
    contents: str = ""  # fingerprint of images' paths, texts and answers
    shards: list[dict[str, Any]] = field(default_factory=list)

    def asked(self) -> dict[str, Any]:
        return {name: value for name, value in asdict(self).items() if name not in ("shards", "data")}


def capture(m: Predictor, wanted: Sequence[Wanted], what: Capture, folder: Path, batch_size: int = 32) -> list[str]:
    """Writes the shards that are not there yet; returns what is wrong with the images that could not be read.

    Such a record is left out: the index names the records of each shard by their number in the data.
    """
    if what.pool not in POOLS or what.format not in FORMATS or what.shard_size < 1:
        raise ActivationError(f"pool can be {', '.join(POOLS)}; format {', '.join(FORMATS)}; shard_size 1 or more")
    if wrong := [name for name in what.points if what.pool != "all" and _attention(name)]:
        raise ActivationError(f"{wrong[0]} has a head axis: pool is for states (in, mlp, out); take pool=all")
    if what.task not in TASKS:
        raise ActivationError(f"task is {what.task!r}; it can be {', '.join(TASKS)}")
    if not wanted:
        raise ActivationError(f"{what.data} holds no records")
    if what.task != "image":
        check_wanted(m, wanted, needed=True)
    folder.mkdir(parents=True, exist_ok=True)
    what.records, what.contents = len(wanted), _contents(wanted)
    what.shards = _done(folder, what)
    begin = sum(shard["asked"] for shard in what.shards)
    problems: list[str] = [problem for shard in what.shards for problem in shard["problems"]]
    starts = range(begin, len(wanted), what.shard_size)
    for start in track(starts, description="shards", disable=len(starts) < 2):
        part = wanted[start : start + what.shard_size]
        tensors, numbers, unread = _shard(m, part, start, what, batch_size)
        problems += unread
        name = _write(folder, len(what.shards), what.format, tensors) if tensors else ""
        shapes = {point: list(tensor.shape) for point, tensor in tensors.items()}
        line = {"file": name, "asked": len(part), "records": numbers, "shapes": shapes, "problems": unread}
        what.shards.append(line)
        write_whole(folder / INDEX, json.dumps(asdict(what), indent=1) + "\n")
    return problems


def read_shards(folder: str | Path) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
    """(numbers of the records, tensor of each point) of each shard."""
    from safetensors.torch import load_file

    folder = Path(folder)
    for shard in json.loads((folder / INDEX).read_text(encoding="utf-8"))["shards"]:
        if shard["file"].endswith(".safetensors"):
            yield shard["records"], load_file(folder / shard["file"])
        elif shard["file"]:
            files = sorted((folder / shard["file"]).glob("*.npy"))
            yield shard["records"], {file.stem: torch.from_numpy(np.load(file)) for file in files}


def _attention(name: str) -> bool:
    return name.rpartition(".")[2] not in STATES


def _done(folder: Path, what: Capture) -> list[dict[str, Any]]:
    """The shards of an interrupted run of the same wish."""
    path = folder / INDEX
    if not path.exists():
        return []
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        shards = found.pop("shards")
        whole = [not shard["file"] or (folder / shard["file"]).exists() for shard in shards]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ActivationError(f"{path} is damaged ({error}): delete the folder and start again") from None
    if different := [name for name, value in what.asked().items() if found.get(name) != value]:
        name = different[0]
        raise ActivationError(
            f"{folder} holds activations with {name} {found.get(name)!r}, now it is {what.asked()[name]!r}: "
            "give another --out, or delete it"
        )
    return shards[: whole.index(False)] if False in whole else shards


def _shard(
    m: Predictor, wanted: Sequence[Wanted], first: int, what: Capture, batch_size: int
) -> tuple[dict[str, Tensor], list[int], list[str]]:
    parts: dict[str, list[Tensor]] = {point: [] for point in what.points}
    lengths: dict[str, list[Tensor]] = {}
    numbers, problems = [], []
    for start in range(0, len(wanted), batch_size):
        batch, images = [], []
        for number, one in enumerate(wanted[start : start + batch_size], start=first + start):
            try:
                images.append(open_image(one.image))
            except UnreadableImage as error:
                problems.append(str(error))
                continue
            batch.append(one)
            numbers.append(number)
        if not batch:
            continue
        texts, answers = [one.text for one in batch], [one.answer for one in batch]
        if what.task == "answer" and not all(answers):  # the model's own, where none is given
            own = [answer.text for answer in m.answer(images, texts)]
            answers = [given or answer for given, answer in zip(answers, own, strict=True)]
        with torch.no_grad(), trace(m, what.points) as t:
            scores_of(m, what.task, images, texts, answers)
        tokens = {} if what.task == "image" else {"lengths": m.ids(texts)[1]}
        if what.task == "answer":
            tokens["answer_lengths"] = m.ids(answers)[1]
        for name, counts in tokens.items():
            lengths.setdefault(name, []).append(counts)
        for point in what.points:
            stack = "answer_lengths" if what.task == "answer" and point.startswith("decoder.") else "lengths"
            parts[point].append(_pooled(t[point], tokens.get(stack), what.pool, point).cpu())
    if not numbers:
        return {}, [], problems
    joined = {point: _joined(tensors) for point, tensors in parts.items()}
    return joined | {name: torch.cat(counts) for name, counts in lengths.items()}, numbers, problems


def _contents(wanted: Sequence[Wanted]) -> str:
    digest = hashlib.sha256()
    for one in wanted:
        digest.update(json.dumps([str(one.image), one.text, one.answer]).encode())
    return digest.hexdigest()[:12]


def _pooled(x: Tensor, lengths: Tensor | None, pool: str, point: str) -> Tensor:
    if pool == "all":
        return x.clone()
    if pool == "first":
        return x[:, 0].clone()
    if lengths is None or point.startswith("image.") or x.shape[1] == 1:
        return x.mean(dim=1)
    return x.sum(dim=1) / lengths.to(x.device)[:, None]  # padding is zero


def _joined(tensors: list[Tensor]) -> Tensor:
    """Batches of one shard, each padded with zeros to the longest text."""
    shape = [max(t.shape[axis] for t in tensors) for axis in range(tensors[0].dim())]
    padded = []
    for t in tensors:
        missing = [size for axis in reversed(range(1, t.dim())) for size in (0, shape[axis] - t.shape[axis])]
        padded.append(F.pad(t, missing))
    return torch.cat(padded).contiguous()


def _write(folder: Path, number: int, form: str, tensors: dict[str, Tensor]) -> str:
    """Writes a shard under another name first: what has its own name is whole."""
    name = f"shard-{number:05d}" + (".safetensors" if form == "safetensors" else "")
    partial = folder / f"{name}.partial"
    if form == "safetensors":
        save_file(tensors, partial)
        flush(partial)
    else:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        for point, tensor in tensors.items():
            np.save(partial / f"{point}.npy", tensor.float().numpy() if tensor.is_floating_point() else tensor.numpy())
        shutil.rmtree(folder / name, ignore_errors=True)
    os.replace(partial, folder / name)
    return name


def points_of(m: Predictor, patterns: Sequence[str]) -> list[str]:
    """Names that match the patterns, in the order of computation."""
    with trace(m, patterns) as t:  # says what is wrong with a pattern
        return [name for name in names(m) if name in t.wanted]
