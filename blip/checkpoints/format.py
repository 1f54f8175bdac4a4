"""The package's own file format: a folder with weights, what they are, and the tokenizer that goes with them.

model.safetensors    every tensor once, by the name that the module gives it
model.json           format version, task, sizes; enough to build the model
tokenizer.json       in the format of `tokenizers`
"""

import json
import pickle
import re
import stat
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from blip.checkpoints.info import FORMAT_VERSION, CheckpointError, read_info
from blip.files import open_regular, partial_path, rename_whole, write_whole

WEIGHTS, INFO, TOKENIZER = "model.safetensors", "model.json", "tokenizer.json"
TOKENIZERS = (TOKENIZER, "vocab.txt")  # of our folders; of those of Hugging Face, where they have only this
FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
WHOLE_NUMBERS = (torch.int64, torch.int32)
# the only tensors that are counts or ids, by our names and by foreign ones
COUNTS = re.compile(r"(^|\.)(position_ids|queue_ptr|ptr_queue|idx_queue)$|^queue\.(pointer|image_ids|caption_ids)$")


# ---- writing ---------------------------------------------------------------------------------------------------------


def save_weights(folder: str | Path, tensors: dict[str, Tensor], info: dict, *, flush: bool = True) -> None:
    """Writes `model.safetensors` and `model.json` into `folder`.

    Args:
        info: names at least `task`; the format version is added.
        flush: wait until both are on disk; not needed within `files.whole_folder`, which waits for all its files.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_tensors({name: t.detach().contiguous() for name, t in tensors.items()}, folder / WEIGHTS, flush=flush)
    write_info(folder / INFO, {**info, "format_version": FORMAT_VERSION}, flush=flush)


def write_info(path: Path, info: dict, *, flush: bool = True) -> None:
    """A JSON file of a checkpoint; `flush` as in `save_weights`."""
    text = json.dumps(info, indent=1) + "\n"
    if flush:
        write_whole(path, text)
    else:
        path.write_text(text, encoding="utf-8")


def save_tensors(tensors: dict[str, Tensor], path: Path, *, flush: bool = True) -> None:
    """A safetensors file, written beside its place and renamed when it is on disk."""
    partial = partial_path(path)
    try:
        mode = _usual_mode(partial)
        save_file(tensors, partial, {"format": "pt"})
        partial.chmod(mode)  # safetensors lets the owner alone read its files
        if flush:
            rename_whole(partial, path)
        else:
            partial.replace(path)
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


# ---- reading ---------------------------------------------------------------------------------------------------------


def load_weights(folder: str | Path) -> tuple[dict[str, Tensor], dict]:
    """Reads what `save_weights` wrote: (tensors on the CPU, info).

    Raises:
        CheckpointError: the folder holds no checkpoint, a damaged one, or one of a newer version.
    """
    folder = Path(folder)
    for name in (WEIGHTS, INFO):
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder} is no checkpoint of ours: it holds no {name}")
    info = read_info(folder / INFO)
    tensors = load_tensors(folder / WEIGHTS)
    check_numbers(tensors, folder / WEIGHTS)
    return tensors, info


def load_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file; CheckpointError where it cannot be read."""
    try:
        with open_regular(path):
            return load_file(path)
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:  # the last three: types of numbers
        raise CheckpointError(f"{path} is damaged or cut short: {error}") from error


def check_numbers(tensors: dict[str, Tensor], path: str | Path) -> None:
    """CheckpointError unless every weight is a finite number in single precision, in which models compute, and every
    count or id a whole number."""
    for name, tensor in tensors.items():
        allowed = WHOLE_NUMBERS if COUNTS.search(name) else FLOATS
        if tensor.dtype not in allowed:
            kinds = ", ".join(str(kind).removeprefix("torch.") for kind in allowed)
            raise CheckpointError(f"{path}: {name} is of type {str(tensor.dtype).removeprefix('torch.')}, not {kinds}")
        if tensor.is_floating_point() and not _finite(tensor):
            bad = int((~tensor.float().isfinite()).sum())
            raise CheckpointError(
                f"{path}: {name} holds {bad:,} numbers that are infinite or not a number: the training that wrote it "
                "had failed, or the file is damaged; take an earlier checkpoint"
            )


def _finite(tensor: Tensor) -> bool:
    # a sum is finite only if all its terms are; it may overflow, and each term is looked at only then
    single = tensor.float()  # of double precision, numbers above 3.4e38 become infinite
    return bool(single.sum().isfinite()) or bool(single.isfinite().all())


def load_pickled(path: Path, or_else: str = "is no file of PyTorch weights, or ") -> Any:
    """The content of a file that `torch.save` wrote, on the CPU. No code in it is run.

    Args:
        or_else: what a file that cannot be read may be instead, for messages.

    Raises:
        CheckpointError: it is of another kind or damaged, or holds objects other than tensors, numbers and text.
    """
    try:
        with open_regular(path):
            sizes = _stored_sizes(path)
        content = torch.load(path, "cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # torch's own message advises to load the file regardless
        raise CheckpointError(
            f"{path} {or_else}holds objects other than tensors, which could run code; nothing was loaded from it"
        ) from error
    except Exception as error:  # a broken file raises nearly every other kind
        raise CheckpointError(f"{path} {or_else}is damaged or cut short") from error
    if not all(_is_plain(tensor, sizes) for tensor in _tensors_in(content)):
        raise CheckpointError(f"{path} is damaged: a tensor in it is larger than what is stored of it, or is sparse")
    return content


def _stored_sizes(path: Path) -> set[int]:
    """The bytes of each record of a zip file; of another file, none. ValueError for compressed records.

    `torch.save` compresses nothing: a record that is compressed may be a million times larger than the file.
    """
    if not zipfile.is_zipfile(path):
        return set()
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
    if any(record.compress_type != zipfile.ZIP_STORED for record in records):
        raise ValueError("compressed records")
    return {record.file_size for record in records}


def _tensors_in(content: Any) -> Iterator[Tensor]:
    """The tensors at any depth of dictionaries and lists, which may hold themselves."""
    waiting, seen = [content], set()
    while waiting:
        one = waiting.pop()
        if isinstance(one, Tensor):
            yield one
        elif isinstance(one, dict | list | tuple) and id(one) not in seen:
            seen.add(id(one))
            waiting += one.values() if isinstance(one, dict) else one


def _is_plain(tensor: Tensor, sizes: set[int]) -> bool:
    """Whether all of a tensor is stored: of one that is sparse, or repeats its numbers by strides, it is not."""
    if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
        return False
    stored = tensor.untyped_storage().nbytes()
    return tensor.numel() * tensor.itemsize <= stored and (not sizes or not stored or stored in sizes)


def find_tokenizer(*checkpoints: str | Path) -> Path:
    """The tokenizer file of the first checkpoint that has one: ours, or the `vocab.txt` of a Hugging Face folder.

    Raises:
        CheckpointError: none has one.
    """
    for checkpoint in checkpoints:
        for name in TOKENIZERS:
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
    """Copies `tensors` into `module`; CheckpointError as in `check_fit`."""
    check_fit(module, tensors, what)
    for name, tensor in unique_state(module).items():
        tensor.copy_(tensors[name])


def check_fit(module: nn.Module, tensors: dict[str, Tensor], what: str) -> None:
    """CheckpointError that lists every tensor that is missing, left over or of another shape.

    Args:
        module: may be on the device "meta", so that it takes no memory.
        what: names the source of `tensors`.
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
