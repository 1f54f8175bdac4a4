"""State dicts of others' files: safetensors or a pickle, one file or several with an index. No code in them is run."""

from collections.abc import Callable
from pathlib import Path

from pydantic import BaseModel, ConfigDict
from torch import Tensor

from blip.checkpoints.format import WEIGHTS, CheckpointError, load_pickled, load_tensors
from blip.checkpoints.names import Tensors
from blip.files import ReadError, read_json

PICKLED = "pytorch_model.bin"
INDEX = ".index.json"  # behind the name of the weights that several files share
MAX_INDEX = 1 << 26  # bytes


class _Index(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")

    weight_map: dict[str, str]


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


def read_state(path: Path, wanted: Callable[[str], bool] = lambda _: True) -> Tensors:
    """The tensors of a folder of Hugging Face or of a file, whose names are `wanted`.

    A file may hold them as `model`, as LAVIS and BLIP save them.

    Raises:
        CheckpointError: it does not exist, is damaged, or holds no state dict.
    """
    if not path.is_dir():
        return {name: tensor for name, tensor in _load_file(path).items() if wanted(name)}
    tensors: Tensors = {}
    for file in weight_files(path):
        tensors |= {name: tensor for name, tensor in _load_file(file).items() if wanted(name)}
    return tensors


def _load_file(path: Path) -> Tensors:
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist")
    state = load_tensors(path) if path.suffix == ".safetensors" else load_pickled(path)
    if isinstance(state, dict) and isinstance(state.get("model"), dict):
        state = state["model"]
    named = isinstance(state, dict) and state and all(isinstance(name, str) for name in state)
    if not named or not all(isinstance(tensor, Tensor) for tensor in state.values()):
        raise CheckpointError(f"{path} holds no state dict, that is, no names with a tensor each")
    return state
