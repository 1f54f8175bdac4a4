"""Generated figures for training, drawn once and kept in files.

A figure is drawn from its own seed, so that the files do not depend on the number of processes.
"""

import hashlib
import json
import multiprocessing
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from blip.files import write_whole
from blip.pubmed.panels.compose import compose
from blip.pubmed.panels.detector import ALPHABET, SIDE, prepare

MOST = 40  # panels of a figure, and letters
PARTS = ("compose", "drawings", "layouts", "order", "plots", "singles", "solids", "drawn_figures")  # modules that draw


@dataclass
class Drawn:
    """Figures in files; the pixels stay there and are read where they are needed."""

    pixels: np.ndarray  # (figures, 384, 384, 3) bytes
    boxes: np.ndarray  # (figures, 40, 4) in those pixels, padded with NaN
    letters: np.ndarray  # (figures, 40, 3): x and y in those pixels, and 0 for A, 1 for B, ...; padded with NaN


def draw(seed: int, images: list[Path]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One figure: pixels (384, 384, 3), boxes (40, 4) and letters (40, 3), as in `Drawn`."""
    figure = compose(np.random.default_rng(seed), images)
    pixels, scale = prepare(figure.image)
    boxes, letters = np.full((MOST, 4), np.nan, np.float32), np.full((MOST, 3), np.nan, np.float32)
    for into, what in ((boxes, figure.boxes), (letters[:, :2], figure.letters)):
        some = np.array(what[:MOST], np.float32).reshape(-1, into.shape[1]) * scale
        into[: len(some)] = some
    letters[:, 2] = np.arange(MOST) % ALPHABET
    letters[len(figure.letters) :] = np.nan
    return pixels, boxes, letters


def drawn(folder: Path, seeds: range, images: list[Path], *, num_workers: int) -> Drawn:
    """A figure for each seed: from the files in `folder` if these hold the same ones, else drawn and written there.

    Args:
        images: photographs and scans that are used as panels beside drawings.
        num_workers: processes that draw.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names, about = [folder / f"{part}.npy" for part in ("pixels", "boxes", "letters")], folder / "figures.json"
    wanted = _settings(seeds, images)
    if not about.exists() or json.loads(about.read_text()) != wanted:
        about.unlink(missing_ok=True)
        shapes = ((SIDE, SIDE, 3), (MOST, 4), (MOST, 3))
        kinds = zip(names, (np.uint8, np.float32, np.float32), shapes, strict=True)
        parts = [np.lib.format.open_memmap(name, "w+", dtype, (len(seeds), *shape)) for name, dtype, shape in kinds]
        one = partial(draw, images=images)
        if num_workers < 2:
            _fill(parts, map(one, seeds))
        else:
            with multiprocessing.get_context("spawn").Pool(num_workers) as pool:
                _fill(parts, pool.imap(one, seeds, chunksize=32))
        write_whole(about, json.dumps(wanted))
    return Drawn(*(np.load(name, mmap_mode="r") for name in names))


def _fill(parts: list[np.memmap], figures: Iterable[tuple[np.ndarray, ...]]) -> None:
    for at, figure in enumerate(figures):
        for part, one in zip(parts, figure, strict=True):
            part[at] = one
    for part in parts:
        part.flush()


def _settings(seeds: range, images: list[Path]) -> dict[str, str]:
    """What the figures depend on: seeds, photographs, and the code that draws."""
    own = Path(__file__).parent
    code = hashlib.sha256(b"".join((own / f"{part}.py").read_bytes() for part in PARTS)).hexdigest()
    photos = hashlib.sha256(repr([(path.name, path.stat().st_size) for path in images]).encode()).hexdigest()
    return {"seeds": str(seeds), "photographs": photos, "code": code}
