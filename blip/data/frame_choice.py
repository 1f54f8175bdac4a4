"""Which frames of a video are meant: `clip.mp4`, `clip.mp4#frames=8`, `clip.mp4#rate=1`. Nothing is opened here."""

import math
import os
import re
from collections.abc import Callable
from pathlib import Path, PurePath

import numpy as np

from blip.data.reference_options import number, options_of, whole_number
from blip.errors import InputError

ENDINGS = frozenset(
    (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".wmv", ".flv", ".3gp", ".ogv")
)
REFERENCE = re.compile(r"(?P<file>.+)#(?P<options>[^#/]*)", re.DOTALL)
MOST_FRAMES = 1024  # that are chosen of one video
RATES = (0.001, 1000)  # frames a second: the slowest and the fastest
OPTIONS = {
    "frames": f"frames=N, N frames spread evenly, from 1 to {MOST_FRAMES:,}",
    "rate": f"or rate=R, R frames a second, from {RATES[0]:g} to {RATES[1]:g}",
}

Choose = Callable[[np.ndarray], list[int]]  # seconds at which each frame is shown -> the frames that are taken


def is_video(path: str | Path) -> bool:
    """Whether a path or reference names a video: by the ending of its file."""
    return is_video_name(parts(str(path))[0])


def is_video_name(name: str) -> bool:
    """Whether a file is a video, by its name alone."""
    return PurePath(name).suffix.lower() in ENDINGS


def check_options(options: str) -> None:
    """InputError for options that mean no frames; "" stands for none."""
    choice(options or None, 1)


def parts(reference: str) -> tuple[str, str | None]:
    """(file, what stands behind #, which is None where the reference is a path alone)."""
    matched = REFERENCE.fullmatch(reference)
    if not matched or not is_video_name(matched["file"]) or os.path.lexists(reference):
        return reference, None
    return matched["file"], matched["options"]


def choice(options: str | None, frames: int) -> Choose:
    """What the options of a reference ask for: `frames` where there are none. InputError."""
    given = {} if options is None else options_of(options, OPTIONS, "a video")
    if len(given) > 1:
        raise InputError("frames and rate exclude each other: one of them says which frames are taken")
    if "rate" in given:
        rate = number("rate", given["rate"], *RATES, unit="frames a second")
        return lambda seconds: at_rate(seconds, rate)
    wanted = whole_number("frames", given["frames"], 1, MOST_FRAMES) if given else frames
    return lambda seconds: evenly(len(seconds), wanted)


def evenly(count: int, wanted: int) -> list[int]:
    """Which of `count` frames are taken where `wanted` are: the first of each of `wanted` equal parts.

    As published where `wanted` divides `count`; elsewhere the published step is rounded down, which leaves the end of
    a video out. All frames, each once, where there are no more than `wanted`.
    """
    wanted = min(wanted, count)
    return [i * count // wanted for i in range(wanted)]


def at_rate(seconds: np.ndarray, rate: float) -> list[int]:
    """Which frames are shown at 0, 1 / rate, 2 / rate ... seconds after the first, each once."""
    ticks = (seconds - seconds[0]) * rate
    first = np.ceil(ticks - 1e-6)  # the number of the first tick at which a frame can be shown
    before = np.append(first[1:], math.floor(ticks[-1] + 1e-6) + 1)  # that of the next frame
    taken = np.flatnonzero(first < before).tolist()
    if len(taken) > MOST_FRAMES:
        raise InputError(f"it has {len(taken):,} frames at a rate of {rate:g}; at most {MOST_FRAMES:,} are taken")
    return taken
