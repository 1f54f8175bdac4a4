"""`blip pubmed split`: lines of figures -> lines of sub-figures with their part of the caption.

A figure becomes one line for each panel if caption and picture agree, else it stays one line, marked `whole`, with the
reason in `why`. Figures without a file, or with one that cannot be read, become no line and are counted. Lines are
written in the order of the input; a run that was stopped continues after the last figure that it finished.

    one figure     `FigureSplitter.lines`: caption -> parts, picture -> panels, both -> pairs, pairs -> lines and crops
    many figures   `split`: processes, progress, counts
"""

import hashlib
import io
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from itertools import islice
from pathlib import Path
from typing import Any

from PIL import Image

from blip.data.image_bytes import LIMITS, ImageLimits, UnreadableImage
from blip.data.images import open_plain
from blip.errors import BlipError
from blip.files import ReadError, checked_as, open_regular, write_one_of_many, write_whole
from blip.pubmed.claims import summary_of
from blip.pubmed.extract import SEVERAL
from blip.pubmed.lines import Figure, Line, read
from blip.pubmed.panels import gutters
from blip.pubmed.panels.caption_parts import Shared, Split
from blip.pubmed.panels.caption_readings import LONGEST
from blip.pubmed.panels.caption_readings import WEIGHTS as CAPTION_WEIGHTS
from blip.pubmed.panels.captions import SPLITTERS
from blip.pubmed.panels.detector import WEIGHTS, PanelDetector
from blip.pubmed.panels.given import key
from blip.pubmed.panels.letters import LetterReader
from blip.pubmed.panels.match import Layout, Pair, layout, match
from blip.pubmed.panels.progress import Progress
from blip.pubmed.workers import add, in_order

MOST_OF_JPEG = 65_500  # pixels of a side that Pillow writes as JPEG
UNREADABLE = 0.2  # share of images that cannot be read above which a run ends: a disk may be missing


class SplitError(BlipError):
    """Figures that cannot be split."""


@dataclass(frozen=True)
class Options:
    """How to split."""

    crops: str  # folder of the sub-figures
    weights: str | None = None  # of another detector
    read_letters: bool = False
    smallest: int = 48  # pixels of the shorter side of a sub-figure
    given: dict[str, Split] = field(default_factory=dict, hash=False)  # captions that were split elsewhere, by `key`
    captions: str = "learned"  # or "rules": how captions are divided, a name of `SPLITTERS`
    shared: Shared = "all"  # words of a sub-figure: also those that all panels share, or its "own" alone
    limits: ImageLimits = LIMITS  # of the figures' files


@dataclass
class Summary:
    """Counts of figures and of what they became: each is in `how`, or it is one of `no_file` and `unreadable`."""

    figures: int = 0
    pairs: int = 0
    how: Counter[str] = field(default_factory=Counter)  # figures by letter, place, order, file, whole
    way: Counter[str] = field(default_factory=Counter)  # figures of one file by gutters, detector, none
    why_whole: Counter[str] = field(default_factory=Counter)
    no_file: int = 0
    unreadable: int = 0
    left_out: int = 0  # panels that are too small, or too large for a file
    made_from: str = ""
    problems: list[str] = field(default_factory=list)


