"""Frozen parts of BLIP-2 that a checkpoint names instead of holding: which file they are from, and a check on loading.

`model.json` then has `frozen: {"image_encoder": {"name": ..., "fingerprint": ...}}`, and `model.safetensors` has of the
image encoder the final norm alone, which is trained in any case, and embeddings of pictures if there are any.
"""

from pathlib import Path
from typing import Any

from blip.checkpoints import places
from blip.checkpoints.fingerprint import fingerprint_of
from blip.checkpoints.format import CheckpointError
from blip.checkpoints.names import Tensors
from blip.checkpoints.towers import read_tower

PART = "image_encoder."
TRAINED = (f"{PART}norm.", f"{PART}picture_embeddings.")


def without_tower(tensors: Tensors) -> Tensors:
    """The tensors of a model without those of its frozen image encoder: what is trained of it stays."""
    return {name: t for name, t in tensors.items() if not name.startswith(PART) or name.startswith(TRAINED)}


def with_tower(tensors: Tensors, info: dict[str, Any], path: Path) -> Tensors:
    """The tensors of a checkpoint with those of the image encoder that it names; as they are where it names none.

    Raises:
        CheckpointError: the file of the image encoder is absent, or is another one.
    """
    entry = (info.get("frozen") or {}).get("image_encoder")
    if entry is None:
        return tensors
    place = named_place(entry["name"], path)
    if place is None:
        raise CheckpointError(
            f"{path} was trained with a frozen image encoder from {entry['name']}, which does not exist: restore it "
            "there, or set its name in `frozen` of model.json to where it is now"
        )
    tower, _ = read_tower(place, heads=info["image_encoder"]["heads"])
    if (found := fingerprint_of(tower.values())) != entry["fingerprint"]:
        raise CheckpointError(
            f"{path} was trained with a frozen image encoder {entry['fingerprint']}, and {entry['name']} is now "
            f"{found}: restore the file that it was"
        )
    return {**{f"{PART}{name}": tensor for name, tensor in tower.items() if not name.startswith("norm.")}, **tensors}


def named_place(name: str, path: Path) -> Path | None:
    """The path of a name: that of the hub or an address, or one relative to the working directory or the checkpoint."""
    for place in (Path(name), path / name):
        if place.exists():
            return place
    return places.local(name) if places.is_remote(name) else None
