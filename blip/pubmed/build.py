"""`blip pubmed build`: lines of pairs -> a data set to train on, divided by article.

    DATASET/train.json val.json test.json    lists of {"image", "caption", "image_id", "article", "license", ...}
    DATASET/README.md  credits.csv            the data card; every article with authors, licence and address
    DATASET/build.json                        counts, by which the report is made

An article's part depends on its name and the seed alone: it stays where it is when the corpus grows.
"""

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from blip.data.images import ENDINGS
from blip.errors import BlipError
from blip.pubmed.card import data_card, write_credits
from blip.pubmed.duplicates import Look, Seen, look_at
from blip.pubmed.licenses import FAMILIES, short_license
from blip.pubmed.workers import NAMED, in_order

NAMES = ("train", "val", "test")
KEPT_KEYS = ("article", "figure", "label", "panel", "how", "confidence", "license", "retracted", "source", "year",
             "whole_image", "whole_caption")  # fmt: skip


class BuildError(BlipError):
    """A data set that cannot be built; the message says why."""


@dataclass
class Rules:
    """What goes into the data set."""

    splits: tuple[float, float, float] = (0.8, 0.1, 0.1)
    licenses: list[str] = field(default_factory=list)  # such as CC-BY, CC0; none: any of Creative Commons
    retracted: bool = False
    unlicensed: bool = False  # also what names none of these
    confidence: float = 0.5  # of a pair
    whole: bool = True  # also compound figures that stayed whole
    min_side: int = 64  # pixels of the shorter side
    max_aspect: float = 5.0
    min_words: int = 3
    max_words: int = 300
    words: list[str] = field(default_factory=list)  # of which the caption holds one, such as MRI; none: any
    not_words: list[str] = field(default_factory=list)  # of which it holds none
    duplicates: bool = False  # also the same picture again
    seed: int = 0

    def check(self) -> None:
        if any(share < 0 for share in self.splits) or abs(sum(self.splits) - 1) > 1e-6:
            raise BuildError(f"the shares {' '.join(map(str, self.splits))} of train, val and test do not add up to 1")

    def refuses(self, line: dict[str, Any]) -> str:
        """Why a pair stays out, "" if it does not; what needs the image is asked later."""
        license, caption = short_license(str(line.get("license") or "")), line["caption"]
        if not isinstance(caption, str):
            return "no caption"
        count = len(caption.split())
        if line.get("retracted") and not self.retracted:
            return "retracted"
        if self.licenses and license not in {short_license(name) for name in self.licenses}:
            return "licence"
        if license not in FAMILIES and not self.unlicensed and not self.licenses:
            return "no open licence named"
        if not line.get("image"):
            return "no file"
        if float(1.0 if line.get("confidence") is None else line["confidence"]) < self.confidence:
            return "confidence"
        if not self.whole and line.get("how") == "whole" and len(line.get("panels") or []) > 1:
            return "compound figure that stayed whole"
        if count < self.min_words:
            return "caption too short"
        if count > self.max_words:
            return "caption too long"
        if self.words and not _any_word(self.words, caption):
            return "none of the words"
        return "word that is not wanted" if self.not_words and _any_word(self.not_words, caption) else ""

    def refuses_size(self, size: tuple[int, int]) -> str:
        if min(size) < self.min_side:
            return "too small"
        return "too long and narrow" if max(size) > self.max_aspect * min(size) else ""

    def part(self, article: str) -> str:
        """Whether an article is of train, val or test."""
        digest = hashlib.sha256(f"{self.seed} {article}".encode()).digest()
        place = int.from_bytes(digest[:8], "big") / 2**64
        bounds = (self.splits[0], self.splits[0] + self.splits[1])
        return NAMES[(place >= bounds[0]) + (place >= bounds[1])]


def _any_word(words: list[str], text: str) -> bool:
    return any(re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE) for word in words)


@dataclass
class Built:
    """Counts of a build."""

    read: int = 0
    pairs: Counter[str] = field(default_factory=Counter)  # by part
    articles: Counter[str] = field(default_factory=Counter)
    out: Counter[str] = field(default_factory=Counter)  # pairs by why they stayed out
    licenses: Counter[str] = field(default_factory=Counter)
    years: Counter[str] = field(default_factory=Counter)
    words: Counter[str] = field(default_factory=Counter)  # captions by tens of words
    how: Counter[str] = field(default_factory=Counter)
    evaluation_images: int = 0
    problems: list[str] = field(default_factory=list)


