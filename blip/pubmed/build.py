"""`blip pubmed build`: lines of pairs -> a data set to train on, divided by article.

    DATASET/train.json val.json test.json    lists of {"image", "caption", "image_id", "article", "license", ...}
    DATASET/README.md  credits.csv            the data card; every article with authors, licence and address
    DATASET/build.json                        counts, from which the report is made
    DATASET/shards/train/ ...                 webdataset shards of each part, if they are asked for

The part of an article depends on its name and the seed alone: it does not change when the corpus grows.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from blip.data.image_bytes import LIMITS, ImageLimits, read_image
from blip.data.images import ENDINGS
from blip.data.webdataset import write_tar_shards
from blip.files import ReadError, json_text, read_json, whole_file, write_whole
from blip.pubmed.card import data_card, write_credits
from blip.pubmed.duplicates import PictureIndex, Signature, read_signature
from blip.pubmed.lines import Line, Pair, Record, read
from blip.pubmed.rules import NAMES, BuildError, Rules
from blip.pubmed.workers import NAMED, in_order

KEPT_KEYS = ("article", "figure", "label", "panel", "how", "confidence", "license", "retracted", "source", "year",
             "whole_image", "whole_caption")  # fmt: skip


@dataclass
class Built:
    """Counts of a build."""

    read: int = 0
    pairs: Counter[str] = field(default_factory=Counter)  # by part
    articles: Counter[str] = field(default_factory=Counter)
    out: Counter[str] = field(default_factory=Counter)  # pairs that were left out, by reason
    licenses: Counter[str] = field(default_factory=Counter)
    years: Counter[str] = field(default_factory=Counter)
    words: Counter[str] = field(default_factory=Counter)  # captions by tens of words
    how: Counter[str] = field(default_factory=Counter)
    evaluation_images: int = 0
    problems: list[str] = field(default_factory=list)


def build(pairs: Path, out: Path, rules: Rules, *, decontaminate: list[Path] | None = None, shards: bool = False,
          num_workers: int = 1, limits: ImageLimits = LIMITS) -> Built:  # fmt: skip
    """Writes the data set.

    Args:
        pairs: .jsonl of `blip pubmed split` or `blip pubmed extract`.
        out: folder of the data set.
        decontaminate: folders or annotation files of evaluation sets, whose images are left out of the data set.
        shards: also write webdataset shards of each part.
        num_workers: processes that open images.

    Raises:
        BuildError: the shares of the parts do not add up to 1, a line is not a pair, an evaluation set has no readable
            image, or no pair is left.
        WriteError: a file cannot be written.
    """
    rules.check()
    if not pairs.is_file():
        raise BuildError(f"{pairs} does not exist: make it with `blip pubmed split` or `extract`")
    out.mkdir(parents=True, exist_ok=True)
    built, articles = Built(), dict[str, Line]()
    evaluation = _evaluation(decontaminate or [], built, num_workers, limits=limits)
    with ExitStack() as stack:
        add_to = {name: stack.enter_context(_json_list(out / f"{name}.json")) for name in NAMES}
        lines = _lines(pairs, rules, built, also_whole=bool(decontaminate))
        candidates = in_order(partial(_with_signatures, limits=limits), lines, num_workers)
        for line in _selected(candidates, rules, evaluation, built=built):
            part = rules.part(line["article"])
            add_to[part](_record(line, out))
            _count(built, line, part, articles=articles)
        if not built.pairs:
            reasons = ", ".join(f"{why} {count}" for why, count in built.out.most_common())
            raise BuildError(f"{pairs}: of {built.read} pairs none is left ({reasons})")
    write_credits(out / "credits.csv", articles)
    places = [str(place) for place in decontaminate or []]
    kept_rules = asdict(rules) | {"split_shares": list(rules.split_shares)}
    summary = {"rules": kept_rules, **vars(built), "pairs_file": str(pairs.resolve()), "decontaminated": places}
    write_whole(out / "build.json", json.dumps(summary, indent=1) + "\n")
    write_whole(out / "README.md", data_card(summary, NAMES))
    if shards:
        for name in NAMES:
            write_part_shards(out / f"{name}.json", out / "shards" / name, limits=limits)
    return built


# ---- evaluation images -----------------------------------------------------------------------------------------------


def _evaluation(places: list[Path], built: Built, num_workers: int, *, limits: ImageLimits) -> PictureIndex:
    """All images of evaluation sets; BuildError where a set has none that can be read."""
    index, read = PictureIndex(), partial(read_signature, limits=limits)
    for place in places:
        paths = sorted(set(evaluation_images(place)))
        before = built.evaluation_images
        for path, picture in zip(paths, in_order(read, iter(paths), num_workers), strict=True):
            if isinstance(picture, str):
                built.problems += [f"evaluation image {picture}"] if len(built.problems) < NAMED else []
            else:
                index.add(picture, path)
                built.evaluation_images += 1
        if built.evaluation_images == before:
            raise BuildError(f"{place}: none of its {len(paths)} images can be read, so none would be kept out; give a "
                             "folder of images, or a JSON whose `image` paths are relative to it")  # fmt: skip
    return index


def evaluation_images(place: Path) -> Iterator[str]:
    """Paths of the images below a folder, or of those in an annotation file, relative to its folder."""
    if place.is_dir():
        files = (Path(folder, name) for folder, _, names in sorted(os.walk(place)) for name in sorted(names))
        yield from (str(path) for path in files if path.suffix.lower() in ENDINGS)
        return
    try:
        names = [os.fsencode(record["image"]) for record in read_json(place, list[Record])]
    except (ReadError, UnicodeError) as error:
        problem = getattr(error, "problem", error)
        raise BuildError(
            f"{place}: neither a folder of images nor a list of records with `image` ({problem})"
        ) from None
    yield from (str(place.parent / os.fsdecode(name)) for name in names)


# ---- which pairs are taken -------------------------------------------------------------------------------------------


@dataclass
class Candidate:
    """A line that passed the rules on text and licence, with its pictures, or messages why they cannot be read."""

    line: Line
    picture: Signature | str
    whole: Signature | str | None  # of the whole figure, where `picture` is a part of it and evaluation sets are given


def _lines(pairs: Path, rules: Rules, built: Built, *, also_whole: bool) -> Iterator[tuple[Line, bool]]:
    """The lines that pass the rules on text and licence."""
    try:
        for _, line in read(pairs, Pair):
            built.read += 1
            if why := rules.rejection(line):
                built.out[why] += 1
            else:
                yield line, also_whole
    except ReadError as error:
        raise BuildError(f"{error.path}, {error.place}: not a pair ({error.problem})") from None


def _with_signatures(asked: tuple[Line, bool], limits: ImageLimits) -> Candidate:
    line, also_whole = asked
    whole = line.get("whole_image") if also_whole and line.get("box") else None
    return Candidate(line, read_signature(line["image"], limits), read_signature(whole, limits) if whole else None)


def _selected(candidates: Iterator[Candidate], rules: Rules, evaluation: PictureIndex, *, built: Built
              ) -> Iterator[Line]:  # fmt: skip
    """The lines whose pictures pass too; the others are counted by reason."""
    taken = PictureIndex()
    for candidate in candidates:
        if isinstance(candidate.picture, str):
            built.problems += [candidate.picture] if len(built.problems) < NAMED else []
        if why := _picture_rejection(candidate, rules, evaluation, taken=taken):
            built.out[why] += 1
            continue
        if not rules.duplicates and isinstance(candidate.picture, Signature):
            taken.add(candidate.picture, candidate.line["image"])
        yield candidate.line


def _picture_rejection(candidate: Candidate, rules: Rules, evaluation: PictureIndex, *, taken: PictureIndex) -> str:
    """Why a picture is left out, "" if it is not."""
    picture, whole = candidate.picture, candidate.whole
    if isinstance(picture, str):
        return "unreadable image"
    if why := rules.size_rejection(picture.size):
        return why
    if evaluation.find(picture) or (isinstance(whole, Signature) and evaluation.find(whole)):
        return "evaluation image"
    return "same picture again" if not rules.duplicates and taken.find(picture) else ""


# ---- what is written -------------------------------------------------------------------------------------------------


def _record(line: Line, out: Path) -> Line:
    """The record of a pair; its paths are relative to the data set, which may be moved together with the corpus."""
    record = {"image": line["image"], "caption": line["caption"], "image_id": _image_id(line),
              **{key: line[key] for key in KEPT_KEYS if key in line}}  # fmt: skip
    for key in ("image", "whole_image"):
        if key in record:
            record[key] = os.path.relpath(record[key], out)
    return record


def _count(built: Built, line: Line, part: str, *, articles: dict[str, Line]) -> None:
    built.pairs[part] += 1
    if line["article"] not in articles:
        built.articles[part] += 1
        about = ("title", "authors", "journal", "year", "doi", "license")
        articles[line["article"]] = {key: line.get("article_title" if key == "title" else key) for key in about}
    built.licenses[line.get("license") or "none named"] += 1
    built.years[str(line.get("year") or "unknown")] += 1
    built.words[str(min(30, len(line["caption"].split()) // 10) * 10)] += 1
    built.how[line.get("how") or "figure"] += 1


def _image_id(line: Line) -> str:
    """Each sub-figure has its own, so that sub-figures of one figure are negatives of one another."""
    own = f"{line['article']} {line.get('figure')} {line.get('panel')} {os.path.basename(line['image'])}"
    return hashlib.sha1(own.encode("utf-8", "surrogatepass"), usedforsecurity=False).hexdigest()[:16]


@contextmanager
def _json_list(path: Path) -> Iterator[Callable[[Line], None]]:
    """A JSON list, written one record at a time, which gets its name when the block has ended."""
    with whole_file(path) as file:
        separator = b"[\n"

        def add(record: Line) -> None:
            nonlocal separator
            file.write(separator + json_text(record, None).rstrip("\n").encode())
            separator = b",\n"

        yield add
        file.write(b"[\n]\n" if separator == b"[\n" else b"\n]\n")


def write_part_shards(annotations: Path, folder: Path, most: int = 2000, *, limits: ImageLimits = LIMITS) -> None:
    """Webdataset shards of a part: images as they are, and their records as JSON.

    Args:
        annotations: the JSON list of the part.
        most: samples in a shard.

    Raises:
        TarError: webdataset is not installed. WriteError: a file cannot be written. UnreadableImage: an image has gone
            since it was compared.
    """
    write_tar_shards(folder, _samples(annotations, limits), most)


def _samples(annotations: Path, limits: ImageLimits) -> Iterator[dict[str, Any]]:
    for record in read_json(annotations, list[Record]):
        image = annotations.parent / record["image"]
        yield {image.suffix.lower().lstrip("."): read_image(image, limits), "json": record}
