"""The files of a language model: where they are, which of a repository are needed, and the weights' fingerprint."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from blip.checkpoints.fingerprint import ENDS, combined, digest_of, ends_of
from blip.checkpoints.format import WEIGHTS
from blip.checkpoints.info import CheckpointError
from blip.checkpoints.states import PICKLED, names_of_weights, read_state, weight_files
from blip.errors import InputError
from blip.files import open_regular
from blip.hub import names, repository
from blip.hub.names import HubName

TOKENIZERS = ("tokenizer.json", "vocab.json", "vocab.txt", "spiece.model", "tokenizer.model")  # one of these
SMALL = (
    "config.json", "generation_config.json", *TOKENIZERS, "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "merges.txt", "processor_config.json", "preprocessor_config.json",
)  # fmt: skip


def local_folder(name: str, beside: Path | None = None) -> Path:
    """The folder of a language model, which is fetched unless it is in the cache.

    Raises:
        CheckpointError: there is no such folder, or it holds no model.
        RemoteError: it cannot be fetched.
    """
    if not name:
        raise CheckpointError("the checkpoint names no language model: give language_model, a folder or hub:OWNER/NAME")
    for place in (Path(name), *([beside / name] if beside else [])):
        if place.is_dir():
            if not (place / "config.json").is_file():
                raise CheckpointError(f"language model {place} holds no config.json of transformers")
            return place
    remote = names.parse(name)
    if not isinstance(remote, HubName):
        raise CheckpointError(f"language model {name} does not exist: give a folder of transformers or hub:OWNER/NAME")
    return repository.fetch(remote, language_model_files)


def language_model_files(there: Iterable[str]) -> list[str]:
    """Of the files of a repository, those of its language model or of its BLIP-2, the weights last.

    Raises:
        InputError: it holds none.
    """
    there = set(there)
    weights = names_of_weights(there)
    if not weights or "config.json" not in there:
        raise InputError(
            f"the repository holds no model of transformers: it has no config.json with {WEIGHTS} or {PICKLED}"
        )
    return [name for name in SMALL if name in there] + weights


def revision_of(folder: Path) -> str:
    """The commit of a folder in the cache of the hub, "" of another folder."""
    inside = folder.parent.name == "snapshots" and folder.parent.parent.name.startswith("models--")
    return folder.name if inside else ""


def hub_name(folder: Path) -> str:
    """The name, without its commit, of a folder in the cache of the hub; the path of another folder."""
    if not revision_of(folder):
        return str(folder.resolve())
    return f"hub:{folder.parent.parent.name.removeprefix('models--').replace('--', '/')}"


def fingerprint_of_files(folder: Path, prefix: str = "") -> str:
    """`fingerprint_of` the weights of a folder whose names begin with `prefix`; of safetensors the ends alone are read.

    Raises:
        CheckpointError: it has no weights, or they are damaged.
    """
    digests: set[bytes] = set()
    for path in weight_files(folder):
        if path.suffix == ".safetensors":
            try:
                with open_regular(path), safe_open(path, "pt") as file:
                    digests |= {_digest(file.get_slice(name)) for name in list(file.keys()) if name.startswith(prefix)}
            except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
                raise CheckpointError(f"{path} is damaged or cut short: {error}") from error
        else:
            state = read_state(path, lambda name: name.startswith(prefix))
            digests |= {digest_of(tuple(t.shape), ends_of(t)) for t in state.values()}
    return combined(digests)


def _digest(piece: Any) -> bytes:
    """The digest of a tensor of a safetensors file, of which the rows at its ends are read."""
    shape = tuple(piece.get_shape())
    total = 1
    for size in shape:
        total *= size
    if total <= 2 * ENDS or not shape:
        return digest_of(shape, ends_of(piece[...] if not shape else piece[:]))
    rows = -(-ENDS // (total // shape[0]))
    if 2 * rows >= shape[0]:
        return digest_of(shape, ends_of(piece[:]))
    return digest_of(shape, [piece[:rows].reshape(-1)[:ENDS], piece[shape[0] - rows :].reshape(-1)[-ENDS:]])
