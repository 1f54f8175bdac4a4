"""The last step of CapFilt: scored texts that pass, and those written by people, become training data.

A text passes at a threshold of the match probability, of the cosine, or of both; or the texts of the highest match
probability pass, as many as a given share. Texts are streamed: only their scores are held in memory.
"""

import io
import itertools
import json
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from blip.capfilt.candidates import HUMAN, SYNTHETIC, WEB, ScoredLine, named, paths_of
from blip.data.image_bytes import LIMITS, ImageLimits, UnreadableImage
from blip.data.images import Source, image_format, open_image, stored_source
from blip.data.jsonl_shards import Line, read_lines, settings_of, write_jsonl
from blip.data.pairs import read_pairs
from blip.data.pictures import sources_of
from blip.data.webdataset import SIZES, shard_name, write_tar_shards
from blip.errors import BlipError
from blip.files import json_text, whole_file, write_whole
from blip.outputs import claim_output, locked, locked_file

ANNOTATION_ENDINGS = (".json", ".jsonl")
# Pillow's name of a format -> the ending of images that are copied into shards; other formats become PNG
ENDING_OF_FORMAT = {
    "JPEG": "jpg",
    "MPO": "jpg",
    "PNG": "png",
    "WEBP": "webp",
    "TIFF": "tif",
    "BMP": "bmp",
    "GIF": "gif",
}
TAR_SIZE = 1000  # pairs in a webdataset shard
COMMAND = "capfilt merge"


class MergeError(BlipError):
    """Texts that cannot be merged; the message has the reason."""


@dataclass
class Rule:
    """Which texts pass. With `fraction`, the threshold of the match probability is computed from the data."""

    match: float | None = 0.5  # least match probability
    itc: float | None = None  # least cosine
    fraction: float | None = None  # of all scored texts, those of highest match probability

    def __post_init__(self) -> None:
        if self.fraction is not None and not 0 < self.fraction <= 1:
            raise MergeError(f"fraction is {self.fraction}; it is a share, above 0 and at most 1")
        if self.match is not None and not 0 <= self.match <= 1:
            raise MergeError(f"threshold is {self.match}; a match probability lies between 0 and 1")
        if self.itc is not None and not -1 <= self.itc <= 1:
            raise MergeError(f"itc_threshold is {self.itc}; a cosine lies between -1 and 1")

    def passes(self, line: Line) -> bool:
        return (self.match is None or line["match"] >= self.match) and (self.itc is None or line["itc"] >= self.itc)


@dataclass
class Merged:
    """How many texts were kept and dropped, by source."""

    rule: Rule
    kept: Counter = field(default_factory=Counter)
    dropped: Counter = field(default_factory=Counter)
    problems: int = 0  # images that could not be read
    shards: list[str] = field(default_factory=list)  # names of the files in a folder of shards


def scored_lines(folders: Sequence[Path]) -> Iterator[Line]:
    """Lines with scores, and those with a problem.

    Raises:
        MergeError: shards or lines are not scored, or the same texts are given twice.
        ShardError: a shard or a line is damaged.
    """
    _check_scored(folders)
    for folder in folders:
        for number, line in enumerate(read_lines(folder, ScoredLine), 1):  # type: ignore[arg-type]
            if "problem" not in line:
                _check_scores(line, f"{folder}, line {number} of its shards ({paths_of(line)[0]})")
            yield line


def _check_scored(folders: Sequence[Path]) -> None:
    """MergeError for shards that are not scored, and for the same texts in two folders: they would count twice."""
    seen: dict[str, int] = {}
    for number, folder in enumerate(folders):
        settings = settings_of(folder)
        if (step := settings.get("step")) != "score":
            raise MergeError(f"{folder} holds shards of `{step}`, not of `filter`: score them first")
        for same in filter(None, (str(folder.resolve()), str(settings.get("data") or ""))):
            if (other := seen.setdefault(same, number)) != number:
                raise MergeError(f"{folders[other]} and {folder} hold scores of the same texts: give one of them")


