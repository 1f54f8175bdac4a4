"""The package's own file format: a folder with weights, what they are, and the tokenizer that goes with them.

model.safetensors    every tensor once, by the name that the module gives it
model.json           format version, task, sizes; enough to build the model
tokenizer.json       in the format of `tokenizers`
"""

import json
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from blip.errors import BlipError
from blip.files import partial_path, rename_whole, write_whole

FORMAT_VERSION = 1
WEIGHTS, INFO, TOKENIZER = "model.safetensors", "model.json", "tokenizer.json"


class CheckpointError(BlipError):
    """A checkpoint that cannot be used; the message names it, the reason and what to do."""


def save_weights(folder: str | Path, tensors: dict[str, Tensor], info: dict) -> None:
    """Writes `model.safetensors` and `model.json` into `folder` and flushes both to disk.

    `info` names at least `task`; the format version is added.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_tensors({name: t.detach().contiguous() for name, t in tensors.items()}, folder / WEIGHTS)
    write_whole(folder / INFO, json.dumps({**info, "format_version": FORMAT_VERSION}, indent=1) + "\n")


def save_tensors(tensors: dict[str, Tensor], path: Path) -> None:
    """A safetensors file, written beside its place and renamed when it is on disk."""
    partial = partial_path(path)
    try:
        mode = _usual_mode(partial)
        save_file(tensors, partial, {"format": "pt"})
        partial.chmod(mode)  # safetensors lets the owner alone read its files
        rename_whole(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _usual_mode(path: Path) -> int:
    """The permissions of a new file here, as the umask sets them."""
    path.write_bytes(b"")
    return stat.S_IMODE(path.stat().st_mode)


@contextmanager
def disk_errors(what: str, place: Path, hint: str = "") -> Iterator[None]:
    """Within this block errors of writing become a CheckpointError; libraries raise different ones for a full disk."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"{what} could not be written to {place}: {error}. Is the disk full?{hint}") from error


def load_weights(folder: str | Path) -> tuple[dict[str, Tensor], dict]:
    """Reads what `save_weights` wrote: (tensors on the CPU, info)."""
    folder = Path(folder)
    for name in (WEIGHTS, INFO):
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder} is no checkpoint of ours: it holds no {name}")
    try:
        info = json.loads((folder / INFO).read_text())
        version = int(info["format_version"])
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{folder / INFO} is damaged: {error}") from error
    if version > FORMAT_VERSION:
        raise CheckpointError(
            f"{folder} was written by a newer blip (format {version}, this one reads {FORMAT_VERSION}): update blip"
        )
    try:
        return load_file(folder / WEIGHTS), info
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{folder / WEIGHTS} is damaged or cut short: {error}") from error


def find_tokenizer(*checkpoints: str | Path) -> Path:
    """The tokenizer file of the first checkpoint that has one: ours, or the `vocab.txt` of a Hugging Face folder.

    Raises:
        CheckpointError: none has one.
    """
    for checkpoint in checkpoints:
        for name in (TOKENIZER, "vocab.txt"):
            if (Path(checkpoint) / name).is_file():
                return Path(checkpoint) / name
    raise CheckpointError(
        f"{checkpoints[0]} comes without a tokenizer: set tokenizer; for the released models it is the vocab.txt of "
        "bert-base-uncased"
    )


def unique_state(module: nn.Module) -> dict[str, Tensor]:
    """Every parameter and persistent buffer once, by its first name: shared weights are not written twice."""
    persistent = module.state_dict(keep_vars=True)
    seen: set[int] = set()
    unique = {}
    for name, tensor in persistent.items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            unique[name] = tensor.detach()
    return unique


def load_strict(module: nn.Module, tensors: dict[str, Tensor], what: str) -> None:
    """Copies `tensors` into `module`; an error lists every tensor that is missing, left over or of another shape.

    `what` names the source in that error.
    """
    expected = unique_state(module)
    missing = sorted(expected.keys() - tensors.keys())
    unknown = sorted(tensors.keys() - expected.keys())
    misshapen = [
        f"{name} is {tuple(tensors[name].shape)}, the model needs {tuple(expected[name].shape)}"
        for name in sorted(expected.keys() & tensors.keys())
        if tensors[name].shape != expected[name].shape
    ]
    if missing or unknown or misshapen:
        parts = [("missing", missing), ("not known", unknown), ("wrong shape", misshapen)]
        lines = [f"  {title} ({len(names)}): {', '.join(names[:12])}" for title, names in parts if names]
        raise CheckpointError(f"{what} does not fit the model:\n" + "\n".join(lines))
    for name, tensor in expected.items():
        tensor.copy_(tensors[name])
