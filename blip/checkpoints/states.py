"""State dicts of others' files: safetensors or a pickle, one file or several with an index. No code in them is run."""

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from pydantic import BaseModel, ConfigDict
from safetensors import SafetensorError, safe_open
from torch import Tensor

from blip.checkpoints.format import WEIGHTS, CheckpointError, load_pickled
from blip.checkpoints.names import Tensors
from blip.files import ReadError, open_regular, read_json

PICKLED = "pytorch_model.bin"
INDEX = ".index.json"  # behind the name of the weights that several files share
MAX_INDEX = 1 << 26  # bytes


class _Index(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")

    weight_map: dict[str, str]


def names_of_weights(there: set[str], kinds: Sequence[str] = (WEIGHTS, PICKLED)) -> list[str]:
    """Of the names of files, those of the weights of the first kind that is complete; [] where none is.

    Of weights in several files the index comes first; their names give their number, as `-00001-of-00002` does.
    """
    for name in kinds:
        if name in there:
            return [name]
        stem, _, ending = name.partition(".")
        parts = sorted(one for one in there if re.fullmatch(rf"{stem}-\d{{5}}-of-\d{{5}}\.{ending}", one))
        if parts and f"{name}{INDEX}" in there and len(parts) == int(parts[0].rpartition("-")[2].partition(".")[0]):
            return [f"{name}{INDEX}", *parts]
    return []


def weight_files(folder: Path) -> list[Path]:
    """The files with the weights of a folder of Hugging Face; safetensors before pickles.

    Raises:
        CheckpointError: it has none, or its index names files that are not there.
    """
    for name in (WEIGHTS, PICKLED):
        if (folder / name).is_file():
            return [folder / name]
        if (index := folder / f"{name}{INDEX}").is_file():
            return _indexed(index)
    raise CheckpointError(f"{folder} holds neither {WEIGHTS} nor {PICKLED}")


def _indexed(index: Path) -> list[Path]:
    try:
        names = sorted(set(read_json(index, _Index, MAX_INDEX).weight_map.values()))
    except ReadError as error:
        raise CheckpointError(f"{index} is damaged: {error.problem}") from error
    if strange := [name for name in names if Path(name).name != name]:
        raise CheckpointError(f"{index} names {strange[0]}, which is no file beside it")
    if missing := [name for name in names if not (index.parent / name).is_file()]:
        raise CheckpointError(
            f"{index.parent} is incomplete: {', '.join(missing[:4])} of {len(names)} files are absent"
        )
    return [index.parent / name for name in names]


def read_state(path: Path, wanted: Callable[[str], bool] = lambda _: True, dtype: torch.dtype | None = None) -> Tensors:
    """The tensors of a folder of Hugging Face or of a file, whose names are `wanted`; no other is read of safetensors.

    With `dtype` each becomes one of that type as it is read.

    A file may hold them as `model`, as LAVIS and BLIP save them.

    Raises:
        CheckpointError: it does not exist, is damaged, or holds no state dict.
    """
    tensors: Tensors = {}
    for file in weight_files(path) if path.is_dir() else [path]:
        tensors |= {name: tensor if dtype is None else tensor.to(dtype) for name, tensor in _of_file(file, wanted)}
    return tensors


def _of_file(path: Path, wanted: Callable[[str], bool]) -> Iterator[tuple[str, Tensor]]:
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist")
    if path.suffix != ".safetensors":
        yield from ((name, tensor) for name, tensor in _pickled(path).items() if wanted(name))
        return
    try:
        with open_regular(path), safe_open(path, "pt") as file:
            for name in list(file.keys()):
                if wanted(name):
                    yield name, file.get_tensor(name)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged or cut short: {error}") from error


def _pickled(path: Path) -> Tensors:
    state = load_pickled(path)
    if isinstance(state, dict) and isinstance(state.get("model"), dict):
        state = state["model"]
    named = isinstance(state, dict) and state and all(isinstance(name, str) for name in state)
    if not named or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise CheckpointError(f"{path} holds no state dict, that is, no names with a tensor each")
    return state
