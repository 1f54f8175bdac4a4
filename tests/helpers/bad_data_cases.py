"""Broken annotation files, images and options of the data: what a user does wrong, and the message that follows.

Each case is (name, function of an empty folder that triggers the error, exception, regular expression of the message).
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from blip.data.formats import AnnotationError
from blip.data.images import UnreadableImage, open_image
from blip.data.loader import make_loader
from blip.data.order import EpochOrder
from blip.data.pairs import CaptionEncoder, PairDataset, read_pairs
from blip.data.skipped import TooManySkipped
from blip.data.transforms import train_transform
from blip.tokenizer import Tokenizer, load_tokenizer

Case = tuple[str, Callable[[Path], None], type[Exception], str]


def annotations(name: str, content: str | bytes, **options: Any) -> Callable[[Path], None]:
    """Reads a file of this name and content."""

    def trigger(folder: Path) -> None:
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        read_pairs([{"path": str(folder / name), **options}])

    return trigger


def records(*items: Any) -> Callable[[Path], None]:
    """Reads a JSON list of one sound record and `items`."""
    return annotations("set.json", json.dumps([{"image": "a.png", "caption": "sound"}, *items]))


def image(content: bytes | None) -> Callable[[Path], None]:
    """Opens an image file of this content; None: there is no such file."""

    def trigger(folder: Path) -> None:
        if content is not None:
            (folder / "scan.png").write_bytes(content)
        open_image(folder / "scan.png")

    return trigger


def training(
    readable: bool = True, batch_size: int = 2, max_tokens: int = 12, **options: Any
) -> Callable[[Path], None]:
    """Takes a batch of a set of three images."""

    def trigger(folder: Path) -> None:
        for i in range(3 if readable else 0):
            Image.new("RGB", (8, 8)).save(folder / f"{i}.png")
        (folder / "set.json").write_text(json.dumps([{"image": f"{i}.png", "caption": "x"} for i in range(3)]))
        pairs = read_pairs([str(folder / "set.json")])
        order = EpochOrder(len(pairs), seed=0)
        tokenizer = Tokenizer.train(["x y z"] * 3, vocab_size=40)
        encode = CaptionEncoder(tokenizer, max_tokens, **options)
        data = PairDataset(pairs, order, encode, transform=train_transform(8), seed=0)
        next(make_loader(data, order, batch_size))

    return trigger


def bomb(folder: Path) -> None:
    Image.new("1", (10_000, 10_000)).save(folder / "scan.png")
    open_image(folder / "scan.png")


CASES: list[Case] = [
    # annotation files as a whole
    ("no file", lambda folder: void(read_pairs([str(folder / "x.json")])), AnnotationError, r"x\.json: does not exist"),
    ("no files", lambda folder: void(read_pairs([])), ValueError, "no annotation files"),
    (
        "unknown suffix",
        annotations("set.xlsx", ""),
        AnnotationError,
        r"set\.xlsx: annotation files end in \.json, \.jsonl",
    ),
    ("empty file", annotations("set.json", ""), AnnotationError, r"set\.json: holds no records"),
    ("empty list", annotations("set.json", "[ ]"), AnnotationError, r"set\.json: holds no records"),
    ("blank lines", annotations("set.jsonl", "\n\n"), AnnotationError, r"set\.jsonl: holds no records"),
    ("header alone", annotations("set.csv", "image,caption\n"), AnnotationError, r"set\.csv: holds no records"),
    ("not a list", annotations("set.json", '{"annotations": []}'), AnnotationError, r"is not a list of records.*'\{'"),
    ("JSONL as JSON", annotations("set.json", '{"image": "a"}\n{"image": "b"}'), AnnotationError, "is not a list"),
    ("JSON as JSONL", annotations("set.jsonl", '[{"image": "a"}\n]'), AnnotationError, r"line 1: not valid JSON"),
    (
        "bad JSON",
        annotations("set.json", '[{"image": "a", "caption": "b"}, {"image": }]'),
        AnnotationError,
        "record 2: not valid",
    ),
    ("cut off", annotations("set.json", '[{"image": "a", "caption": "b"}'), AnnotationError, "after record 1.*cut off"),
    (
        "trailing text",
        annotations("set.json", '[{"image": "a", "caption": "b"}] []'),
        AnnotationError,
        "after the closing",
    ),
    (
        "bad line",
        annotations("set.jsonl", '{"image": "a", "caption": "b"}\n\n{"im'),
        AnnotationError,
        r"set\.jsonl, line 3: not valid",
    ),
    (
        "not UTF-8",
        annotations("set.csv", b"image,caption\na.png,\xe4dem\n"),
        AnnotationError,
        r"set\.csv, line 2: not UTF-8 text .*; it seems to be an encoding of Windows",
    ),
    (
        "columns",
        annotations("set.csv", "name,text\na.png,b\n"),
        AnnotationError,
        "columns image and caption; found: name, text",
    ),
    (
        "comma in text",
        annotations("set.csv", "image,caption\na.png,left, right\n"),
        AnnotationError,
        "line 2: 3 fields under 2",
    ),
    (
        "too few fields",
        annotations("set.tsv", "image\tcaption\na.png left\n"),
        AnnotationError,
        "line 2: 1 fields under 2",
    ),
    ("open quotation", annotations("set.csv", 'image,caption\na.png,"left\n'), AnnotationError, "not a valid table"),
    (
        "not parquet",
        annotations("set.parquet", b"PAR"),
        AnnotationError,
        r"set\.parquet: (not a readable parquet|reading parquet)",
    ),
    # records
    ("no image", records({"caption": "b"}), AnnotationError, r"set\.json, record 2: has no 'image'; its keys: caption"),
    (
        "no caption",
        records({"image": "b", "text": "c"}),
        AnnotationError,
        "record 2: has no 'caption'; its keys: image, text",
    ),
    (
        "image a number",
        records({"image": 3, "caption": "b"}),
        AnnotationError,
        r"record 2: its image is a number \(3\)",
    ),
    ("image empty", records({"image": " ", "caption": "b"}), AnnotationError, "record 2: its image is empty"),
    (
        "caption null",
        records({"image": "b", "caption": None}),
        AnnotationError,
        "record 2: its caption is null, not text",
    ),
    ("caption empty", records({"image": "b", "caption": " \n"}), AnnotationError, "record 2: its caption is empty"),
    (
        "captions empty",
        records({"image": "b", "caption": []}),
        AnnotationError,
        "record 2: its list of captions is empty",
    ),
    (
        "caption nested",
        records({"image": "b", "caption": ["x", ["y"]]}),
        AnnotationError,
        "caption is a list, not text",
    ),
    ("image id", records({"image": "b", "caption": "x", "image_id": [1]}), AnnotationError, "image_id is a list"),
    (
        "not a record",
        records("b.png"),
        AnnotationError,
        "record 2: a record is an object with image and caption, not text",
    ),
    # images
    ("image missing", image(None), UnreadableImage, r"scan\.png: no such file"),
    ("image empty file", image(b""), UnreadableImage, r"scan\.png: the file is empty"),
    ("image of text", image(b"<html>404</html>"), UnreadableImage, r"scan\.png: not an image"),
    ("image too large", bomb, UnreadableImage, "10000 x 10000 pixels, more than 89,478,485"),
    ("all unreadable", training(readable=False), TooManySkipped, "3 images in a row.*image_root.*blip check-data"),
    # options
    (
        "image_root",
        lambda folder: void(read_pairs(["x.json"], str(folder / "no"))),
        ValueError,
        "image_root is .*no folder",
    ),
    ("weight zero", annotations("set.json", "[]", weight=0), ValueError, r"set\.json: weight is 0"),
    (
        "weight misspelt",
        annotations("set.json", "[]", wieght=1),
        ValueError,
        "has the keys path, weight, .*found: .*wieght",
    ),
    (
        "batch too large",
        training(batch_size=4),
        ValueError,
        "3 records on each of 1 ranks.*batch of 4.*batch_size to 3",
    ),
    ("batch of none", training(batch_size=0), ValueError, "batch_size is 0"),
    ("text_cleaning", training(text_cleaning="BLIP"), ValueError, "text_cleaning is 'BLIP'; it can be none or blip"),
    ("max_tokens", training(max_tokens=2), ValueError, "max_tokens is 2"),
    ("crop_scale", lambda _: void(train_transform(8, (0.0, 1.0))), ValueError, "crop_scale is"),
    ("image_size", lambda _: void(train_transform(0)), ValueError, "image_size is 0"),
    ("tokenizer", lambda _: void(load_tokenizer("bert-base-uncased")), ValueError, "hub:bert-base-uncased"),
]


def void(_: object) -> None:
    """Drops a result, so that a lambda returns nothing."""