def _check_scores(line: Line, where: str) -> None:
    """MergeError unless the match probability and the cosine are numbers in their ranges, which NaN is not."""
    for name, low in (("match", 0), ("itc", -1)):
        score = line.get(name)
        # cosines in low precision exceed 1 by rounding
        if isinstance(score, bool) or not isinstance(score, int | float) or not low - 0.01 <= score <= 1.01:
            raise MergeError(f"{where}: `{name}` is {score!r}, which is no score: run `blip capfilt filter` again")


def threshold_of(folders: Sequence[Path], fraction: float) -> float:
    """The match probability that this share of all texts reaches, but at least one text."""
    scores = np.fromiter((line["match"] for line in scored_lines(folders) if "match" in line), np.float64)
    if not len(scores):
        raise MergeError(f"{', '.join(map(str, folders))}: no text has a score")
    left_out = len(scores) - max(1, round(fraction * len(scores)))
    return float(np.partition(scores, left_out)[left_out])


def settled(rule: Rule, folders: Sequence[Path]) -> Rule:
    """The rule with its threshold, computed from the data where it has a `fraction`."""
    if rule.fraction is None:
        return rule
    return Rule(threshold_of(folders, rule.fraction), rule.itc, rule.fraction)


def merge(
    folders: Sequence[Path],
    out: Path,
    rule: Rule,
    *,
    keep: Sequence[str] = (),
    image_root: str = "",
    sources: Sequence[str] = (),
    tar_size: int = TAR_SIZE,
    limits: ImageLimits = LIMITS,
) -> Merged:
    """Writes one record a text, `{image, caption, source, round}`, and `OUT.merge.json`: rule and counts.

    Of an item of several pictures a record has `images`, and a sample of the shards all of them.

    Args:
        folders: shards of `steps.score`.
        out: .json or .jsonl, written whole or not at all; a name without ending is a folder of webdataset shards, with
            the images unchanged, whose `sizes.json` is written last.
        rule: which texts pass.
        keep: annotation files of texts written by people, all of which are kept.
        sources: of scored texts that may be kept; empty: all.
        tar_size: pairs in a webdataset shard.

    Raises:
        MergeError: wrong ending, unknown source, or nothing passes; what was there before stays.
    """
    if out.suffix and out.suffix not in ANNOTATION_ENDINGS:
        raise MergeError(
            f"{out}: merged annotations end in {' or '.join(ANNOTATION_ENDINGS)}; webdataset shards have a folder"
        )
    if unknown := [source for source in sources if source not in (WEB, SYNTHETIC)]:
        raise MergeError(f"source is {unknown[0]!r}; it can be {WEB} or {SYNTHETIC}")
    rule = settled(rule, folders)
    merged = Merged(rule)
    out.parent.mkdir(parents=True, exist_ok=True)
    lines = _records(folders, merged, keep=keep, image_root=image_root, sources=sources)
    first = next(lines, None)
    if first is None or first["source"] == HUMAN:  # those come last
        raise MergeError(f"nothing passes {rule}: of {sum(merged.dropped.values())} scored texts none is kept")
    lines = itertools.chain([first], lines)
    if out.suffix == ".jsonl":
        write_jsonl(out, lines)
    elif out.suffix == ".json":
        _write_list(out, lines)
    else:
        samples = _samples(lines, merged, limits)
        if (sample := next(samples, None)) is None:
            raise MergeError(f"{out}: none of {merged.problems} images could be read, so there are no shards")
        shards = write_tar_shards(out, itertools.chain([sample], samples), tar_size)
        merged.shards = [SIZES, *map(shard_name, range(len(shards)))]
    counts: dict[str, Any] = {"kept": merged.kept, "dropped": merged.dropped, "unreadable": merged.problems}
    write_whole(about_merged(out), json.dumps({**asdict(rule), "sources": list(sources), **counts}, indent=1) + "\n")
    return merged


