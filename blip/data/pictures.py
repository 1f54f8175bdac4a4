"""The pictures of an item: from the paths and references of a record to images, and to the pixels of a sample.

A record has `image`, one path, or `images`, several. In place of a path there may be a reference that means several
pictures, such as `clip.mp4#frames=8`: the kinds in KINDS know theirs, and open them. Every other path is one image.

    open_pictures(paths, limits)         -> images, 8-bit RGB: all pictures of an item, in order
    eval_pixels(paths, transform, ...)   -> (3, S, S) of one picture, (F, 3, S, S) of several
    read_item, finish_item               -> the same of training, where all pictures of an item get the same crop,
                                            flip and operations

A kind adds a line to KINDS: which references are its own, and a function that opens one. How many pictures it gives
where the reference does not say is in the `ImageLimits` that it is called with (`frames`, `slices`), as is
`max_pictures`: of an item that has more, that many are taken evenly, the first and the last among them.

S: side of a picture in pixels, F: pictures of an item.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from blip.data.batches import Pixels
from blip.data.frame_choice import is_video
from blip.data.image_bytes import LIMITS, ImageLimits, UnreadableImage
from blip.data.images import Source, open_image
from blip.data.scans.volumes import is_volume, open_slices
from blip.data.training_images import TrainingImages, Transform
from blip.data.video import open_frames


@dataclass(frozen=True)
class Kind:
    """References that mean several pictures.

    Args:
        covers: whether a path or reference is of this kind, from its name and whether it is a folder; opens none.
        open: its pictures in order, 8-bit RGB, one at least; UnreadableImage says why there are none.
    """

    covers: Callable[[str], bool]
    open: Callable[[str, ImageLimits], list[Image.Image]]


KINDS: dict[str, Kind] = {"video": Kind(is_video, open_frames), "volume": Kind(is_volume, open_slices)}


def pictures_of(reference: Any) -> Kind | None:
    """The kind of a reference, text or a path, that means several pictures; None: it is one ordinary image."""
    if not isinstance(reference, str | Path):
        return None
    return next((kind for kind in KINDS.values() if kind.covers(str(reference))), None)


def evenly(count: int, most: int) -> list[int]:
    """Which of `count` pictures are taken where `most` may be: all, or `most` spread evenly from the first to the last.

    Of several the first and the last are taken; where one may be, it is the first.
    """
    if count <= most:
        return list(range(count))
    return [round(i * (count - 1) / (most - 1)) for i in range(most)] if most > 1 else [0]


def sources_of(paths: Sequence[Source], limits: ImageLimits = LIMITS) -> list[Source]:
    """The pictures of an item as `open_image` takes them: those of references are opened, others are left as they are.

    Raises:
        UnreadableImage: a reference that cannot be opened, or no picture at all.
    """
    sources: list[Source] = []
    for path in paths:
        kind = pictures_of(path)
        sources += [path] if kind is None else kind.open(str(path), limits)
    if not sources:
        raise UnreadableImage(str(paths[0]) if paths else "(no path)", "holds no picture")
    return [sources[i] for i in evenly(len(sources), limits.max_pictures)]


def open_pictures(paths: Sequence[Source], limits: ImageLimits = LIMITS) -> list[Image.Image]:
    """All pictures of an item, 8-bit RGB, upright. UnreadableImage where one of them cannot be read."""
    return [open_image(source, limits) for source in sources_of(paths, limits)]


# ---- pixels of a sample ----------------------------------------------------------------------------------------------


def eval_pixels(paths: Sequence[Source], transform: Transform, limits: ImageLimits = LIMITS) -> Tensor:
    """The pixels of an item of evaluation: (3, S, S) of one picture, (F, 3, S, S) of several; errors as above."""
    pixels = [transform(image) for image in open_pictures(paths, limits)]
    return pixels[0] if len(pixels) == 1 else torch.stack(pixels)


def read_item(images: TrainingImages, paths: Sequence[Source], limits: ImageLimits, *key: int) -> list[Any]:
    """What `finish_item` takes, of each picture of an item; `key` as in `TrainingImages.read`, the same for all."""
    return [images.read(source, *key) for source in sources_of(paths, limits)]


def finish_item(images: TrainingImages, read: list[Any]) -> Pixels:
    """The pixels of an item: what is random is drawn once, and is the same for all its pictures."""
    if len(read) == 1:
        return images.finish(read[0])
    state, finished = torch.get_rng_state(), []
    for one in read:
        torch.set_rng_state(state)
        finished.append(images.finish(one))
    return Pixels(torch.stack([one.image for one in finished]), finished[0].operations)