def build(pairs: Path, out: Path, rules: Rules, decontaminate: list[Path] | None = None, shards: bool = False,
          workers: int = 1) -> Built:  # fmt: skip
    """Writes the data set.

    Args:
        pairs: .jsonl of `blip pubmed split`, or of `extract`.
        decontaminate: folders or annotation files of evaluation sets, none of whose images may be in the data set.
        shards: also webdataset shards of each part.
        workers: processes that open images.

    Raises:
        BuildError: nothing is left, or a line that is none.
    """
    rules.check()
    if not pairs.is_file():
        raise BuildError(f"{pairs} is no file: make it with `blip pubmed split` or `extract`")
    out.mkdir(parents=True, exist_ok=True)
    built, seen = Built(), Seen()
    evaluation = _evaluation(decontaminate or [], built, workers)
    writers = {name: _ListWriter(out / f"{name}.json") for name in NAMES}
    articles: dict[str, dict[str, Any]] = {}
    for line, found, whole in in_order(_looked_at, _lines(pairs, rules, built, bool(decontaminate)), workers):
        if why := _why_not(line, found, whole, rules, evaluation, seen, built):
            built.out[why] += 1
            continue
        part = rules.part(line["article"])
        record = {"image": line["image"], "caption": line["caption"], "image_id": _image_id(line),
                  **{key: line[key] for key in KEPT_KEYS if key in line}}  # fmt: skip
        for key in ("image", "whole_image"):  # relative to the data set, which may move with the corpus
            if key in record:
                record[key] = os.path.relpath(record[key], out)
        writers[part].add(record)
        _count(built, line, part, articles)
    if not built.pairs:
        reasons = ", ".join(f"{why} {count}" for why, count in built.out.most_common())
        for writer in writers.values():
            writer.drop()
        raise BuildError(f"{pairs}: of {built.read} pairs none is left ({reasons})")
    for writer in writers.values():
        writer.close()
    write_credits(out / "credits.csv", articles)
    places = [str(place) for place in decontaminate or []]
    kept_rules = asdict(rules) | {"splits": list(rules.splits)}
    summary = {"rules": kept_rules, **vars(built), "pairs_file": str(pairs.resolve()), "decontaminated": places}
    (out / "build.json").write_text(json.dumps(summary, indent=1) + "\n")
    (out / "README.md").write_text(data_card(summary, NAMES), encoding="utf-8")
    if shards:
        for name in NAMES:
            write_shards(out / f"{name}.json", out / "shards" / name)
    return built


def _evaluation(places: list[Path], built: Built, workers: int) -> Seen:
    """Looks at all images of evaluation sets; BuildError where a place has none that can be read."""
    seen = Seen()
    for place in places:
        paths = sorted(set(evaluation_images(place)))
        before = built.evaluation_images
        for path, found in zip(paths, in_order(look_at, iter(paths), workers), strict=True):
            if isinstance(found, str):
                built.problems += [f"evaluation image {found}"] if len(built.problems) < NAMED else []
            else:
                seen.add(found, path)
                built.evaluation_images += 1
        if built.evaluation_images == before:
            raise BuildError(f"{place}: none of its {len(paths)} images can be read, so none would be kept out; give a "
                             "folder of images, or a JSON whose `image` paths are relative to it")  # fmt: skip
    return seen


def _looked_at(asked: tuple[dict[str, Any], bool]) -> tuple[dict[str, Any], Look | str, Look | str | None]:
    """A line, with a look at its image, and at its whole figure where it is a part of one and that is asked."""
    line, also_whole = asked
    whole = line.get("whole_image") if also_whole and line.get("box") else None
    return line, look_at(line["image"]), look_at(whole) if whole else None


