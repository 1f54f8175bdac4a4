"""Damaged image files by seeds, each opened in every way, for tests/data/test_damaged_images.py.

    python tests/helpers/damaged_images.py FIRST_SEED LAST_SEED

Prints a line before each file, so that the last line names one that ended the process, and at the end the counts.
"""

import io
import random
import resource
import sys
from collections import Counter
from collections.abc import Iterator

import numpy as np
from PIL import Image

from blip.data.crops import Crop, open_crop
from blip.data.images import FORMATS, UnreadableImage, image_format, open_image, open_plain, open_reduced

MEMORY, SECONDS = 2 << 30, 120  # of address space; of CPU time


def whole_files() -> Iterator[tuple[str, bytes]]:
    """An image in each kind of each format that this Pillow writes."""
    grey = Image.effect_noise((48, 32), 40)
    rgb = Image.merge("RGB", (grey, grey.rotate(180), grey.transpose(Image.Transpose.FLIP_LEFT_RIGHT)))
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 200)
    floats = Image.fromarray(np.asarray(grey).astype(np.float32) / 7)
    clear = rgb.convert("RGBA")
    clear.putalpha(grey)
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a description"
    frames = {"save_all": True, "append_images": [rgb.rotate(90), rgb.rotate(10)]}
    for name, image, kind, options in (
        ("png", rgb, "PNG", {"exif": exif}),
        ("png of 16 bits", deep, "PNG", {}),
        ("png with palette", rgb.convert("P"), "PNG", {"transparency": 3}),
        ("png with alpha", clear, "PNG", {}),
        ("apng", rgb, "PNG", frames),
        ("jpeg", rgb, "JPEG", {"exif": exif}),
        ("progressive jpeg", rgb, "JPEG", {"progressive": True}),
        ("jpeg of four inks", rgb.convert("CMYK"), "JPEG", {}),
        ("mpo", rgb, "MPO", frames),
        ("tiff", rgb, "TIFF", {"exif": exif}),
        ("tiff of 16 bits", deep, "TIFF", {}),
        ("tiff of floats", floats, "TIFF", {"compression": "tiff_lzw"}),
        ("tiff of pages", rgb, "TIFF", frames),
        ("deflated tiff", rgb, "TIFF", {"compression": "tiff_adobe_deflate"}),
        ("tiff with jpeg", rgb, "TIFF", {"compression": "jpeg"}),
        ("fax", grey.convert("1"), "TIFF", {"compression": "group4"}),
        ("webp", rgb, "WEBP", {"exif": exif}),
        ("webp of frames", clear, "WEBP", {"lossless": True, **frames}),
        ("bmp", rgb, "BMP", {}),
        ("bmp with palette", rgb.convert("P"), "BMP", {}),
        ("gif", rgb.convert("P"), "GIF", {}),
        ("gif of frames", rgb, "GIF", frames),
        ("ppm", rgb, "PPM", {}),
        ("pgm of 16 bits", deep.convert("I"), "PPM", {}),
        ("jpeg 2000", rgb, "JPEG2000", {}),
        ("codestream", rgb, "JPEG2000", {"no_jp2": True}),
        ("avif", rgb, "AVIF", {"exif": exif}),
        ("avif of frames", rgb, "AVIF", frames),
    ):
        file = io.BytesIO()
        try:
            # copies, since some encoders leave their settings in the image
            more = (
                {"append_images": [frame.copy() for frame in options["append_images"]]} if "save_all" in options else {}
            )
            image.copy().save(file, kind, **{**options, **more})
        except (KeyError, OSError, ValueError):
            assert kind not in FORMATS or kind in ("AVIF", "WEBP", "JPEG2000"), name
            continue
        try:
            Image.open(io.BytesIO(file.getvalue())).load()
        except OSError:  # Pillow 10.1 does not read the MPO that it writes
            continue
        yield name, file.getvalue()


def damaged(data: bytes, other: bytes, rng: random.Random) -> bytes:
    """Changed bytes, most of them near the beginning, where headers are; cut off; or a piece of another file in it."""
    out = bytearray(data)
    way = rng.randrange(6)
    if way < 3:
        for _ in range(rng.choice((1, 2, 8, 40))):
            place = rng.randrange(len(out) if way else min(len(out), 200))
            out[place] = rng.choice((0, 1, 0x7F, 0x80, 0xFF, rng.randrange(256), out[place] ^ (1 << rng.randrange(8))))
    elif way == 3:
        del out[rng.randrange(len(out)) :]
    elif way == 4:
        at, length = rng.randrange(len(out)), rng.randrange(1, 400)
        start = rng.randrange(len(other))
        out[at : at + rng.choice((0, length))] = other[start : start + length]
    else:
        at = rng.randrange(len(out) - 4)
        out[at : at + 4] = rng.choice((b"\xff\xff\xff\xff", b"\x7f\xff\xff\xff", b"\0\0\0\0", b"\xff\xff\xff\x7f"))
    return bytes(out)


def main(first: int, last: int) -> None:
    for kind, most in ((resource.RLIMIT_AS, MEMORY), (resource.RLIMIT_CPU, SECONDS)):
        resource.setrlimit(kind, (most, most))
    counts: Counter[str] = Counter()
    files = list(whole_files())
    for seed in range(first, last):
        for at, (name, data) in enumerate(files):
            rng = random.Random(f"{seed} {name}")
            content = damaged(data, files[(at + seed) % len(files)][1], rng) if seed else data
            print(f"seed {seed}, {name}", flush=True)
            whole = True
            try:
                image = open_image(content)
                assert image.mode == "RGB" and min(image.size) > 0
                assert len(image.tobytes()) == 3 * image.width * image.height
                counts["opened"] += 1
            except UnreadableImage as error:
                assert error.reason, "a refusal without a reason"
                assert seed, f"{name} is whole: {error}"
                counts["refused"] += 1
                whole = False
            try:  # at 1/8 of its size, or whole: the same files are refused
                cropped, box = open_crop(content, Crop(None, np.empty((0, 4))), 4)
                assert whole and cropped.resize((4, 4), box=box).size == (4, 4), "a damaged file is taken"
            except UnreadableImage as error:
                assert not whole, f"not refused when it is read whole: {error}"
            for opened in (open_plain, image_format, lambda content: open_reduced(content, 8)):
                try:
                    opened(content)
                except UnreadableImage:
                    counts["refused in another way"] += 1
    print(dict(counts), len(files))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
