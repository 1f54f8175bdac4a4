"""One function opens every image: regular files, a list of formats, bounded sizes and memory, upright pixels."""

import io
import os
import re
import socket
import struct
import subprocess
import sys
import textwrap
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers.running import ROOT
from PIL import Image

from blip.data import decoding_cost, grey_levels, image_bytes, images
from blip.data.image_bytes import ImageLimits, UnreadableImage, read_image
from blip.data.images import find_images, image_format, open_image, open_plain, open_reduced, plain, to_rgb

GREY = np.linspace(0, 255, 30 * 20).reshape(20, 30).astype(np.uint8)


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


# ---- where images are opened -----------------------------------------------------------------------------------------


def test_no_other_module_opens_images() -> None:
    openers = {
        path.relative_to(ROOT).as_posix()
        for path in (ROOT / "blip").rglob("*.py")
        if re.search(r"\bImage\s*\.\s*open\b|from PIL\.Image import|\bimread\b|ImageFile\.Parser", path.read_text())
    }
    assert openers == {"blip/data/image_formats.py"}  # which `opened` of images.py calls


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n(x) show\nshowpage\n"


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (POSTSCRIPT, "PostScript"),
        (
            b"\xc5\xd0\xd3\xc6" + struct.pack("<6I", 32, len(POSTSCRIPT), 0, 0, 0, 0) + b"\0\0\0\0" + POSTSCRIPT,
            "PostScript",
        ),
        (saved(Image.fromarray(GREY), "PDF"), "PDF"),
        (saved(Image.fromarray(GREY).convert("RGB"), "DDS"), "DDS"),
        (saved(Image.fromarray(GREY), "ICO"), "not an image"),
        (saved(Image.fromarray(GREY).convert("RGB"), "SGI"), "not an image"),
        (saved(Image.fromarray(GREY), "ICNS" if sys.platform == "darwin" else "TGA"), "not an image"),
        (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG"),
    ],
)
def test_other_formats_are_refused_whatever_the_name(
    tmp_path: Path, content: bytes, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    started = []
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: started.append(a))
    monkeypatch.setattr(subprocess, "check_call", lambda *a, **k: started.append(a))
    path = tmp_path / "x.png"
    path.write_bytes(content)
    for opened in (open_image, open_plain, image_format, lambda path: open_reduced(path, 8)):
        with pytest.raises(UnreadableImage, match=kind):
            opened(path)
    assert not started


@pytest.mark.parametrize(
    ("kind", "mode"),
    [("PNG", "RGB"), ("JPEG", "RGB"), ("JPEG", "CMYK"), ("MPO", "RGB"), ("TIFF", "RGB"), ("WEBP", "RGB"),
     ("BMP", "RGB"), ("GIF", "P"), ("PPM", "RGB"), ("PPM", "L"), ("PPM", "1"), ("JPEG2000", "RGB"), ("AVIF", "RGB")],
)  # fmt: skip
def test_formats_that_are_read(kind: str, mode: str) -> None:
    if kind == "AVIF" and "AVIF" not in images.FORMATS:
        pytest.skip("this Pillow has no AVIF")
    try:
        content = saved(Image.fromarray(GREY).convert("RGB").convert(mode), kind)
    except (KeyError, OSError) as error:
        pytest.skip(f"this Pillow writes no {kind}: {error}")
    assert open_image(content).size == (30, 20)
    assert open_image(content).mode == "RGB"
    assert open_plain(content).size == open_reduced(content, 4)[1] == (30, 20)


def test_regular_files_alone_are_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "empty.png").touch()
    (tmp_path / "device.png").symlink_to("/dev/zero")
    (tmp_path / "loop.png").symlink_to("loop.png")
    with socket.socket(socket.AF_UNIX) as own:
        own.bind(str(tmp_path / "socket.png"))
    reasons = {"pipe": "regular", "folder": "folder", "empty": "empty", "device": "regular", "loop": "symbolic",
               "socket": "", "none": "no such file", "x" * 300: "too long", "nul\0": "null"}  # fmt: skip
    for name, reason in reasons.items():
        for opened in (open_image, read_image):
            with pytest.raises(UnreadableImage, match=f"(?i){reason}") as caught:
                opened(f"{tmp_path}/{name}.png")
            assert caught.value.path == f"{tmp_path}/{name}.png"
    found = {path.name for path in find_images([tmp_path])}
    assert "pipe.png" in found and "folder.png" not in found  # a pipe is named when it is opened
    with pytest.raises(images.NoImages, match="not a regular file"):
        find_images([tmp_path / "pipe.png"])


def test_what_is_no_picture_at_all_is_named() -> None:
    for other in (None, 3, ["a.png"]):
        with pytest.raises(UnreadableImage, match=f"an image of PIL, not {type(other).__name__}"):
            open_image(other)  # type: ignore[arg-type]


