"""Frames of videos, spread evenly, as pictures of one item: `clip.mp4`, `clip.mp4#frames=8`, `clip.mp4#rate=1`.

A first pass reads the packets without decoding them and notes when each frame is shown: what headers say of the number
of frames is often absent or wrong. A second pass decodes what lies before the last chosen frame, from the key frame
before each choice where the format can be entered there. No more than the chosen frames are held in memory.
Needs PyAV, the extra `video`.
"""

import io
import math
import os
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from blip.data.decoding_cost import check_size
from blip.data.frame_choice import Choose, choice, parts
from blip.data.image_bytes import LIMITS, ImageLimits, UnreadableImage
from blip.errors import InputError
from blip.files import ReadError, open_regular

MOST_PACKETS = 1 << 20  # of one video: 10 hours at 30 frames a second
WHOLE = 0.9  # a video with a smaller share of the frames that its header counts was cut short
# FFmpeg's names of the formats that are read, whatever a file's name says: play lists, for one, name further addresses
FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpeg,mpegts,mpegvideo,asf,flv,ogg,h264,hevc,ivf"
ENTERED = ("mov", "matroska")  # formats whose index finds a key frame exactly
UPRIGHT = {90: Image.Transpose.ROTATE_90, 180: Image.Transpose.ROTATE_180, 270: Image.Transpose.ROTATE_270}
NEEDS_AV = "reading videos needs PyAV: pip install -e '.[video]'"


def open_frames(reference: str | Path, limits: ImageLimits = LIMITS) -> list[Image.Image]:
    """The chosen frames of a video in their order, 8-bit RGB, upright.

    Args:
        reference: FILE, FILE#frames=N (N frames, spread evenly) or FILE#rate=R (R frames a second).
        limits: of the pixels of a frame; and its `frames`, how many are taken where the reference does not say. A video
            of fewer frames gives all that it has.

    Raises:
        UnreadableImage: missing, not a regular file, empty, cut short, not a video of FORMATS, too long, with frames
            larger than `limits` allow, or a reference that means nothing.
        InputError: PyAV is not installed.
    """
    name, library = str(reference), _pyav()
    path, options = parts(name)
    with _errors(name):
        choose = choice(options, limits.frames)
        with open_regular(path) as file:
            if os.fstat(file.fileno()).st_size == 0:
                raise InputError("the file is empty")
            return _Video(library, file, limits).pictures(choose)


def open_video(
    name: str,
    data: bytes,
    options: str = "",
    *,
    limits: ImageLimits = LIMITS,
    fewer: Callable[[int], list[int]],
    seconds: float = math.inf,
) -> list[Image.Image]:
    """The chosen frames of a video in memory.

    Args:
        name: for errors.
        options: what stands behind # in references, such as frames=16; "" for the `frames` of `limits`.
        fewer: which of so many chosen frames are decoded.
        seconds: for decoding, before it is given up.

    Raises:
        UnreadableImage, InputError: as in `open_frames`; or it took too long.
    """
    library = _pyav()
    with _errors(name):
        choose = choice(options or None, limits.frames)
        if not data:
            raise InputError("the file is empty")
        opened = _Video(library, io.BytesIO(data), limits, time.monotonic() + seconds)

        def some(shown: np.ndarray) -> list[int]:
            chosen = choose(shown)
            return [chosen[place] for place in fewer(len(chosen))]

        return opened.pictures(some)


@contextmanager
def _errors(name: str) -> Iterator[None]:
    """Errors of the block as those of a reference."""
    try:
        yield
    except ReadError as error:
        missing = isinstance(error.__cause__, FileNotFoundError)
        raise UnreadableImage(name, "no such file" if missing else error.problem) from None
    except InputError as error:
        raise UnreadableImage(name, str(error)) from None
    except MemoryError:
        raise UnreadableImage(name, "takes more memory than this process can have") from None
    except Exception as error:  # on broken files FFmpeg's errors are of many kinds
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise UnreadableImage(name, f"not a video that can be decoded, or a broken one ({reason})") from error


def _pyav() -> ModuleType:
    try:
        import av
    except ImportError:
        raise InputError(NEEDS_AV) from None
    return av


@dataclass
class _Timeline:
    """When the frames of a video are shown: `shown` in units of the stream, ascending, or None where that is not sure;
    `seconds` likewise; `keys` are the entries of `shown` at which decoding can begin."""

    seconds: np.ndarray
    shown: np.ndarray | None
    keys: np.ndarray


