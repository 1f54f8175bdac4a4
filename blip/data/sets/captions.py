"""Images with captions, in the files in which they are published: CAPTION_SETS, name -> format."""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from blip.data.columns import Columns, without_columns
from blip.data.formats import (
    AnnotationError,
    Records,
    checked,
    iter_lines,
    iter_records,
    kind_of,
    parse_record,
    several_paths,
)
from blip.data.records import path_problem, text_problem
from blip.data.sets import iu_xray, mimic_cxr
from blip.data.sets.layout import SPLITS, SetFormat
from blip.data.sets.nocaps import NOCAPS_FILES, also_without_captions, nocaps_file
from blip.data.sets.photographs import coco_captions_file, karpathy_file
from blip.data.sets.videos import MSRVTT, VIDEO_FOLDERS, rows, with_video
from blip.errors import InputError

ARTICLE = re.compile(r"PMC\d+")
GROUPS = ("pmcid", "article", "group", "patient")  # keys of what splits keep together


@dataclass
class Captioned:
    """An image with one or more captions."""

    image: str  # path relative to the set's images, or FILE#ROW
    captions: list[str]
    image_id: str | None = None  # equal for records of one image; None: its path
    group: str = ""  # an article or a patient, which splits keep together; "": the image
    source: str = ""  # of the pair, such as web or synthetic; "": not given
    further: list[str] = field(default_factory=list)  # paths of other pictures of the same item, in order

    @property
    def image_paths(self) -> list[str]:
        """All pictures that the captions describe."""
        return [self.image, *self.further]


def captioned(record: Any) -> Captioned:
    """The generic record: `image`, or `images` of one item; `caption` (text or a list), optionally `image_id`, `source`
    and one of GROUPS."""
    images = several_paths(record)
    image, captions, image_id = parse_record({**record, "image": images[0]} if images else record)
    name = next((name for name in GROUPS if record.get(name) not in (None, "")), "")
    group = record[name] if name else ""
    if not isinstance(group, str | int | float) or isinstance(group, bool) or group != group:
        raise InputError(f"its {name} is {kind_of(group)}, not a number or text")
    return Captioned(image, captions, image_id, str(group), str(record.get("source") or ""), images[1:])


def text_of(record: Any, *names: str) -> str:
    """The text under the first of `names` that the record has, stripped; ValueError if that is no usable text."""
    name, value = _value_of(record, *names)
    if problem := "is empty" if not value.strip() else text_problem(value):
        raise InputError(f"its {name} {problem}")
    return value.strip()


def path_of(record: Any, *names: str) -> str:
    """As `text_of`, for the path of an image: unchanged, since names of files may begin and end with blanks."""
    name, value = _value_of(record, *names)
    if problem := path_problem(value):
        raise InputError(f"its {name} {problem}")
    return value


def _value_of(record: Any, *names: str) -> tuple[str, str]:
    """(the first of `names` that the record has, the text under it); ValueError if that is no text."""
    if not isinstance(record, Mapping):
        raise InputError(f"a record is an object, not {kind_of(record)}")
    name = next((name for name in names if name in record), None)
    if name is None:
        raise InputError(f"has no {names[0]!r}; its keys: {', '.join(map(str, record)) or 'none'}")
    value = record[name]
    # identifiers, and answers such as 4
    if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < math.inf:
        value = str(int(value) if value == int(value) else value)
    if not isinstance(value, str):
        raise InputError(f"its {name} is {kind_of(value)}, not text")
    return name, value


# ---- ROCO, ROCOv2 ----------------------------------------------------------------------------------------------------


def _roco_lines(path: Path) -> Records:
    for place, line in iter_lines(path):
        name, tab, caption = line.partition("\t")
        if not tab:
            raise AnnotationError(path, place, "has no tab; a line is the name of an image, a tab and its caption")
        yield place, {"name": f"{name.strip()}.jpg", "caption": caption}


def _roco_file(path: Path, root: str, columns: Columns) -> Records:
    """`captions.txt` of the git form, or the CSV with id, name, caption."""
    if path.suffix.lower() == ".txt":
        without_columns(path, columns)
        return checked(path, _roco_lines)
    return iter_records(path, needed=("name", "caption"), also=("id",), columns=columns)


def _roco(record: Any) -> Captioned:
    name = path_of(record, "name").strip()
    article = ARTICLE.match(name)
    return Captioned(name, [text_of(record, "caption")], name, article[0] if article else "")


def _rocov2_file(path: Path, root: str, columns: Columns) -> Records:
    if path.suffix.lower() in (".parquet", ".arrow"):
        return iter_records(path, needed=("image", "image_id", "caption"), also=(), columns=columns)
    return iter_records(path, needed=("ID", "Caption"), also=(), columns=columns)


def _rocov2(record: Any) -> Captioned:
    name = text_of(record, "ID", "image_id")
    image = path_of(record, "image") if "image" in record else f"{name}.jpg"
    return Captioned(image, [text_of(record, "Caption", "caption")], name)