def _lines(pairs: Path, rules: Rules, built: Built, also_whole: bool) -> Iterator[tuple[dict[str, Any], bool]]:
    """The lines that words and licence let through."""
    with open(pairs, encoding="utf-8") as file:
        for at, raw in enumerate(file):
            try:
                line = json.loads(raw)
                line["caption"], line["article"], line["image"]
            except (ValueError, KeyError, TypeError) as error:
                raise BuildError(f"{pairs}, line {at + 1}: no pair ({error!r})") from None
            built.read += 1
            if why := rules.refuses(line):
                built.out[why] += 1
            else:
                yield line, also_whole


def _why_not(line: dict[str, Any], found: Look | str, whole: Look | str | None, rules: Rules, evaluation: Seen,
             seen: Seen, built: Built) -> str:  # fmt: skip
    """Why a picture stays out, "" if it does not; from then on it is seen."""
    if isinstance(found, str):
        built.problems += [found] if len(built.problems) < NAMED else []
        return "unreadable image"
    if why := rules.refuses_size(found.size):
        return why
    if evaluation.find(found) or (isinstance(whole, Look) and evaluation.find(whole)):
        return "evaluation image"
    if not rules.duplicates:
        if seen.find(found):
            return "same picture again"
        seen.add(found, line["image"])
    return ""


def _count(built: Built, line: dict[str, Any], part: str, articles: dict[str, dict[str, Any]]) -> None:
    built.pairs[part] += 1
    if line["article"] not in articles:
        built.articles[part] += 1
        about = ("title", "authors", "journal", "year", "doi", "license")
        articles[line["article"]] = {key: line.get("article_title" if key == "title" else key) for key in about}
    built.licenses[line.get("license") or "none named"] += 1
    built.years[str(line.get("year") or "unknown")] += 1
    built.words[str(min(30, len(line["caption"].split()) // 10) * 10)] += 1
    built.how[line.get("how") or "figure"] += 1


def _image_id(line: dict[str, Any]) -> str:
    """Sub-figures are images of their own, so that they are one another's negatives."""
    own = f"{line['article']} {line.get('figure')} {line.get('panel')} {os.path.basename(line['image'])}"
    return hashlib.sha1(own.encode(), usedforsecurity=False).hexdigest()[:16]


def evaluation_images(place: Path) -> Iterator[str]:
    """Images below a folder, or those that an annotation file names beside itself."""
    if place.is_dir():
        found = (Path(folder, name) for folder, _, names in sorted(os.walk(place)) for name in sorted(names))
        yield from (str(path) for path in found if path.suffix.lower() in ENDINGS)
        return
    try:
        records = json.loads(place.read_text(encoding="utf-8"))
        names = [record["image"] for record in records]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BuildError(
            f"{place}: neither a folder of images nor a list of records with `image` ({error!r})"
        ) from None
    yield from (str(place.parent / name) for name in names)


class _ListWriter:
    """A JSON list, written record by record, which has its name only when it is whole."""

    def __init__(self, path: Path) -> None:
        self.path, self.partial, self.count = path, path.with_name(f"{path.name}.partial"), 0
        self.file = open(self.partial, "w", encoding="utf-8")  # noqa: SIM115 (closed by close or drop)
        self.file.write("[")

    def add(self, record: dict[str, Any]) -> None:
        self.file.write((",\n" if self.count else "\n") + json.dumps(record, ensure_ascii=False))
        self.count += 1

    def close(self) -> None:
        self.file.write("\n]\n")
        self.file.close()
        os.replace(self.partial, self.path)

    def drop(self) -> None:
        self.file.close()
        self.partial.unlink()


def write_shards(annotations: Path, folder: Path, most: int = 2000) -> None:
    """Webdataset shards of a part: image, and its record as JSON; `sizes.json` says how many each holds."""
    import webdataset

    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.tar"):
        old.unlink()
    sizes: Counter[str] = Counter()
    with webdataset.ShardWriter(str(folder / "%05d.tar"), maxcount=most, maxsize=2**40, verbose=0) as writer:
        for at, record in enumerate(json.loads(annotations.read_text(encoding="utf-8"))):
            image = annotations.parent / record["image"]
            ending = image.suffix.lower().lstrip(".")
            writer.write({"__key__": f"{at:09d}", ending: image.read_bytes(), "json": record})
            sizes[f"{at // most:05d}.tar"] += 1
    (folder / "sizes.json").write_text(json.dumps(sizes))
