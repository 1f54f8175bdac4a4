"""Videos for tests, written with PyAV: frames of one grey, which says their number."""

import struct
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

STEP = 4  # grey levels from one frame to the next


def grey_frame(number: int, size: tuple[int, int] = (32, 16)) -> np.ndarray:
    return np.full((size[1], size[0], 3), 10 + STEP * number, np.uint8)


def write_video(
    path: Path,
    count: int,
    draw: Callable[[int], np.ndarray] = grey_frame,
    *,
    codec: str = "libx264",
    rate: int = 10,
    times: Sequence[int] = (),
    key_every: int = 250,
) -> Path:
    """A video of `count` frames; `draw` gives RGB of one size (H, W, 3). `times` are in tenths of a second."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(
            codec, rate=rate, options={"qmin": "1", "qmax": "3"} if codec in ("mpeg4", "libvpx") else {}
        )
        stream.bit_rate = 8_000_000  # greys stay what they are
        stream.pix_fmt, stream.codec_context.gop_size = "yuv420p", key_every
        stream.codec_context.thread_count = 1
        for number in range(count):
            frame = av.VideoFrame.from_ndarray(draw(number))
            if number == 0:
                stream.height, stream.width = frame.height, frame.width
            if times:
                frame.pts, frame.time_base = times[number], Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def numbers(images: Sequence[Image.Image]) -> list[int]:
    """The numbers of grey frames."""
    return [round((float(np.asarray(image).mean()) - 10) / STEP) for image in images]


def turned(video: Path, target: Path) -> Path:
    """A copy of an MP4 file that says: show this turned by 90 degrees clockwise."""
    data = bytearray(video.read_bytes())
    matrix = data.index(b"tkhd") + 44
    data[matrix : matrix + 36] = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)
    target.write_bytes(data)
    return target