def merge_to(folders: Sequence[Path], out: Path, rule: Rule, *, overwrite: bool = False, **options: Any) -> Merged:
    """`merge`, where the output may be written; options as there.

    Raises:
        OutputError: the output is not the command's own for these texts and this rule, and `overwrite` is not given.
    """
    shown: ImageLimits = options.get("limits", LIMITS)
    views = {"window": shown.window, "channels": shown.channels}
    chosen = {**asdict(rule), "sources": list(options.get("sources", ())), **{k: v for k, v in views.items() if v}}
    chosen_by = json.dumps(chosen)
    inputs = [*folders, *options.get("keep", ()), *filter(None, [options.get("image_root")]), chosen_by]
    about, is_folder = about_merged(out), not out.suffix
    own: dict[str, Any] = {"inputs": inputs, "overwrite": overwrite}
    if not is_folder:
        claim = claim_output(out, COMMAND, names=[about.name], **own)
        with locked_file(out), claim.writing() as written:
            merged = merge(folders, out, rule, **options)
            written += [out.name, about.name]
        return merged
    claim = claim_output(out, COMMAND, folder=True, names=["shard-?????.tar", SIZES], **own)
    beside = claim_output(about, COMMAND, **own)
    with locked(out), claim.writing() as written, beside.writing():
        merged = merge(folders, out, rule, **options)
        written += merged.shards
    return merged


def about_merged(out: Path) -> Path:
    """The file beside merged annotations with rule and counts; it exists when they are complete."""
    return out.parent / f"{out.name}.merge.json"


def _records(
    folders: Sequence[Path], merged: Merged, *, keep: Sequence[str], image_root: str, sources: Sequence[str]
) -> Iterator[Line]:
    """The records of the texts that pass, then those written by people; counts kept and dropped texts in `merged`."""
    for line in scored_lines(folders):
        if "problem" in line:
            merged.problems += 1
        elif merged.rule.passes(line) and (not sources or line["source"] in sources):
            merged.kept[line["source"]] += 1
            about = {"caption": line["text"], "source": line["source"], "round": line["round"]}
            yield {**named(paths_of(line)), **about}
        else:
            merged.dropped[line["source"]] += 1
    if keep:
        pairs = read_pairs(list(keep), image_root)
        for i in range(len(pairs)):
            paths = [os.path.abspath(path) for path in pairs.image_paths(i)]
            for text in pairs.captions(i):
                merged.kept[HUMAN] += 1
                yield {**named(paths), "caption": text, "source": HUMAN, "round": 0}


def _write_list(path: Path, lines: Iterator[Line]) -> None:
    """A JSON list, one record a line."""
    with whole_file(path) as file:
        for number, line in enumerate(lines):
            file.write((b",\n" if number else b"[\n") + json_text(line, None).rstrip("\n").encode())
        file.write(b"\n]\n")


def _samples(lines: Iterator[Line], merged: Merged, limits: ImageLimits) -> Iterator[dict[str, Any]]:
    """Samples of webdataset shards: the unchanged bytes of the image, and the record. Unreadable images are left out.

    An image of a format that has no ending in ENDING_OF_FORMAT becomes a PNG; so do the pictures of scans and videos.
    """
    every = replace(limits, max_pictures=sys.maxsize)  # training chooses, where an item has too many
    for line in lines:
        try:
            pictures = [_stored(source, limits) for source in sources_of(paths_of(line), every)]
        except UnreadableImage:  # or it has gone since `filter`
            merged.problems += 1
            merged.kept[line["source"]] -= 1
            continue
        if len(pictures) == 1:
            ending, data = pictures[0]
            yield {ending: data, "json": line}
        else:
            yield {**{f"{i}.{ending}": data for i, (ending, data) in enumerate(pictures)}, "json": line}


def _stored(source: Source, limits: ImageLimits) -> tuple[str, bytes]:
    """The ending and the bytes of a picture, a path or an opened one. UnreadableImage."""
    if isinstance(source, str):
        source = stored_source(source, limits)
    ending = ENDING_OF_FORMAT.get(image_format(source, limits), "")
    if ending and isinstance(source, bytes):
        return ending, source
    buffer = io.BytesIO()
    open_image(source, limits).save(buffer, "PNG")
    return "png", buffer.getvalue()
