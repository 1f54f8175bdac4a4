"""Which outputs the steps may write, and their records and locks; `blip.outputs` has the rules.

Lines that earlier versions wrote have no record: `split` recognises them by their summary, `build` by build.json.
"""

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from blip.data.images import ENDINGS
from blip.files import ReadError, read_json
from blip.outputs import Output, OutputError, claim_output, has_record, locked, locked_file
from blip.pubmed.lines import Figure, read
from blip.pubmed.rules import NAMES, Rules

SPLIT, EXTRACT, BUILD = "pubmed split", "pubmed extract", "pubmed build"
FILES = (*(f"{name}.json" for name in NAMES), "credits.csv", "build.json", "README.md")  # of a data set
SHARDS = ("shards/*/shard-?????.tar", "shards/*/sizes.json")


def summary_of(out: Path) -> Path:
    """The file with the counts, beside lines."""
    return out.parent / f"{out.name}.summary.json"


# ---- lines -----------------------------------------------------------------------------------------------------------


def claim_lines(
    out: Path, command: str, inputs: Iterable[str | Path], *, overwrite: bool = False, known: bool = False
) -> Output:
    """`claim_output` for a file of lines and its summary; OutputError too for the name of an image."""
    if out.suffix.lower() in ENDINGS:
        raise OutputError(f"{out} is the name of an image: give one that ends in .jsonl")
    names = [summary_of(out).name]
    known = known and not has_record(out)
    return claim_output(out, command, inputs=inputs, names=names, overwrite=overwrite, known=known)


@contextmanager
def writing_lines(claim: Output) -> Iterator[None]:
    """Within this block the claimed lines and their summary are written, by this process alone."""
    with locked_file(claim.path), claim.writing() as written:
        yield
        written += [claim.path.name, summary_of(claim.path).name]


@contextmanager
def splitting(
    pairs: Path,
    out: Path,
    crops: Path,
    inputs: Iterable[str | Path] = (),
    *,
    overwrite: bool = False,
    known: bool = False,
) -> Iterator[None]:
    """`claim_lines` and `writing_lines` for the lines of `split` and the folder of its sub-figures.

    Args:
        inputs: what is read besides `pairs`.
        known: the lines are the caller's own.
    """
    if not out.suffix:
        raise OutputError(f"{out}: the sub-figures go to a folder of this name; call the lines {out}.jsonl, say")
    inputs = [os.path.abspath(pairs), *inputs]
    with suppress(ReadError):
        summary = read_json(summary_of(out), dict[str, Any])
        known = known or summary.get("made_from") == str(pairs.resolve())
    claim = claim_lines(out, SPLIT, inputs, overwrite=overwrite, known=known)
    known = known and not has_record(crops, folder=True)
    folder = claim_output(crops, SPLIT, inputs=inputs, folder=True, overwrite=overwrite, known=known or claim.own)
    if not folder.own:
        _refuse_figures_in(crops, pairs)
    new = not crops.exists()
    with writing_lines(claim):
        folder.done([])  # a mark, by which the same command knows the folder after an error too
        try:
            yield
        finally:
            for path in crops.glob("*/.*.jpg.*.partial"):  # of processes that were killed
                path.unlink(missing_ok=True)
            if new and len(os.listdir(crops)) == 1:  # the mark alone
                shutil.rmtree(crops)


def _refuse_figures_in(crops: Path, pairs: Path) -> None:
    """OutputError where a folder for sub-figures holds images of the figures."""
    folders: dict[str, str] = {}  # of the figures, and one of each
    if crops.is_dir() and os.listdir(crops):
        with suppress(ReadError):  # `split` tells which line is damaged
            for _, line in read(pairs, Figure):
                for name in filter(None, [line["image"], *(line.get("files") or [])]):
                    folders.setdefault(os.path.dirname(name), name)
    inside = os.path.join(os.path.realpath(crops), "")
    for folder, name in folders.items():
        if os.path.join(os.path.realpath(folder), "").startswith(inside):
            raise OutputError(
                f"{crops}, the folder for sub-figures, holds {name}, an input of this command: choose another output"
            )


# ---- data sets -------------------------------------------------------------------------------------------------------


def claim_build(
    pairs: Path, out: Path, rules: Rules, *, decontaminate: Iterable[Path] = (), overwrite: bool = False
) -> Output:
    """`claim_output` for a data set: its rules, which are checked, count among the inputs."""
    rules.check()
    places, kept = [str(place) for place in decontaminate], _as_json(rules)
    inputs = [os.path.abspath(pairs), *places, json.dumps(kept)]
    known = False
    if not has_record(out, folder=True):
        with suppress(ReadError):
            built = read_json(out / "build.json", dict[str, Any])
            header = (built.get("pairs_file"), built.get("rules"), built.get("decontaminated"))
            known = header == (str(pairs.resolve()), kept, places)
    return claim_output(
        out, BUILD, inputs=inputs, folder=True, overwrite=overwrite, known=known, names=[*FILES, *SHARDS]
    )


@contextmanager
def building(claim: Output, shards: bool) -> Iterator[None]:
    """Within this block the claimed data set is written, by this process alone.

    Args:
        shards: with webdataset shards; without, those of an earlier run stay.
    """
    with locked(claim.path), claim.writing() as written:
        yield
        written += FILES
        if not shards:
            written += [name for name in claim.before if name.startswith("shards/")]
        for sizes in claim.path.glob("shards/*/sizes.json") if shards else ():
            here = sizes.relative_to(claim.path)
            names = [name for name in read_json(sizes, dict[str, Any]) if name.endswith(".tar")]
            written += [here, *(here.with_name(name) for name in names)]
    for place in sorted(claim.path.glob("shards/*")):
        with suppress(OSError):
            place.rmdir()  # empty: its shards were of an earlier run


def _as_json(rules: Rules) -> dict[str, Any]:
    return json.loads(json.dumps(asdict(rules)))
