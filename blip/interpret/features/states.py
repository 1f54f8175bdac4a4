"""States from shards that `blip activations` wrote, as rows: one a record, or one a token without padding.

Shapes: n records of a shard, T tokens of the longest, H heads, d head width, D width, N rows.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from blip.files import ReadError, read_json
from blip.interpret.activation_shards import (
    INDEX,
    ActivationError,
    has_other_rows,
    images_of_records,
    is_index,
    read_shards,
)

POOLS = ("mean", "first")
HELD_OUT = 5  # every fifth image tests what the others train


@dataclass
class Tokens:
    """N tokens of records: their states (N, D) by point, and the record, its image and the place in it (N,) of each.

    An image is the number of the first record that has it.
    """

    states: dict[str, Tensor]
    records: np.ndarray
    images: np.ndarray
    places: np.ndarray

    def held_out(self) -> Tensor:
        """Which tokens (N,) test what the others train: those of every fifth image; of one image, every fifth record.

        Records of one image resemble each other: those that test share theirs with none that trains.

        Raises:
            ActivationError: there is one record.
        """
        groups = self.images if len(np.unique(self.images)) > 1 else self.records
        distinct, numbers = np.unique(groups, return_inverse=True)
        if len(distinct) < 2:
            raise ActivationError("the states are of one record: one of five is held out, so it takes two or more")
        return torch.from_numpy(numbers % HELD_OUT == 0)


class Cached:
    """The activations in a folder.

    Args:
        folder: what `blip activations --out` wrote.

    Raises:
        ActivationError: there are none.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        if not is_index(self.folder):
            raise ActivationError(f"{folder} holds no activations: write them with blip activations --out {folder}")
        try:
            self.about: dict[str, Any] = read_json(self.folder / INDEX, dict[str, Any])
        except ReadError as error:
            raise ActivationError(f"{error}: make the activations again") from None
        if not any(shard.get("file") for shard in self.about["shards"]):
            raise ActivationError(f"{folder} holds no whole shard: run blip activations again, which continues")

    def matching(self, patterns: Sequence[str]) -> list[str]:
        """The points of these shards that match the patterns, all without patterns; patterns of attention never.

        Raises:
            ActivationError: a pattern matches none.
        """
        known = [point for point in self.about["points"] if not point.endswith(".pattern")]
        for pattern in patterns:
            if not any(fnmatchcase(point, pattern) for point in known):
                raise ActivationError(
                    f"{self.folder} has no states at {pattern!r}; it has {', '.join(known) or 'none'}"
                )
        return [point for point in known if not patterns or any(fnmatchcase(point, p) for p in patterns)]

    def pooled(self, points: Sequence[str], pool: str = "mean") -> tuple[dict[str, np.ndarray], list[int]]:
        """A row (records, D) for each record and point, and the numbers of the records in the data.

        Heads lie side by side in a row: z (H, T, d) gives H*d numbers. `pool` is the mean over tokens without padding,
        or the first token; shards that were pooled when they were written stay as they are.
        """
        parts: dict[str, list[Tensor]] = {point: [] for point in points}
        numbers: list[int] = []
        for records, tensors, real in self._shards(points):
            numbers += records
            for point in points:
                x = _states(tensors[point])
                if x.dim() == 3:
                    mask = real[point][..., None]
                    x = x[:, 0] if pool == "first" else (x * mask).sum(dim=1) / mask.sum(dim=1)
                parts[point].append(x)
        return {point: torch.cat(found).numpy() for point, found in parts.items()}, numbers

    def tokens(self, points: Sequence[str]) -> Tokens:
        """Every token that is no padding; of shards that were written with `--pool first` the first ones.

        Raises:
            ActivationError: the shards hold means over tokens, or points of different tokens.
        """
        if self.about.get("pool") == "mean":
            raise ActivationError(f"{self.folder} holds means over tokens: write the activations with --pool all")
        parts: dict[str, list[Tensor]] = {point: [] for point in points}
        rows, places = [], []
        for numbers, tensors, real in self._shards(points):
            masks = [real[point] for point in points]
            if any(mask.shape != masks[0].shape for mask in masks):
                raise ActivationError(f"{', '.join(points)} have different tokens: read them one by one")
            row, place = masks[0].nonzero(as_tuple=True)
            rows.append(np.asarray(numbers)[row.numpy()])
            places.append(place.numpy())
            for point in points:
                x = _states(tensors[point])
                parts[point].append((x if x.dim() == 3 else x[:, None])[masks[0]])
        states = {point: torch.cat(found) for point, found in parts.items()}
        image_of, records = images_of_records(self.folder), np.concatenate(rows)
        images = np.array([image_of[record] for record in records.tolist()])
        return Tokens(states, records, images, np.concatenate(places))

    def _shards(self, points: Sequence[str]) -> Iterator[tuple[list[int], dict[str, Tensor], dict[str, Tensor]]]:
        """(numbers of records, tensors, real tokens (n, T) by point) of each shard."""
        for records, tensors in read_shards(self.folder):
            yield records, tensors, {point: self._real(point, tensors) for point in points}

    def _real(self, point: str, tensors: dict[str, Tensor]) -> Tensor:
        x = _states(tensors[point])
        tokens = x.shape[1] if x.dim() == 3 else 1
        lengths = tensors.get("answer_lengths" if point.startswith("decoder.") else "lengths", tensors.get("lengths"))
        if lengths is None or tokens == 1 or point.startswith("image."):
            return torch.ones(len(x), tokens, dtype=torch.bool)
        if has_other_rows(point):
            return x.ne(0).any(dim=-1)
        return torch.arange(tokens) < lengths[:, None]


def _states(x: Tensor) -> Tensor:
    """(n, D) or (n, T, D) in float32; heads (n, H, T, d) side by side."""
    return (x.transpose(1, 2).flatten(2) if x.dim() == 4 else x).float()
