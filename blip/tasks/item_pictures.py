"""How many pictures the items of a run have: for the costs that a dry run tells, and a note on those left out."""

import itertools
from dataclasses import replace
from functools import lru_cache
from typing import Any

from blip import distributed
from blip.config import ModelConfig
from blip.console.bars import LastingConsole
from blip.data.dialogues import Dialogues
from blip.data.image_bytes import ImageLimits
from blip.data.pairs import Pairs
from blip.data.pictures import pictures_of, sources_of
from blip.data.places import find_records
from blip.data.questions import Questions
from blip.data.sets.studies import StudyOptions
from blip.data.sources import source_of
from blip.errors import BlipError, printable
from blip.files import json_text, parse_json
from blip.hub.names import is_hub_name
from blip.tasks.data_options import entries, limits_of, read_as

COUNTED = 1000  # records at the beginning of each file


def pictures_of_run(config: ModelConfig) -> int:
    """The most pictures of an item among the first records of the training files; 1 where these cannot be read.

    Of each kind of references that mean several pictures one is opened. Nothing is downloaded.
    """
    options = {**read_as(config, "train"), "limit": None, "seed": None}
    study = replace(options.pop("study"), silent=True)  # the run, or the dry run, reads the files and says it
    return _most(json_text([entries(config.train_file), options], indent=None), study, limits_of(config))


@lru_cache(maxsize=8)
def _most(asked: str, study: StudyOptions, limits: ImageLimits) -> int:
    files, options = parse_json(asked.encode(), list[Any], "the options of a run")
    most = 1
    for entry in files:
        if is_hub_name(source_of(entry).path):
            continue
        try:
            for record in itertools.islice(find_records(entry, study=study, **options), COUNTED):
                most = max(most, *(_pictures(item, limits) for item in record.items))
        except (BlipError, OSError):  # a dry run names it where it counts the records
            continue
    return min(most, limits.max_pictures)


def _pictures(paths: tuple[str, ...], limits: ImageLimits) -> int:
    return sum(_of_reference(path, limits) if pictures_of(path) else 1 for path in paths)


@lru_cache(maxsize=COUNTED)
def _of_reference(path: str, limits: ImageLimits) -> int:
    try:
        return len(sources_of([path], limits))
    except BlipError:
        return 1


def shape_of_images(config: ModelConfig, pictures: int) -> tuple[int, ...]:
    """Of a batch of images: (B, 3, S, S), or (B, F, 3, S, S) of `pictures` each."""
    several = () if pictures == 1 else (pictures,)
    return config.batch_size, *several, 3, config.image_size, config.image_size


def of_several(pictures: int) -> str:
    """What a line about a step adds where items have several pictures."""
    return f" of {pictures} pictures" if pictures > 1 else ""


def tell_left_out(data: Pairs | Questions | Dialogues, config: ModelConfig) -> None:
    """Prints a line, from the main process, where items have more pictures than are read."""
    count, most = data.above(config.max_pictures), config.max_pictures
    if count and distributed.is_main():
        line = f"{count} items have more than {most} pictures, of which {most} are read, evenly: max_pictures sets it"
        LastingConsole(stderr=True).print(
            printable(line), style="yellow", markup=False, highlight=False, soft_wrap=True
        )