class FigureSplitter:
    """Splits figures: holds the detector, the reader of letters and the options."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.detector = PanelDetector(Path(options.weights) if options.weights else None)
        self.reader = LetterReader() if options.read_letters else None

    def __call__(self, image: Image.Image, split: Split) -> tuple[list[Pair], Layout]:
        """The pairs of a figure, and the panels that were found in it."""
        names = split.labels
        panels = self.detector([image])[0]
        found = layout(gutters.cut(image), panels, len(names))
        read = None
        if self.reader and len(names) > 1 and len(found.boxes) > 1:
            read = self.reader(image, panels.letters[: 2 * len(names)], names)
        return match(split, found, read, shared=self.options.shared), found

    def lines(self, at: int, line: Line, given: Split | None = None) -> tuple[list[Line], Summary]:
        """The line of a figure -> those of its parts, and their counts.

        Args:
            at: number of the line.
            given: the parts of the caption where they are known.
        """
        part = Summary(figures=1)
        if not line.get("image"):
            part.no_file = 1
            return [], part
        split = replace(given, whole=line["caption"]) if given else SPLITTERS[self.options.captions](line["caption"])
        if len(line.get("files") or []) > 1:
            return _several_files(at, line, split, part=part, shared=self.options.shared)
        try:
            image = open_plain(line["image"], self.options.limits)
        except UnreadableImage as error:
            part.unreadable, part.problems = 1, [str(error)]
            return [], part
        pairs, found = self(image, split)
        part.how[pairs[0].how] += 1
        part.way[found.way] += 1
        why = why_whole(split, found) if pairs[0].how == "whole" else ""
        if why:
            part.why_whole[why] += 1
        out = []
        for pair in pairs:
            made = {**line, "caption": pair.text, "whole_caption": line["caption"], "whole_image": line["image"],
                    "panel": pair.labels, "box": pair.box, "how": pair.how, "confidence": pair.confidence,
                    "panels": found.boxes, "row": at, **_words(split, pair.labels)}  # fmt: skip
            if why:
                made["why"] = why
            if pair.box is not None:
                crop = image.crop(pair.box)
                if min(crop.size) < self.options.smallest or max(crop.size) > MOST_OF_JPEG:
                    part.problems.append(f"{line['image']}, {pair.labels}: {crop.width} x {crop.height} pixels")
                    part.left_out += 1
                    continue
                made["image"] = _save(crop, Path(self.options.crops), line, labels=pair.labels)
            out.append(made)
        part.pairs = len(out)
        return out, part


def _words(split: Split, labels: list[str]) -> Line:
    """The words of a sub-figure by whom they belong to; {} for a whole figure."""
    if not labels:
        return {}
    return {"caption_lead": split.lead, "caption_own": split.own(labels[0]), "caption_tail": split.tail}


def _several_files(at: int, line: Line, split: Split, *, part: Summary, shared: Shared) -> tuple[list[Line], Summary]:
    """A figure of several files: each with the text of its label if there are as many labels, else the first one alone.

    In the second case the confidence is low.
    """
    names = split.labels
    about = {"whole_caption": line["caption"], "whole_image": line["image"], "box": None, "panels": [], "row": at}
    if len(names) != len(line["files"]):
        part.how["whole"] += 1
        part.why_whole[why := "several files, other number of labels"] += 1
        part.pairs = 1
        return [line | about | {"panel": [], "how": "whole", "confidence": SEVERAL, "why": why}], part
    part.how["file"] += 1
    part.pairs = len(names)
    certainty = round(0.9 * split.confidence, 3)
    about |= {"how": "file", "confidence": certainty}
    lines = []
    for name, file in zip(names, line["files"], strict=True):
        own = {"image": file, "caption": split.sentence(name, shared), "panel": [name]}
        lines.append(line | about | own | _words(split, [name]))
    return lines, part


def why_whole(split: Split, found: Layout) -> str:
    """Why a figure of one file stays whole."""
    names = split.labels
    if len(names) < 2:
        if len(split.whole) > LONGEST:
            return "caption too long to be divided"
        return "panels that the caption does not name" if len(found.boxes) > 1 else "caption of one part"
    if len(found.boxes) < 2:
        return "no panels found"
    if len(names) != len(found.boxes):
        return "other number of panels than labels"
    return f"{'places' if split.style == 'Left:' else 'letters'} contradict the panels"


def _save(crop: Image.Image, folder: Path, line: Line, *, labels: list[str]) -> str:
    """Writes a sub-figure; returns its path.

    Its name follows from its figure and its labels. Two figures of one image have different captions, or captions that
    were split elsewhere under the names of the figures.
    """
    figure = f"{line['image']} {labels} {key(line)} {line['caption']}".encode("utf-8", "surrogatepass")
    own = hashlib.sha1(figure, usedforsecurity=False).hexdigest()[:16]
    path = folder.absolute() / own[:2] / f"{own}.jpg"
    data = io.BytesIO()
    crop.save(data, "JPEG", quality=95, subsampling=0)  # full resolution of colour: fine coloured lines stay sharp
    write_one_of_many(path, data.getvalue())
    return str(path)


# ---- many figures ----------------------------------------------------------------------------------------------------


def split(pairs: Path, out: Path, options: Options, *, num_workers: int = 1,
          tell: Callable[[str], None] = lambda line: None, restart: bool = False) -> Summary:  # fmt: skip
    """Splits all figures of a file of `blip pubmed extract`.

    Args:
        pairs: a line a figure, .jsonl.
        out: .jsonl; `OUT.summary.json` has the counts.
        num_workers: processes.
        tell: receives messages about the progress.
        restart: replace the lines of a stopped run with other settings.

    Raises:
        SplitError: a line that is not a figure, or too many images that cannot be read.
        DetectorError: the weights cannot be read.
        WriteError: a file cannot be written.
    """
    if not pairs.is_file():
        raise SplitError(f"{pairs} does not exist: make it with `blip pubmed extract`")
    out.parent.mkdir(parents=True, exist_ok=True)
    splitter = FigureSplitter(options)  # also where processes make their own: errors of the weights are raised here
    function = partial(_lines, splitter) if num_workers < 2 else partial(_in_process, replace(options, given={}))
    summary = Summary(made_from=str(pairs.resolve()))
    progress = Progress(out, settings_of(pairs, options), restart=restart)
    try:
        for counts in progress.finished():
            add(summary, checked_as(counts, Summary, progress.record))
        if summary.figures:
            tell(f"continues after figure {summary.figures}")
        figures = islice(_numbered(pairs, options.given), summary.figures, None)
        for lines, part in in_order(function, figures, num_workers):
            progress.add(lines, vars(part))
            add(summary, part)
            if summary.figures % 500 == 0:
                tell(f"{summary.figures} figures, {summary.pairs} pairs")
            if summary.unreadable > max(5, UNREADABLE * summary.figures):
                progress.discard()  # so that the next run reads these images again
                raise SplitError(f"{summary.unreadable} of {summary.figures} images cannot be read, the last "
                                 f"{summary.problems[-1]}")  # fmt: skip
    finally:
        progress.close()
    write_whole(summary_of(out), json.dumps(vars(summary), indent=1) + "\n")
    progress.complete()
    return summary


def settings_of(pairs: Path, options: Options) -> dict[str, Any]:
    """What the lines depend on, weights by their content: an unfinished run with other settings is not continued."""
    weights = Path(options.weights) if options.weights else Path(__file__).with_name(WEIGHTS)
    given = hashlib.sha256(repr(sorted(options.given.items())).encode()).hexdigest()
    return {"captions": options.captions, "shared": options.shared, "read_letters": options.read_letters,
            "smallest": options.smallest, "max_bytes": options.limits.max_bytes, "crops": options.crops, "given": given,
            "pairs": _digest(pairs), "weights": _digest(weights),
            "caption_weights": _digest(CAPTION_WEIGHTS) if options.captions == "learned" else None}  # fmt: skip


def _digest(path: Path) -> str:
    with open_regular(path) as source:
        return hashlib.file_digest(source, "sha256").hexdigest()[:16]  # type: ignore[arg-type]


Numbered = tuple[int, Line, Split | None]  # number of a line, a figure, the parts of its caption where they are given


def _numbered(pairs: Path, given: dict[str, Split]) -> Iterator[Numbered]:
    try:
        for at, line in read(pairs, Figure):
            yield at, line, given.get(key(line)) if line.get("figure") else None
    except ReadError as error:
        raise SplitError(f"{error.path}, {error.place}: not a figure ({error.problem})") from None


def _lines(splitter: FigureSplitter, numbered: Numbered) -> tuple[list[Line], Summary]:
    return splitter.lines(*numbered)


def _in_process(options: Options, numbered: Numbered) -> tuple[list[Line], Summary]:
    """One figure, in a process of its own."""
    return _lines(_splitter_of_process(options), numbered)


@lru_cache(maxsize=1)
def _splitter_of_process(options: Options) -> FigureSplitter:
    """Made by the first figure of a process: it holds the weights of the detector."""
    import torch

    torch.set_num_threads(1)  # there is a process for each core
    return FigureSplitter(options)
