"""Where commands take images from: image files, folders of images, and annotation files."""

from collections.abc import Sequence
from pathlib import Path

from blip.data.formats import AnnotationError, iter_records
from blip.data.images import ENDINGS, find_images
from blip.data.records import path_problem
from blip.outputs import OutputError

ANNOTATIONS = (".json", ".jsonl", ".csv", ".tsv", ".parquet", ".arrow")


def is_annotation_file(place: str | Path) -> bool:
    """Whether a place is an annotation file, by the ending of its name."""
    return Path(place).suffix.lower() in ANNOTATIONS and Path(place).is_file()


def images_of(places: Sequence[str | Path]) -> list[Path]:
    """The images of several places, in their order.

    An image file is itself, a folder all images below it in the order of their names, an annotation file the different
    images of its records (paths relative to the file, or references FILE#ROW into a parquet or arrow file).

    Raises:
        NoImages: a place does not exist, or is a folder without images.
        AnnotationError: an annotation file cannot be read, or a record has no image.
    """
    images: list[Path] = []
    for place in map(Path, places):
        images += _images_of_records(place) if is_annotation_file(place) else find_images([place])
    return images


def _images_of_records(file: Path) -> list[Path]:
    images: dict[Path, None] = {}  # several records may have one image; a dictionary keeps the order
    for where, record in iter_records(file, needed=("image",)):
        image = record.get("image") if isinstance(record, dict) else None
        if not isinstance(image, str) or not image.strip():
            raise AnnotationError(file, where, "has no image, the path of a file")
        if problem := path_problem(image):
            raise AnnotationError(file, where, f"its image {problem}")
        images[file.parent / image] = None
    return list(images)


def refuse_image_name(out: Path, ending: str) -> None:
    """OutputError where a file to write has the name of an image: it could be one that the inputs name."""
    if out.suffix.lower() in ENDINGS:
        raise OutputError(f"{out} is the name of an image: give one that ends in {ending}")