# ---- articles --------------------------------------------------------------------------------------------------------


def _pmc_oa(record: Any) -> Captioned:
    generic = captioned(record)
    article = ARTICLE.match(generic.image)
    return Captioned(
        generic.image,
        generic.captions,
        generic.image_id,
        generic.group or (article[0] if article else ""),
        further=generic.further,
    )


def _medicat(record: Any) -> Captioned:
    """The caption that Semantic Scholar extracted from the PDF, or else S2ORC's; `s2orc_references`, mentions in the
    text of the article, are not captions and are left out."""
    article, figure = text_of(record, "pdf_hash"), text_of(record, "fig_uri")
    key = "s2_caption" if record.get("s2_caption") else "s2orc_caption"
    # the names of files begin with the article's hash; fig_uri in the publication's sample does not
    name = figure if figure.startswith(article) else f"{article}_{figure}"
    return Captioned(name, [text_of(record, key)], name, article)


def _plain(path: Path, root: str, columns: Columns) -> Records:
    return iter_records(path, also=("image_id", *GROUPS, "split", "source"), columns=columns)


def _roco_files(part: str, table: str) -> tuple[str, ...]:
    """The published layout, the same one folder deeper, and copies with everything in one folder."""
    places = (f"{part}/{table}", f"{part}/radiology/captions.txt", f"{part}/radiology/{table}", table)
    return (*places, *(f"*/{place}" for place in places))


def _studies(read: Callable[..., Records], *files: str, images: tuple[str, ...]) -> SetFormat[Captioned]:
    every = dict.fromkeys(SPLITS, files)
    return SetFormat(read, captioned, files=every, images=images, joins=True, study=True)


_ROCO_FILES = {
    "train": _roco_files("train", "radiologytraindata.csv"),
    "validation": _roco_files("validation", "radiologyvaldata.csv"),
    "test": _roco_files("test", "radiologytestdata.csv"),
}
_COCO_2017 = ("annotations/captions_{0}2017.json", "annotations/captions_{0}2014.json")

CAPTION_SETS: dict[str, SetFormat[Captioned]] = {
    "json": SetFormat(_plain, captioned),
    "roco": SetFormat(_roco_file, _roco, files=_ROCO_FILES, images=("radiology/images", "images")),
    "rocov2": SetFormat(
        _rocov2_file,
        _rocov2,
        files={"train": ("train_captions.csv",), "validation": ("valid_captions.csv",), "test": ("test_captions.csv",)},
        images=("{first}_images", "{first}", "images"),
    ),
    "pmc_oa": SetFormat(
        _plain,
        _pmc_oa,
        files={"train": ("train.jsonl", "pmc_oa.jsonl"), "validation": ("valid.jsonl",), "test": ("test.jsonl",)},
        images=("images", "caption_T060_filtered_top4_sep_v0_subfigures"),
    ),
    "medicat": SetFormat(
        lambda path, root, columns: iter_records(path, columns=columns),
        _medicat,
        files={"train": ("*.jsonl",)},
        images=("figures",),
    ),
    "coco": SetFormat(
        karpathy_file,
        captioned,
        files={
            "train": ("coco_karpathy_train.json", "dataset_coco.json"),
            "validation": ("coco_karpathy_val.json", "dataset_coco.json"),
            "test": ("coco_karpathy_test.json", "dataset_coco.json"),
        },
        images=("images",),
    ),
    "flickr": SetFormat(
        karpathy_file,
        captioned,
        files={
            "train": ("flickr30k_train.json", "dataset_flickr30k.json"),
            "validation": ("flickr30k_val.json", "dataset_flickr30k.json"),
            "test": ("flickr30k_test.json", "dataset_flickr30k.json"),
        },
        images=("images", "flickr30k-images"),
    ),
    "nocaps": SetFormat(nocaps_file, also_without_captions(captioned), files=NOCAPS_FILES, images=("images",)),
    "msrvtt": SetFormat(
        rows("clip_name", "caption"),
        lambda record: captioned(with_video(record, "clip_name", ".mp4")),
        files=MSRVTT,
        images=VIDEO_FOLDERS,
    ),
    "coco_captions": SetFormat(
        coco_captions_file,
        captioned,
        files={
            "train": tuple(pattern.format("train") for pattern in _COCO_2017),
            "validation": tuple(pattern.format("val") for pattern in _COCO_2017),
        },
        images=("../{last}", "../images", "images"),
        joins=True,
    ),
    "mimic_cxr": _studies(
        mimic_cxr.read, f"{mimic_cxr.SPLIT}.gz", mimic_cxr.SPLIT, "annotation.json", images=("files", "images")
    ),
    "iu_xray": _studies(
        iu_xray.read,
        "ecgen-radiology",
        "NLMCXR_reports/ecgen-radiology",
        "annotation.json",
        images=("NLMCXR_png", "../NLMCXR_png", "images"),
    ),
}
