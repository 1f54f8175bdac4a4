"""Shards of activations on disk: what their index holds, reading, writing and checking them.

FOLDER/index.json              points, model and settings; of each shard its file, records and shapes
FOLDER/shard-00000.safetensors a tensor for each point, (records, ...); `lengths` (records,): tokens of each text;
                               `answer_lengths`, where a decoder reads answers: of each answer; `records` (records,):
                               their numbers in the data, by which a shard is known that took the place of another
FOLDER/shard-00000/POINT.npy   the same with --format npy

Texts are padded with zeros to the longest of the shard.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch import Tensor

from blip.errors import BlipError
from blip.files import ReadError, read_json, remove_folder, whole_folder, write_whole

INDEX, FORMATS, RECORDS = "index.json", ("safetensors", "npy"), "records"
OTHER_TENSORS = "has other tensors than the index tells"


class ActivationError(BlipError):
    """Activations that cannot be captured or resumed; the message gives the reason."""


Count = Annotated[int, Field(ge=0)]


class Shard(BaseModel):
    """A shard in the index; `asked` records were read for it, `records` are those whose image could be opened.

    `images` names the image of each: the number of the first record of the data that has it. Those of earlier versions
    have none.
    """

    model_config = ConfigDict(strict=True)

    file: str = Field(pattern=r"^(shard-[0-9]+(\.safetensors)?)?$")  # "": none of its images could be read
    asked: Annotated[int, Field(gt=0)]
    records: list[Count]
    images: list[Count] = []
    shapes: dict[str, list[Count]]
    problems: list[str] = []


class Index(BaseModel):
    """The entries of `index.json` that reading needs; the others are those of `Capture`."""

    model_config = ConfigDict(strict=True, extra="allow")

    shards: list[Shard]


def read_shards(folder: str | Path) -> Iterator[tuple[list[int], dict[str, Tensor]]]:
    """(numbers of the records, tensor of each point) of each shard.

    Raises:
        ActivationError: the index or a shard is damaged.
    """
    folder = Path(folder)
    for shard in _shards_of(folder):
        if shard.file:
            if problem := damage_of(folder, shard):
                raise ActivationError(f"{folder / shard.file} {problem}: make the activations again")
            yield shard.records, _tensors_of(folder, shard)


def images_of_records(folder: str | Path) -> dict[int, int]:
    """For each record the number of the first record with the same image; by itself where shards do not tell.

    Raises:
        ActivationError: the index is damaged.
    """
    found: dict[int, int] = {}
    for shard in _shards_of(Path(folder)):
        found |= zip(shard.records, shard.images or shard.records, strict=False)
    return found


def _shards_of(folder: Path) -> list[Shard]:
    try:
        return read_json(folder / INDEX, Index).shards
    except ReadError as error:
        raise ActivationError(f"{error}: make the activations again") from None


def _tensors_of(folder: Path, shard: Shard) -> dict[str, Tensor]:
    if shard.file.endswith(".safetensors"):
        return {name: tensor for name, tensor in load_file(folder / shard.file).items() if name != RECORDS}
    return {name: torch.from_numpy(np.load(folder / shard.file / f"{name}.npy")) for name in shard.shapes}


def damage_of(folder: Path, shard: Shard) -> str:
    """What is wrong with a shard: absent, cut short, of other shapes or other records than the index tells; "" if it is
    whole. Those of earlier versions do not name their records."""
    path, records = folder / shard.file, shard.records
    try:
        if shard.file.endswith(".safetensors"):
            with safe_open(path, "pt") as file:  # which compares the length of the file with its header
                found = {name: list(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
                if RECORDS in found:
                    records = file.get_tensor(RECORDS).tolist()
        else:
            files = {name: path / f"{name}.npy" for name in shard.shapes if "/" not in name}
            found = {name: list(np.load(file, mmap_mode="r").shape) for name, file in files.items()}
            if (path / f"{RECORDS}.npy").exists():
                records = np.load(path / f"{RECORDS}.npy").tolist()
    except (OSError, ValueError, SafetensorError) as error:
        return f"is damaged or cut short ({error})"
    points = {name: shape for name, shape in found.items() if name in shard.shapes}
    lengths = {shape[0] for shape in found.values() if shape}
    if points != shard.shapes or lengths - {len(shard.records)} or records != shard.records:
        return OTHER_TENSORS
    return ""


def has_other_rows(point: str) -> bool:
    """Whether a point has other rows than the tokens of a text, such as queries and the text behind them, or the keys
    of what is attended to: what is padding there, no length tells, and it is zero."""
    return point.startswith(("qformer.", "queries")) or point.endswith((".cross.k", ".cross.v"))


def is_index(folder: Path) -> bool:
    """Whether a folder has an index of activations."""
    try:
        index = read_json(folder / INDEX, dict[str, Any])
    except ReadError:
        return False
    return {"points", "shards", "weights", "contents"} <= index.keys()


def write_shard(folder: Path, number: int, tensors: dict[str, Tensor], *, records: list[int], form: str) -> str:
    """Writes a shard with the numbers of its records, whole or not at all -> its name."""
    name, tensors = f"shard-{number:05d}", {**tensors, RECORDS: torch.tensor(records)}
    if form == "safetensors":
        write_whole(folder / f"{name}.safetensors", save(tensors))
        return f"{name}.safetensors"
    with whole_folder(folder / name) as partial:
        for point, tensor in tensors.items():
            np.save(partial / f"{point}.npy", tensor.float().numpy() if tensor.is_floating_point() else tensor.numpy())
    return name


def remove_shard(folder: Path, name: str) -> None:
    """Deletes a shard that an index names; a name that `write_shard` does not give is ignored."""
    if re.fullmatch(r"shard-\d{5}(\.safetensors)?", name):
        path = folder / name
        if path.is_dir() and not path.is_symlink():
            remove_folder(path)
        else:
            path.unlink(missing_ok=True)
