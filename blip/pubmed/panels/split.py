"""`blip pubmed split`: lines of figures -> lines of sub-figures with their part of the caption.

A figure becomes one line a panel where caption and picture agree, else stays one line, marked `whole`. It is written in
the order of the input; a run that was stopped goes on behind the last figure that it finished.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

from PIL import Image

from blip.data.images import plain
from blip.errors import BlipError
from blip.pubmed.extract import SEVERAL
from blip.pubmed.panels import gutters
from blip.pubmed.panels.captions import Part, Split, Splitter, split_caption
from blip.pubmed.panels.detector import PanelDetector
from blip.pubmed.panels.letters import LetterReader
from blip.pubmed.panels.match import Layout, Pair, layout, match
from blip.pubmed.workers import add, in_order

UNREADABLE = 0.2  # share of images that cannot be read from which on it is no accident


class SplitError(BlipError):
    """Figures that cannot be split; the message says why."""


@dataclass
class Options:
    """How to split; it goes to every process."""

    crops: str  # folder of the sub-figures
    weights: str | None = None
    read_letters: bool = False
    smallest: int = 48  # pixels of a sub-figure's shorter side
    given: dict[str, Split] = field(default_factory=dict)  # captions that somebody else split, by `key`
    splitter: Splitter = split_caption


@dataclass
class Summary:
    """What became of the figures."""

    figures: int = 0
    pairs: int = 0
    how: Counter[str] = field(default_factory=Counter)  # figures by letter, place, order, whole
    way: Counter[str] = field(default_factory=Counter)  # figures by gutters, detector, none
    why_whole: Counter[str] = field(default_factory=Counter)
    unreadable: int = 0
    made_from: str = ""
    problems: list[str] = field(default_factory=list)


class FigureSplitter:
    """One process's parts: detector, reader, rules."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.detector = PanelDetector(Path(options.weights) if options.weights else None)
        self.reader = LetterReader() if options.read_letters else None

    def __call__(self, image: Image.Image, split: Split) -> tuple[list[Pair], Layout]:
        """The pairs of a figure, and the panels that it was taken to have."""
        names = split.labels
        panels = self.detector([image])[0]
        found = layout(gutters.cut(image), panels, len(names))
        read = None
        if self.reader and len(names) > 1 and len(found.boxes) > 1:
            read = self.reader(image, panels.letters[: 2 * len(names)], names)
        return match(split, found, read), found

    def lines(self, at: int, line: dict[str, Any]) -> tuple[list[dict[str, Any]], Summary]:
        """A figure's line -> those of its parts."""
        part, options = Summary(figures=1), self.options
        if not line.get("image"):
            part.why_whole["no file"] += 1
            return [], part
        given = options.given.get(key(line)) if line.get("figure") else None
        split = replace(given, whole=line["caption"]) if given else options.splitter(line["caption"])
        if len(line.get("files") or []) > 1:
            return _several_files(at, line, split, part)
        try:
            with Image.open(line["image"]) as opened:
                image = plain(opened)
            pairs, found = self(image, split)
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            part.unreadable, part.problems = 1, [f"{line['image']}: {type(error).__name__} {error}"]
            return [], part
        part.how[pairs[0].how] += 1
        part.way[found.way] += 1
        if pairs[0].how == "whole":
            part.why_whole[_why(split, found)] += 1
        out = []
        for pair in pairs:
            made = {**line, "caption": pair.text, "whole_caption": line["caption"], "whole_image": line["image"],
                    "panel": pair.labels, "box": pair.box, "how": pair.how, "confidence": pair.confidence,
                    "panels": found.boxes, "row": at}  # fmt: skip
            if pair.box is not None:
                crop = image.crop(pair.box)
                if min(crop.size) < options.smallest:
                    part.problems.append(f"{line['image']}, {pair.labels}: {crop.width} x {crop.height} pixels")
                    continue
                made["image"] = _save(crop, Path(options.crops), line, pair)
            out.append(made)
        part.pairs = len(out)
        return out, part


def _several_files(at: int, line: dict[str, Any], split: Split,
                   part: Summary) -> tuple[list[dict[str, Any]], Summary]:  # fmt: skip
    """A figure of several files: each with its label's words where there are as many; else the first, unsure."""
    names = split.labels
    about = {"whole_caption": line["caption"], "whole_image": line["image"], "box": None, "panels": [], "row": at}
    if len(names) != len(line["files"]):
        part.how["whole"] += 1
        part.why_whole["several files, other number of labels"] += 1
        part.pairs = 1
        return [line | about | {"panel": [], "how": "whole", "confidence": SEVERAL}], part
    part.how["file"] += 1
    part.pairs = len(names)
    sure = round(0.9 * split.confidence, 3)
    about |= {"how": "file", "confidence": sure}
    each = zip(names, line["files"], strict=True)
    return [line | about | {"image": file, "caption": split.of(name), "panel": [name]} for name, file in each], part


def _why(split: Split, found: Layout) -> str:
    names = split.labels
    if len(names) < 2:
        return "caption of one part"
    if len(found.boxes) < 2:
        return "no panels found"
    return "other number of panels than labels" if len(names) != len(found.boxes) else "letters contradict the panels"


def _save(crop: Image.Image, folder: Path, line: dict[str, Any], pair: Pair) -> str:
    """Writes a sub-figure under a name that its figure and its label give it."""
    own = hashlib.sha1(f"{line['image']} {pair.labels}".encode(), usedforsecurity=False).hexdigest()[:16]
    path = folder.absolute() / own[:2] / f"{own}.jpg"
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(f".{os.getpid()}.partial")
    crop.save(partial, "JPEG", quality=95, subsampling=0)  # colours as sharp as the rest
    os.replace(partial, path)
    return str(path)