def test_the_size_of_a_file_is_limited(tmp_path: Path) -> None:
    path = tmp_path / "sparse.tif"
    content = saved(Image.fromarray(GREY), "TIFF")
    with open(path, "wb") as file:
        file.write(content)
        file.truncate(1 << 40)  # takes no room on the disk
    with pytest.raises(UnreadableImage, match=r"1,099,511,627,776 bytes; at most 536,870,912 .*max_image_mb"):
        open_image(path)
    with open(path, "r+b") as file:
        file.truncate(3 << 20)
    with pytest.raises(UnreadableImage, match="at most 2,097,152"):
        open_image(path, ImageLimits.of_mb(2))
    with pytest.raises(UnreadableImage, match="at most"):
        open_image(path.read_bytes(), ImageLimits.of_mb(2))
    assert open_image(path, ImageLimits.of_mb(3)).size == (30, 20)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP", "BMP", "GIF", "PPM", "JPEG2000", "AVIF"])
def test_large_files_are_decoded_part_by_part_to_the_same_pixels(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind not in images.FORMATS:
        pytest.skip(f"this Pillow has no {kind}")
    path = tmp_path / "image"
    path.write_bytes(saved(Image.effect_noise((200, 100), 50).convert("P" if kind == "GIF" else "RGB"), kind))
    whole = open_image(path)
    monkeypatch.setattr(image_bytes, "AT_ONCE", 0)
    assert open_image(path).tobytes() == whole.tobytes()


def _png_of_size(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(100_000, 100_000), (2**31 - 1, 2**31 - 1), (1, 2**31 - 1), (12_000, 12_000)])
def test_bombs_are_refused_before_their_pixels_are_read(size: tuple[int, int]) -> None:
    with pytest.raises(UnreadableImage):
        open_image(_png_of_size(*size))


