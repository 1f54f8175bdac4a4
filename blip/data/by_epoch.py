"""Transforms of training that change with the epoch, for images that grow in the course of a run.

An epoch's transform depends on its number alone: any worker gives a sample the size of the sample's own epoch.
"""

from collections.abc import Callable, Mapping

from PIL import Image
from torch import Tensor

from blip.errors import InputError

Transform = Callable[[Image.Image], Tensor]  # PIL RGB to (3, S, S)


class ByEpoch:
    """Several transforms, each of which begins with an epoch."""

    def __init__(self, transforms: Mapping[int, Transform]):
        """`transforms`: by the epoch that each begins with, counted from 0; the first one begins with 0."""
        if not transforms or min(transforms) != 0:
            raise InputError(f"transforms begin with the epochs {sorted(transforms)}; the first one has to be 0")
        self.transforms = dict(transforms)

    def at(self, epoch: int) -> Transform:
        """The transform of an epoch."""
        return self.transforms[max(begin for begin in self.transforms if begin <= epoch)]


TrainTransform = Transform | ByEpoch


def at_epoch(transform: TrainTransform, epoch: int) -> Transform:
    """The transform of an epoch: that of `ByEpoch`, or the only one."""
    return transform.at(epoch) if isinstance(transform, ByEpoch) else transform