# ---- many figures ----------------------------------------------------------------------------------------------------


def split(pairs: Path, out: Path, options: Options, workers: int = 1,
          tell: Callable[[str], None] = lambda line: None) -> Summary:  # fmt: skip
    """Splits all figures of a file of `blip pubmed extract`.

    Args:
        pairs: a line a figure, .jsonl.
        out: .jsonl; `OUT.summary.json` says what became of the figures.
        workers: processes.

    Raises:
        SplitError: a line that is none, or images that cannot be read, one in five.
    """
    if not pairs.is_file():
        raise SplitError(f"{pairs} is no file: make it with `blip pubmed extract`")
    out.parent.mkdir(parents=True, exist_ok=True)
    partial, mark = out.with_name(f"{out.name}.partial"), out.with_name(f"{out.name}.partial.json")
    with open(pairs, "rb") as source:
        digest = hashlib.file_digest(source, "sha256").hexdigest()
    given = hashlib.sha256(repr(sorted(options.given.items())).encode()).hexdigest()
    made_from = {"pairs": digest, "given": given, "weights": options.weights, "crops": options.crops,
                 "read_letters": options.read_letters, "smallest": options.smallest}  # fmt: skip
    if workers > 1:
        FigureSplitter(options)  # what is wrong with it is told here, not by each process
    done, summary = _resume(partial, mark, made_from)
    summary.made_from = str(pairs.resolve())
    if done:
        tell(f"goes on behind figure {done}")
    mark.write_text(json.dumps(made_from))
    with open(partial, "a", encoding="utf-8") as file:
        figures = islice(_numbered(pairs), done, None)
        for lines, part in in_order(_one, figures, workers, _start, (options, 1 if workers > 1 else 0)):
            for line in lines:
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
            add(summary, part)
            file.write(json.dumps({"figure_done": vars(part)}) + "\n")
            if summary.figures % 500 == 0:
                tell(f"{summary.figures} figures, {summary.pairs} pairs")
            if summary.unreadable > max(5, UNREADABLE * summary.figures):
                partial.unlink()  # so that they are tried again
                raise SplitError(f"{summary.unreadable} of {summary.figures} images cannot be read, the last "
                                 f"{summary.problems[-1]}")  # fmt: skip
    final = out.with_name(f"{out.name}.final")
    with open(partial, encoding="utf-8") as source, open(final, "w", encoding="utf-8") as file:
        file.writelines(line for line in source if not line.startswith('{"figure_done"'))
    out.with_name(f"{out.name}.summary.json").write_text(json.dumps(vars(summary), indent=1) + "\n")
    os.replace(final, out)
    partial.unlink()
    mark.unlink()
    return summary


def _resume(partial: Path, mark: Path, made_from: dict[str, Any]) -> tuple[int, Summary]:
    """(figures that are finished, what became of them); what was begun behind them is cut off."""
    summary, end, place = Summary(), 0, 0
    if not mark.exists() or not partial.exists() or json.loads(mark.read_text() or "{}") != made_from:
        partial.unlink(missing_ok=True)
        return 0, summary
    with open(partial, "rb") as file:
        for raw in file:
            place += len(raw)
            if raw.startswith(b'{"figure_done"') and raw.endswith(b"\n"):
                end = place
                part = json.loads(raw)["figure_done"]
                for name in ("how", "way", "why_whole"):
                    part[name] = Counter(part[name])
                add(summary, Summary(**part))
    os.truncate(partial, end)
    return summary.figures, summary


def _numbered(pairs: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    with open(pairs, encoding="utf-8") as file:
        for at, raw in enumerate(file):
            try:
                line = json.loads(raw)
                line["caption"], line["image"]
            except (ValueError, KeyError, TypeError) as error:
                raise SplitError(f"{pairs}, line {at + 1}: no figure ({error!r})") from None
            yield at, line


_splitter: list[FigureSplitter] = []  # of this process


def _start(options: Options, threads: int) -> None:
    import torch

    if threads:
        torch.set_num_threads(threads)
    _splitter[:] = [FigureSplitter(options)]


def _one(numbered: tuple[int, dict[str, Any]]) -> tuple[list[dict[str, Any]], Summary]:
    return _splitter[0].lines(*numbered)


# ---- captions that somebody else split -------------------------------------------------------------------------------


def key(line: dict[str, Any]) -> str:
    """What names a figure: its article and its id there."""
    return f"{line.get('article', '')}/{line.get('figure', '')}"


def read_splits(path: Path) -> dict[str, Split]:
    """Captions split by a learned splitter, an LLM or a person: lines of article, figure, lead, parts, confidence.

    `{"article": "PMC1", "figure": "F1", "lead": "...", "parts": [{"labels": ["A"], "text": "..."}], "confidence": 0.9}`

    Raises:
        SplitError: a line of another form.
    """
    found = {}
    for at, raw in enumerate(path.read_text(encoding="utf-8").splitlines()):
        try:
            line = json.loads(raw)
            parts = [Part(list(part["labels"]), str(part["text"])) for part in line["parts"]]
            sure, lead = float(line.get("confidence", 1.0)), str(line.get("lead", ""))
            found[key(line)] = Split(lead, parts, "given", sure, line.get("caption", lead))
        except (ValueError, KeyError, TypeError) as error:
            raise SplitError(f"{path}, line {at + 1}: no split caption ({error!r})") from None
    return found
