"""How many training samples one core reads a second: whole images by PIL, crops alone, and shards of resized images.

    python benchmarks/loader.py [--images FOLDER] [--image_size 224]

Each side is a loader with one worker; the worker and the process that takes its batches share one core. `theirs` is the
pipeline `pil` as it was: RandAugment(2, 5), float32 out, in a worker that does not keep the memory of images. `ours` is
`fast` for a run on a GPU: uint8 out, the operations drawn and left to the device. `shards` is the same from shards of
512 pixels, `stream` in the order of a stream. For `ours_on_a_cpu` the worker does RandAugment and the main process
normalises. Without --images, photographs of 2000 x 1600 pixels are made up. `ratio` is theirs / ours, `ratio_shards`
theirs / shards.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from PIL import Image

from benchmarks import harness
from blip.data import workers
from blip.data.augment import prepared
from blip.data.batches import collate
from blip.data.crops import Crop, FractionalBox, open_crop
from blip.data.images import find_images, open_image
from blip.data.loader import data_loader
from blip.data.order import EpochOrder
from blip.data.pairs import PairDataset, read_pairs
from blip.data.sources import source_of
from blip.data.stream import StreamDataset, StreamOrder
from blip.data.training_images import FastImages, TrainingImages, WholeImages, resized
from blip.data.transforms import train_transform
from blip.data.webdataset import open_shards
from blip.files import json_text
from blip.shards.resize import ImageForm
from blip.shards.write import write_shards

CPU = torch.device("cpu")
SIZES = {"base": (2000, 1600, 24, 8, 5), "tiny": (160, 128, 8, 2, 3)}  # width, height, images, batch, batches a turn


def photograph(width: int, height: int, seed: int) -> Image.Image:
    """Blobs of many sizes and the noise of a sensor: as JPEG some 1.3 bits a pixel."""
    draw = np.random.default_rng(seed)
    total = draw.normal(0, 2, (height, width, 1))
    for cell, weight in ((256, 0.4), (64, 0.3), (24, 0.2), (8, 0.1)):
        small = draw.integers(0, 255, (max(2, height // cell), max(2, width // cell), 3), dtype=np.uint8)
        total = total + weight * np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))
    return Image.fromarray(total.clip(0, 255).astype(np.uint8))


def make_set(args: argparse.Namespace, folder: Path) -> Path:
    """An annotation file of the given images, or of photographs that are made up."""
    width, height, count, _, _ = SIZES[args.size]
    folder.mkdir()
    paths = find_images([args.images]) if args.images else []
    for n in range(0 if paths else count):
        paths.append(folder / f"{n}.jpg")
        photograph(width, height, n).save(paths[-1], quality=90)
    records = [{"image": str(Path(path).resolve()), "caption": "a photograph of blobs"} for path in paths]
    (folder / "set.json").write_text(json_text(records))
    return folder / "set.json"


def encode(text: str) -> list[int]:
    return [1, 2, 3, 4]


class Side:
    """A loader of one worker; `turn` measures the seconds of a sample."""

    def __init__(
        self,
        source: Path,
        images: TrainingImages,
        args: argparse.Namespace,
        *,
        stream: bool = False,
        prepares: bool = False,
        keeps_memory: bool = True,
    ):
        _, _, _, self.batch, self.batches = SIZES[args.size]
        if stream:
            order = StreamOrder(open_shards([str(source)]), self.batch, 0, lanes=1)
            self.data: Any = StreamDataset(order, encode, images)
        else:
            pairs = read_pairs([str(source)])
            order = EpochOrder(len(pairs), 0)
            self.data = PairDataset(pairs, order, encode, transform=images, seed=0)
        self.stream, self.prepares, self.keeps_memory, self.epoch = stream, prepares, keeps_memory, 0

    def loaded(self) -> Iterator[Any]:
        self.epoch += 1
        if self.stream:
            return iter(data_loader(self.data, None, num_workers=1))
        count = len(self.data)
        keys = [[(self.epoch, (n * self.batch + i) % count) for i in range(self.batch)] for n in range(self.batches)]
        return iter(data_loader(self.data, keys, collate, num_workers=1))

    def turn(self) -> float:
        """Seconds of a sample between the first batch and the last."""
        with patch.object(workers, "keep_memory", workers.keep_memory if self.keeps_memory else lambda: False):
            batches = prepared(self.loaded(), CPU, 5) if self.prepares else self.loaded()
            next(batches)
        begin = time.perf_counter()
        for _ in range(self.batches - 1):
            next(batches)
        return (time.perf_counter() - begin) / (self.batch * (self.batches - 1))


def agreement(path: Path, small: Path, side: int) -> dict[str, dict[str, float]]:
    """Of the same crops, without RandAugment: how far what is read lies from the pixels of the whole images.

    `fast` rounds the edges of crops to pixels of the decoded size, `fast_exact_edges` does not: by PIL.
    """
    whole, shards = read_pairs([str(path)]), read_pairs([str(small)])
    ways = {"fast": (whole, resized), "fast_exact_edges": (whole, by_pil), "shards": (shards, resized)}
    errors: dict[str, list[np.ndarray]] = {name: [] for name in ways}
    for i in range(min(len(whole), 24)):
        image, crop = open_image(whole.image_path(i)), Crop.draw((0.2, 1.0), np.random.default_rng(i))
        expected = np.asarray(image.crop(crop.box(image.size)).resize((side, side), Image.Resampling.BICUBIC))
        for name, (pairs, small_of) in ways.items():
            read = small_of(*open_crop(pairs.image_path(i), crop, side), side).expand(3, -1, -1)
            errors[name].append(read.permute(1, 2, 0).numpy().astype(float) - expected)
    return {
        name: {
            "psnr": float(np.mean([10 * np.log10(255**2 / max((e**2).mean(), 1e-9)) for e in all_of])),
            "mean_difference": float(np.mean([np.abs(e).mean() for e in all_of])),
        }
        for name, all_of in errors.items()
    }


def by_pil(image: Image.Image, box: FractionalBox, side: int) -> torch.Tensor:
    """As `resized`, with parts of pixels at the edges."""
    values = np.array(image.resize((side, side), Image.Resampling.BICUBIC, box=box))
    return torch.from_numpy(values[None] if values.ndim == 2 else values.transpose(2, 0, 1))


def main() -> None:
    parser = harness.options(__doc__, repeats=9)
    parser.add_argument("--images", type=Path, help="a folder of images in place of those that are made up")
    parser.add_argument("--image_size", type=int, default=224)
    args = parser.parse_args()
    args.threads = 1
    harness.start(args)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    side = args.image_size if args.size == "base" else 24
    with tempfile.TemporaryDirectory() as place:
        path = make_set(args, Path(place) / "set")
        small = Path(place) / "shards"
        form = ImageForm(512 if args.size == "base" else 48)
        stored = write_shards([source_of(str(path))], small, form, num_workers=0)
        fast = FastImages(side, augment_here=False)
        sides = {
            "theirs": Side(path, WholeImages(train_transform(side)), args, keeps_memory=False),
            "ours": Side(path, fast, args),
            "ours_on_a_cpu": Side(path, FastImages(side), args, prepares=True),
            "shards": Side(small / "annotations.jsonl", fast, args),
            "stream": Side(small, fast, args, stream=True),
        }
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        for turn in range(args.repeats + 1):
            for name, one in sides.items():
                taken = one.turn()
                if turn:
                    seconds[name].append(taken)
        median = harness.medians(seconds)
        result = {
            "ratio": median["theirs"] / median["ours"],
            "ratio_cpu": median["theirs"] / median["ours_on_a_cpu"],
            "ratio_shards": median["theirs"] / median["shards"],
            "ratio_stream": median["theirs"] / median["stream"],
            "samples_a_second": {name: 1 / value for name, value in median.items()},
            "milliseconds_a_sample": {name: 1e3 * value for name, value in median.items()},
            "spread": harness.spread(seconds),
            "agreement": agreement(path, small, side),
            "bits_of_a_pixel": bits_of_a_pixel(path),
            "kilobytes_of_an_image": {
                "original": float(np.mean([Path(one).stat().st_size for one in images_in(path)]) / 1e3),
                "shards": stored.bytes / stored.images / 1e3,
            },
        }  # fmt: skip
    harness.report(args, "loader", result)


def bits_of_a_pixel(path: Path) -> float:
    """What the speed of decoding depends on beside the size."""
    sizes = [open_image(one).size for one in images_in(path)]
    return 8 * sum(Path(one).stat().st_size for one in images_in(path)) / sum(w * h for w, h in sizes)


def images_in(path: Path) -> list[str]:
    pairs = read_pairs([str(path)])
    return [pairs.image_path(i) for i in range(len(pairs))]


if __name__ == "__main__":
    main()