@dataclass
class _Video:
    """An open file and the library that decodes it."""

    library: ModuleType
    file: BinaryIO
    limits: ImageLimits
    end: float = math.inf  # of `time.monotonic`, when decoding is given up

    def pictures(self, choose: Choose) -> list[Image.Image]:
        timeline = self._timeline()
        chosen = choose(timeline.seconds)
        if timeline.shown is not None and (found := self._entered(timeline, chosen)):
            return found
        found, decoded = self._in_order(chosen)
        if len(found) < len(chosen) and decoded:  # more packets than frames
            found, decoded = self._in_order(choose(timeline.seconds[:decoded]))
        if not found:
            raise InputError("it holds no frame that can be decoded")
        return found

    @contextmanager
    def _stream(self) -> Iterator[tuple[Any, Any]]:
        """(container, video stream) at the beginning of the file."""
        self.file.seek(0)
        with self.library.open(self.file, container_options={"format_whitelist": FORMATS}) as container:
            stream = container.streams.best("video")
            if stream is None:
                raise InputError("it holds no video")
            check_size((stream.width or 0, stream.height or 0), self.limits.max_pixels)
            stream.codec_context.thread_count = 1  # loaders have one process a core
            yield container, stream

    def _timeline(self) -> _Timeline:
        """The first pass: packets alone."""
        shown: list[int | None] = []
        keys = []
        with self._stream() as (container, stream):
            for packet in container.demux(stream):
                if not packet.size or packet.is_discard:
                    continue
                if packet.size > self.limits.max_bytes:
                    raise InputError(f"a frame takes {packet.size:,} bytes; at most {self.limits.max_bytes:,} are read")
                shown.append(packet.pts)
                keys += [packet.pts] if packet.is_keyframe else []
                if len(shown) > MOST_PACKETS:
                    raise InputError(f"it has more than {MOST_PACKETS:,} frames: cut it into parts")
            count, rate = len(shown), float(stream.average_rate or 25)
            if not count:
                raise InputError("it holds no frames")
            if stream.frames and count < WHOLE * stream.frames:
                raise InputError(f"it is cut short: {count:,} of {stream.frames:,} frames")
            if None in shown or stream.time_base is None:
                return _Timeline(np.arange(count) / rate, None, np.empty(0))
            times = np.sort(np.array(shown, dtype=np.int64))
            seconds = times * float(stream.time_base)
            if (whole := _seconds(stream.metadata.get("DURATION", ""))) and seconds[-1] + 2 / rate < WHOLE * whole:
                raise InputError(f"it is cut short: {seconds[-1]:.1f} of {whole:.1f} seconds")
            enter = container.format.name.startswith(ENTERED) and len(np.unique(times)) == count
            return _Timeline(seconds, times if enter else None, np.array(sorted(keys), dtype=np.int64))

    def _entered(self, timeline: _Timeline, chosen: list[int]) -> list[Image.Image]:
        """The chosen frames, decoded from the key frame before each; nothing where one of them is not found so."""
        assert timeline.shown is not None
        found: list[Image.Image] = []
        with self._stream() as (container, stream):
            frames, position = container.decode(stream), None
            for wanted in timeline.shown[chosen].tolist():
                before = timeline.keys[timeline.keys <= wanted]
                if len(before) and (position is None or before[-1] > position):
                    container.seek(int(before[-1]), stream=stream, backward=True)
                    frames = container.decode(stream)
                for frame in self._in_time(frames):
                    position = frame.pts
                    if position is None or position >= wanted:
                        break
                if position != wanted:
                    return []
                found.append(self._picture(frame))
        return found

    def _in_order(self, chosen: list[int]) -> tuple[list[Image.Image], int]:
        """(the chosen frames, the number of frames that were decoded); fewer where the video has fewer."""
        found: list[Image.Image] = []
        decoded = 0
        with self._stream() as (container, stream):
            for frame in self._in_time(container.decode(stream)):
                if decoded == chosen[len(found)]:
                    found.append(self._picture(frame))
                decoded += 1
                if len(found) == len(chosen):
                    break
        return found, decoded

    def _in_time(self, frames: Iterator[Any]) -> Iterator[Any]:
        for frame in frames:
            if time.monotonic() > self.end:
                raise InputError("it takes too long to decode: cut it, or save it as MP4, of which parts can be read")
            yield frame

    def _picture(self, frame: Any) -> Image.Image:
        check_size((frame.width, frame.height), self.limits.max_pixels)  # it may change in the middle of a video
        image = frame.to_image()
        turn = UPRIGHT.get(round(frame.rotation) % 360)
        return image if turn is None else image.transpose(turn)


def _seconds(text: str) -> float:
    """The length that Matroska's tag says, such as 00:01:02.5; 0 where it says none."""
    matched = re.match(r"(\d+):(\d+):(\d+(?:\.\d+)?)", text)
    return sum(float(part) * unit for part, unit in zip(matched.groups(), (3600, 60, 1), strict=True)) if matched else 0
