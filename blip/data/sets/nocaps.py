"""NoCaps (Agrawal et al. 2019): photographs of objects that COCO knows, is near to, or does not know.

The domain of an image, `in`, `near` or `out`, becomes the source of its record. Captions of the test set are not
published: its records have none.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from blip.data.columns import Columns, without_columns
from blip.data.formats import AnnotationError, Records, checked, is_object, iter_json_object, iter_records, kind_of

Record = TypeVar("Record")
NOCAPS_FILES = {
    "validation": ("nocaps_val_4500_captions.json", "nocaps_val.json"),
    "test": ("nocaps_test_image_info.json", "nocaps_test.json"),
}
DOMAINS = {"in-domain": "in", "near-domain": "near", "out-domain": "out", "out-of-domain": "out"}
DOMAINS |= {short: short for short in DOMAINS.values()}


def nocaps_file(path: Path, root: str, columns: Columns) -> Records:
    """Records of the published file, with lists `images` and, of the validation set, `annotations`; or of BLIP's list,
    whose records have `image`, `img_id` and `caption`."""
    if not is_object(path):
        for place, record in iter_records(path, columns=columns):
            if isinstance(record, dict):
                ids = {"image_id": record.get("image_id", record.get("img_id"))}
                record = {**record, **ids, **_source(record, path, place=place)}
            yield place, record
        return
    without_columns(path, columns)
    images: dict[int | str, dict[str, Any]] = {}
    captions: dict[int | str, list[Any]] = {}
    for key, item in checked(path, iter_json_object):
        if key == "images":
            place = f"image {len(images) + 1}"
            number = _number(item, ("id", "file_name"), path, place=place)
            if number in images:
                raise AnnotationError(path, place, f"has the id {number!r:.60} of an earlier one")
            images[number] = {"image": item["file_name"], "image_id": number, **_source(item, path, place=place)}
        elif key == "annotations":
            place = f"an annotation of {item!r:.60}"
            captions.setdefault(_number(item, ("image_id", "caption"), path, place=place), []).append(item["caption"])
    if not images:
        raise AnnotationError(path, "", "needs a list of images: not NoCaps' form")
    if unknown := [number for number in captions if number not in images]:
        problem = f"has captions of {len(unknown)} images that it does not list, such as {unknown[0]}"
        raise AnnotationError(path, "", problem)
    for number, record in images.items():
        if captions and number not in captions:
            raise AnnotationError(path, f"image {number}", "has no caption, and other images have")
        yield f"image {number}", {**record, "caption": captions.get(number, [])}


def _number(item: Any, needed: tuple[str, str], path: Path, *, place: str) -> int | str:
    """The value under the first of the keys that an item needs."""
    if not isinstance(item, dict) or not set(needed) <= set(item):
        raise AnnotationError(path, place, f"needs {' and '.join(needed)}")
    number = item[needed[0]]
    if isinstance(number, bool) or not isinstance(number, int | str):
        raise AnnotationError(path, place, f"its {needed[0]} is {kind_of(number)}, not a whole number or text")
    return number


def _source(item: Mapping[str, Any], path: Path, *, place: str) -> dict[str, str]:
    domain = item.get("domain")
    if domain in (None, ""):  # of the test set, where it is not published
        return {}
    if domain not in DOMAINS:
        raise AnnotationError(path, place, f"its domain is {domain!r:.60}; it can be {', '.join(DOMAINS)}")
    return {"source": DOMAINS[domain]}


def also_without_captions(parse: Callable[[Any], Record]) -> Callable[[Any], Record]:
    """`parse`, to which a record without captions is no error: its list of captions stays empty."""

    def read(record: Any) -> Record:
        if not isinstance(record, dict) or record.get("caption") not in (None, "", []):
            return parse(record)
        found: Any = parse({**record, "caption": "not published"})
        found.captions = []
        return found

    return read