@pytest.mark.parametrize(
    "error",
    [struct.error("x"), SyntaxError("x"), OverflowError("x"), zlib.error("x"), RecursionError(), MemoryError(),
     RuntimeError("Failed to decode frame 0: Truncated data"), KeyError("x"), AssertionError(), IndexError()],
)  # fmt: skip
def test_whatever_a_decoder_raises_is_the_fault_of_the_image(
    error: BaseException, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise error

    content = saved(Image.fromarray(GREY), "PNG")
    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", fail)
    for opened in (open_image, open_plain, lambda content: open_reduced(content, 8)):
        with pytest.raises(UnreadableImage):
            opened(content)


@pytest.mark.parametrize(
    ("kind", "options"),
    [("PNG", {}), ("TIFF", {"compression": "tiff_lzw"}), ("TIFF", {"compression": "tiff_deflate"}), ("JPEG2000", {}),
     ("GIF", {})],
)  # fmt: skip
def test_broken_pixels_are_an_error_and_never_black_ones(kind: str, options: dict[str, str]) -> None:
    """Pillow tells of them at the first reading alone, and gives the pixels that it has at the second."""
    content = saved(Image.effect_noise((200, 150), 60), kind, **options)
    refused = 0
    for place in range(len(content) // 4, len(content) * 3 // 4, len(content) // 40):
        changed = content[:place] + bytes([content[place] ^ 0xFF, content[place + 1] ^ 0xFF]) + content[place + 2 :]
        for broken in (changed, content[:place]):
            try:
                Image.open(io.BytesIO(broken)).load()
            except (OSError, SyntaxError):
                refused += 1
                for opened in (open_image, open_plain, lambda content: open_reduced(content, 8)):
                    with pytest.raises(UnreadableImage):
                        opened(broken)
    assert refused


def test_formats_whose_decoders_take_much_memory_have_fewer_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    rgb = Image.fromarray(GREY).convert("RGB")
    monkeypatch.setattr(decoding_cost, "MEMORY", 11 * GREY.size)
    for image, kind in ((rgb, "WEBP"), (rgb, "JPEG2000"), (rgb.convert("CMYK"), "JPEG")):
        with pytest.raises(UnreadableImage, match=rf"30 x 20 pixels; of {kind}, .* at most \d+ are read"):
            open_image(saved(image, kind))
    for image, kind in (
        (rgb, "PNG"),
        (rgb, "JPEG"),
        (Image.fromarray(GREY), "JPEG2000"),
        (rgb.convert("CMYK"), "TIFF"),
    ):
        open_image(saved(image, kind))


def test_a_jpeg_of_thousands_of_scans_is_refused() -> None:
    content = saved(Image.effect_noise((1000, 1000), 60).convert("L"), "JPEG", progressive=True, quality=5)
    last = content[content.rindex(b"\xff\xda") : -2][:14]
    assert open_image(content[:-2] + last * 100 + b"\xff\xd9").size == (1000, 1000)
    with pytest.raises(UnreadableImage, match="more than 500 scans"):
        open_image(content[:-2] + last * 60_000 + b"\xff\xd9")


def test_what_pillow_says_of_odd_files_does_not_reach_the_terminal(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    whole = saved(Image.fromarray(GREY), "JPEG", exif=exif)
    at = whole.index(b"Exif\0\0") + 6
    (tmp_path / "warning.jpg").write_bytes(whole[:at] + whole[at : at + 4] + b"\0\xff\0\0" + whole[at + 8 :])
    tiff = saved(Image.fromarray(GREY).convert("RGB"), "TIFF")
    samples = struct.pack("<HHIHH", 277, 3, 1, 3, 0)
    assert samples in tiff
    (tmp_path / "logged.tif").write_bytes(tiff.replace(samples, struct.pack("<HHIHH", 277, 3, 1, 60_000, 0)))
    code = "import sys; from blip.data.images import open_or_problem; [open_or_problem(p) for p in sys.argv[1:]]"
    command = [sys.executable, "-W", "default", "-c", code, *map(str, sorted(tmp_path.iterdir()))]
    assert subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stderr == ""


# ---- upright pixels --------------------------------------------------------------------------------------------------

TURNS: dict[int, Callable[[np.ndarray], np.ndarray]] = {  # orientation -> from stored to upright pixels
    1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud, 5: lambda a: a.T,
    6: lambda a: np.rot90(a, -1), 7: lambda a: np.rot90(a, 2).T, 8: np.rot90,
}  # fmt: skip


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", TURNS)
def test_every_orientation_becomes_upright(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100}}.get(kind, {})
    content = saved(Image.fromarray(np.kron(GREY, np.ones((16, 16), np.uint8))), kind, exif=exif, **options)
    upright = np.kron(TURNS[orientation](GREY), np.ones((16, 16), np.uint8)).astype(int)
    assert np.abs(np.asarray(open_image(content))[..., 0] - upright).max() < 8
    assert np.abs(np.asarray(open_plain(content).convert("L")) - upright).max() < 8
    reduced, size = open_reduced(content, 60)
    assert size == upright.shape[::-1]
    assert (reduced.width < reduced.height) == (size[0] < size[1])
    small = np.asarray(Image.fromarray(upright.astype(np.uint8)).resize(reduced.size, Image.Resampling.BOX)).astype(int)
    assert np.abs(np.asarray(reduced.convert("L")) - small).max() < 12


def test_an_image_that_is_given_is_not_changed() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    given = Image.open(io.BytesIO(saved(Image.fromarray(GREY), "JPEG", exif=exif)))
    deep = Image.fromarray(GREY.astype(np.uint16) * 7)
    before = given.tobytes(), deep.tobytes()
    assert to_rgb(given).size == open_image(given).size == (20, 30)
    assert plain(given).size == (30, 20)
    to_rgb(deep), plain(deep)
    assert (given.size, given.tobytes(), deep.tobytes()) == ((30, 20), *before)
    rgb = Image.new("RGB", (4, 4))
    to_rgb(rgb).putpixel((0, 0), (255, 0, 0))
    assert rgb.getpixel((0, 0)) == (0, 0, 0)


# ---- strips give what the whole image gives --------------------------------------------------------------------------


def slow_window(values: np.ndarray) -> np.ndarray:
    values = values.astype(np.float64)
    finite = values[np.isfinite(values)]
    if finite.size == 0:
        return np.zeros(values.shape, np.uint8)
    low, high = np.percentile(finite, (0.5, 99.5))
    if low == high:
        low, high = finite.min(), finite.max()
    if low == high:
        return np.zeros(values.shape, np.uint8)
    scaled = (np.nan_to_num(values, nan=low, posinf=high, neginf=low).clip(low, high) - low) / (high - low)
    return np.round(scaled * 255).astype(np.uint8)


def slow_range(values: np.ndarray) -> np.ndarray:
    values = values.astype(np.float64)
    low, high = np.nanmin(values), np.nanmax(values)
    return np.nan_to_num((values - low) * 255 / max(1e-9, high - low)).astype(np.uint8)


def _values(seed: int, kind: str) -> np.ndarray:
    rng = np.random.default_rng(seed)
    height, width = (int(n) for n in rng.integers(1, 60, 2))
    if np.dtype(kind).kind == "f":
        values = rng.standard_normal((height, width)) * 10.0 ** rng.integers(-30, 30)
        values = values.round(int(rng.integers(0, 4))) if seed % 3 else values
        odd = rng.random((height, width)) < (0, 0.05, 0.9)[seed % 3]
        values[odd] = rng.choice([np.nan, np.inf, -np.inf, 0.0, -0.0, 1e-40], odd.sum())
        return values.astype(kind)
    kind, order = kind.replace(">", "<"), kind
    about = np.iinfo(kind)
    low, high = sorted(int(n) for n in rng.integers(about.min, about.max, 2, dtype=kind, endpoint=True))
    high = max(low, min(high, low + 7)) if seed % 2 else high
    return rng.integers(low, high, (height, width), dtype=kind, endpoint=True).astype(order)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("strip", [1, 64, 1 << 21])
@pytest.mark.parametrize("kind", ["<u2", ">u2", "i2", "u1", "i4", "u4", "f2", "f4", "f8"])
def test_windows_are_those_of_sorted_values(kind: str, strip: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grey_levels, "STRIP", strip)
    for seed in range(40):
        values = _values(seed, kind)
        assert np.array_equal(grey_levels.window(values), slow_window(values)), seed
        if np.isfinite(values.astype(np.float64)).all():
            assert np.array_equal(grey_levels.whole_range(values), slow_range(values)), seed


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I", "F", "RGBA", "LA", "PA", "P", "La", "RGBa", "CMYK", "1", "L"])
def test_pixels_do_not_depend_on_strips(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    noise = Image.effect_noise((37, 23), 60)
    if mode.startswith("I;16"):
        image = Image.frombytes(mode, noise.size, (np.asarray(noise).astype(np.uint16) * 199).tobytes())
    elif mode in ("RGBA", "LA", "P", "PA", "La", "RGBa"):
        image = Image.merge("LA", (noise, noise.rotate(180)))
        image = image if mode in ("LA", "P") else image.convert({"La": "La", "PA": "PA"}.get(mode, "RGBA"))
        image = image.convert(mode) if mode != "P" else noise.convert("P")
        if mode == "P":
            image.info["transparency"] = 100
    else:
        image = noise.convert(mode)
    assert image.mode == mode
    before = to_rgb(image).tobytes(), plain(image).tobytes()
    for module in (grey_levels, images):
        monkeypatch.setattr(module, "STRIP", 50)
    assert (to_rgb(image).tobytes(), plain(image).tobytes()) == before
    clear = Image.new("RGBA", (37, 23), (9, 8, 7, 0))
    assert to_rgb(clear).getcolors() == [(37 * 23, (9, 8, 7))]
    assert plain(clear).getcolors() == [(37 * 23, (255, 255, 255))]


# ---- memory ----------------------------------------------------------------------------------------------------------

MEMORY = """
    import re, resource, sys
    from pathlib import Path
    from blip.data.images import open_image, open_plain
    image = {"image": open_image, "plain": open_plain}[sys.argv[2]](sys.argv[1])
    assert image.width * image.height > 89_000_000
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # of Linux it counts the parent's memory too
    status = Path("/proc/self/status")
    if status.is_file():
        peak = int(re.search(r"VmHWM:\\s+(\\d+)", status.read_text())[1])
    print(peak // 1024)
"""


def _write_large(path: Path, mode: str, compression: str | None, orientation: int) -> None:
    """An image of the largest size that is allowed, written by another process, whose memory does not count."""
    width, height = 9459, 9459
    code = f"""
        import numpy as np
        from PIL import Image
        Image.MAX_IMAGE_PIXELS = None
        row = np.arange({width}) % 251
        if {mode!r} in ("I;16", "I", "F"):
            kind = {{"I;16": np.uint16, "I": np.int32, "F": np.float32}}[{mode!r}]
            image = Image.fromarray(np.tile((row * 99).astype(kind), ({height}, 1)))
        else:
            image = Image.new({mode!r}, ({width}, {height}), 7)
        exif = Image.Exif()
        exif[0x0112] = {orientation}
        options = dict(compression={compression!r}) if {path.suffix == ".tif"} else dict(compress_level=1)
        image.save({str(path)!r}, exif=exif, **options)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mode", "ending", "compression", "orientation"),
    [("I;16", ".png", None, 1), ("I;16", ".tif", "tiff_lzw", 6), ("F", ".tif", None, 6), ("RGBA", ".png", None, 1)],
)
def test_the_largest_images_take_less_than_a_gigabyte(
    tmp_path: Path, mode: str, ending: str, compression: str | None, orientation: int
) -> None:
    path = tmp_path / f"large{ending}"
    _write_large(path, mode, compression, orientation)
    for how in ("image", "plain"):
        code = [sys.executable, "-c", textwrap.dedent(MEMORY), str(path), how]
        result = subprocess.run(code, capture_output=True, text=True, check=True, cwd=ROOT)
        print(mode, ending, compression, orientation, how, result.stdout.strip(), "MiB")
        assert int(result.stdout) < 1000
    path.unlink()
