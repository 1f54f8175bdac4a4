"""The data that a run names: how its files are read, the commits of data sets of the Hugging Face hub, and how the
images of training become pixels."""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch

from blip import distributed
from blip.config import ModelConfig, WeightedFile, load_run_config
from blip.data.augment import prepared
from blip.data.hub import pinned
from blip.data.image_bytes import ImageLimits
from blip.data.sets.studies import StudyOptions
from blip.data.training_images import ByEpoch, FastImages, TrainingImages, WholeImages
from blip.data.transforms import train_transform
from blip.hub.names import is_hub_name

Config = TypeVar("Config", bound=ModelConfig)
OPTIONS = ("train_file", "val_file", "test_file")


def entries(files: Sequence[str | WeightedFile]) -> list[str | Mapping[str, Any]]:
    """Files of an option, each a path or a path and what is other than for the rest."""
    return [entry if isinstance(entry, str) else entry.model_dump() for entry in files]


def read_as(config: ModelConfig, part: str) -> dict[str, Any]:
    """How the files of a part, `train`, `val` or `test`, are read: the options of `read_pairs` and the like."""
    return {
        "image_root": config.image_root,
        "dataset": config.dataset,
        "split": getattr(config, f"{part}_split", ""),
        "columns": config.columns,
        "limit": getattr(config, f"max_{part}_records", None),
        "seed": config.shuffle_records_seed,
        "study": StudyOptions(tuple(config.sections), tuple(config.views), config.priors),
    }


def with_commits(config: Config) -> Config:
    """The configuration whose data sets of the hub are named with their commits, so that `config.yaml` repeats the same
    data; every process has to call this.

    Raises:
        RemoteError: there is no such data set, or it is out of reach.
    """
    given = {name: getattr(config, name) for name in OPTIONS if getattr(config, name, None)}
    if not any(is_hub_name(_path(entry)) for files in given.values() for entry in files):
        return config
    found = distributed.from_main(lambda: {name: [_pinned(entry) for entry in files] for name, files in given.items()})
    return config.model_copy(update=found)


def is_there(entry: str | WeightedFile) -> bool:
    """Whether a file or folder exists; what the hub has is taken to."""
    return is_hub_name(_path(entry)) or os.path.exists(_path(entry))


def _pinned(entry: str | WeightedFile) -> str | WeightedFile:
    if not is_hub_name(_path(entry)):
        return entry
    name = pinned(_path(entry))
    return name if isinstance(entry, str) else entry.model_copy(update={"path": name})


def _path(entry: str | WeightedFile) -> str:
    return entry if isinstance(entry, str) else entry.path


# ---- images of a run -------------------------------------------------------------------------------------------------


def limits_of(config: ModelConfig) -> ImageLimits:
    """What images may cost, how many pictures of an item are read, and how scans are shown."""
    return ImageLimits.of_mb(
        config.max_image_mb,
        max_pictures=config.max_pictures,
        frames=config.frames,
        slices=config.slices,
        window=config.window,
        channels=tuple(config.channels),
    )


def inputs_of(config: ModelConfig) -> dict[str, Any]:
    """The entries of `model.json` that say how texts and images are prepared; none about scans that are shown as their
    own files say, and about as many pictures of an item as usual."""
    scans = {"window": config.window, "channels": list(config.channels)}
    texts = {"max_text_tokens": config.max_text_tokens, "text_cleaning": config.text_cleaning}
    read = {name: getattr(config, name) for name in ("max_pictures", "frames", "slices")}
    others = {name: value for name, value in read.items() if value != ModelConfig.model_fields[name].default}
    return {**texts, **{name: value for name, value in scans.items() if value}, **others}


def training_images(config: ModelConfig, device: torch.device) -> TrainingImages:
    """What reads the images of training, in the size of each epoch; RandAugment is done on a GPU where there is one."""
    sizes = config.image_sizes or {0: config.image_size}
    images = {epoch: _images_of_size(size, config, device) for epoch, size in sizes.items()}
    return ByEpoch(images) if len(images) > 1 else images[0]


def _images_of_size(size: int, config: ModelConfig, device: torch.device) -> WholeImages | FastImages:
    limits = limits_of(config)
    usual: dict[str, Any] = {"horizontal_flip": config.horizontal_flip}
    if config.image_pipeline == "pil":
        return WholeImages(train_transform(size, config.crop_scale, config.randaugment, **usual), limits)
    usual |= {"limits": limits, "augment_here": device.type != "cuda"}
    return FastImages(size, config.crop_scale, config.randaugment, **usual)


def on_device(batches: Iterator[Any], config: ModelConfig, device: torch.device) -> Iterator[Any]:
    """Batches of `training_images` with their images as the model takes them."""
    return prepared(batches, device, config.randaugment[1] if config.randaugment else 0)


def saved_config(checkpoint: Path | None) -> Path | None:
    """The configuration of the run of a checkpoint; None where there is none."""
    path = checkpoint.parent.parent / "config.yaml" if checkpoint else None
    return path if path is not None and path.is_file() else None


def with_pipeline_of_run(config: Config, checkpoint: Path | None) -> Config:
    """The configuration with the `image_pipeline` that a run began with, unless it is set; that of a run of an earlier
    version, whose `config.yaml` has no such key, is `pil`. A new run keeps its own."""
    saved = saved_config(checkpoint)
    if saved is None or "image_pipeline" in config.model_fields_set:
        return config
    return config.model_copy(update={"image_pipeline": load_run_config(saved, type(config)).image_pipeline})
