"""Hostile files of every kind that the package reads: each a function that makes one in an empty folder.

`IMAGES`, `ANNOTATIONS`, `CHECKPOINTS` and `TRAINING` map a name to (maker, regular expression of the message).
"""

import io
import json
import os
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save, save_file

Maker = Callable[[Path], None]  # gets the path to make
PICKLE = b"\x80\x04cposix\nsystem\n(S'touch owned'\ntR."  # would run a command
ESCAPE = "\x1b]0;owned\x07\x1b[2J"  # sets a terminal's title and clears it


def as_complex(t: torch.Tensor) -> torch.Tensor:
    """The same numbers as complex ones; skips the test where safetensors, before 0.7, cannot write them."""
    try:
        save({"t": t.to(torch.complex64)})
    except KeyError:
        pytest.skip("this safetensors writes no complex numbers")
    return t.to(torch.complex64)


def content(data: bytes | str) -> Maker:
    """A file of these bytes."""
    return lambda path: path.write_bytes(data if isinstance(data, bytes) else data.encode()) and None


# ---- images ----------------------------------------------------------------------------------------------------------


def picture(format: str, mode: str = "RGB", size: tuple[int, int] = (40, 30)) -> bytes:
    """The bytes of an image of noise."""
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], len(mode)), dtype=np.uint8).squeeze()
    data = io.BytesIO()
    Image.fromarray(noise).save(data, format)
    return data.getvalue()


def png_of_size(width: int, height: int) -> bytes:
    """A PNG whose header gives a size and which has no pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body)) for kind, body in chunks
    )


def sparse(path: Path) -> None:
    """60 GB that take no room."""
    with open(path, "wb") as file:
        file.write(picture("PNG"))
        file.truncate(60 << 30)


POSTSCRIPT = "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(owned) (w) file closefile showpage\n%%EOF\n"
IMAGES: dict[str, tuple[Maker, str]] = {
    "empty": (content(b""), "empty"),
    "text": (content("no image"), "not an image"),
    "postscript": (content(POSTSCRIPT), "not an image"),
    "pdf": (content("%PDF-1.4\n1 0 obj<</Type/Page>>endobj\ntrailer<</Root 1 0 R>>\n%%EOF"), "not an image"),
    "svg": (content("<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>"), "not an image"),
    "html": (content("<html><script>alert(1)</script></html>"), "not an image"),
    "cut png": (content(picture("PNG")[:200]), ""),
    "cut jpeg": (content(picture("JPEG")[:300]), ""),
    "cut tiff": (content(picture("TIFF")[:100]), ""),
    "cut webp": (content(picture("WEBP")[:60]), ""),
    "cut gif": (content(picture("GIF", "L")[:40]), ""),
    "cut bmp": (content(picture("BMP")[:60]), ""),
    "cut jpeg 2000": (content(picture("JPEG2000")[:90]), ""),
    "a bomb": (content(png_of_size(60_000, 60_000)), "60000 x 60000 pixels"),
    "a larger bomb": (content(png_of_size(2**31 - 1, 2**31 - 1)), ""),
    "no width": (content(png_of_size(0, 10)), ""),
    "pcx": (content(picture("PCX")), "not an image"),
    "targa": (content(picture("TGA")), "not an image"),
    "dds": (content(picture("DDS")), "not an image"),
    "icon": (content(picture("ICO")), "not an image"),
    "sgi": (content(picture("SGI")), "not an image"),
    "pipe": (lambda path: os.mkfifo(path), "regular file"),
    "folder": (lambda path: path.mkdir(), "folder"),
    "endless device": (lambda path: path.symlink_to("/dev/zero"), "regular file"),
    "terminal": (lambda path: path.symlink_to("/dev/tty"), ""),
    "dangling link": (lambda path: path.symlink_to("nowhere"), "no such file"),
    "link to itself": (lambda path: path.symlink_to(path.name), ""),
    "sparse": (sparse, "bytes"),
    "pickle": (content(PICKLE), "not an image"),
}

# ---- annotations -----------------------------------------------------------------------------------------------------


def record(**changes: Any) -> str:
    return json.dumps([{"image": "good.png", "caption": "a lesion"}, {"image": "good.png", "caption": "x", **changes}])


ANNOTATIONS: dict[str, tuple[Maker, str]] = {
    "empty": (content(b""), "no records"),
    "null": (content("null"), "not a list"),
    "a number": (content("3"), "not a list"),
    "text": (content('"records"'), "not a list"),
    "cut": (content('[{"image": "good.png", "capt'), "record 1"),
    "no end": (content('[{"image": "good.png", "caption": "x"},'), "cut off"),
    "text after it": (content('[{"image": "good.png", "caption": "x"}] and more'), "after the closing"),
    "deep": (content("[" * 200_000), "record 1"),
    "deep record": (content('[{"image": "good.png", "caption": ' + "[" * 100_000), "record 1"),
    "long number": (content('[{"image": "good.png", "caption": "x", "image_id": ' + "9" * 5000 + "}]"), "record 1"),
    "utf-16": (content('[{"image": "good.png", "caption": "x"}]'.encode("utf-16")), "UTF-8"),
    "latin-1": (content('[{"image": "good.png", "caption": "Röntgen"}]'.encode("latin-1")), "UTF-8"),
    "binary": (content(bytes(range(256)) * 40), ""),
    "record is a list": (content('[["good.png", "x"]]'), "record 1"),
    "record is null": (content("[null]"), "record 1"),
    "no caption": (content('[{"image": "good.png"}]'), "caption"),
    "no image": (content('[{"caption": "x"}]'), "image"),
    "image is a number": (content(record(image=7)), "record 2"),
    "image is a list": (content(record(image=["good.png"])), "record 2"),
    "image with NUL": (content(record(image="go\0od.png")), "NUL"),
    "image is blank": (content(record(image=" ")), "record 2"),
    "caption is a number": (content(record(caption=1.5)), "record 2"),
    "caption is an object": (content(record(caption={"a": "b"})), "record 2"),
    "caption is blank": (content(record(caption=" \t")), "record 2"),
    "captions are empty": (content(record(caption=[])), "record 2"),
    "captions are mixed": (content(record(caption=["x", 3])), "record 2"),
    "lone surrogate": (content(record(caption="a \ud800 b")), "record 2"),
    "image id is a list": (content(record(image_id=[1])), "record 2"),
    "pipe": (lambda path: os.mkfifo(path), "regular file"),
    "folder": (lambda path: path.mkdir(), "folder"),
    "device": (lambda path: path.symlink_to("/dev/zero"), "regular file"),
    "dangling link": (lambda path: path.symlink_to("nowhere"), "no such file"),
}

# ---- checkpoints: a copy of a good one, damaged ----------------------------------------------------------------------


def model_json(**changes: Any) -> Maker:
    """Entries of `model.json` changed; `PART__KEY` is an entry of a part, and ... leaves one out."""

    def damage(folder: Path) -> None:
        info = json.loads((folder / "model.json").read_text())
        for key, value in changes.items():
            place = info
            *parts, last = key.split("__")
            for part in parts:
                place = place[part]
            if value is ...:
                del place[last]
            else:
                place[last] = value
        (folder / "model.json").write_text(json.dumps(info))

    return damage


def replaced(name: str, data: bytes | str) -> Maker:
    return lambda folder: content(data)(folder / name)


def tensors(change: Callable[[dict[str, torch.Tensor]], None]) -> Maker:
    def damage(folder: Path) -> None:
        state = load_file(folder / "model.safetensors")
        change(state)
        save_file(state, folder / "model.safetensors")

    return damage


def every(function: Callable[[torch.Tensor], torch.Tensor]) -> Maker:
    return tensors(lambda state: state.update({name: function(t) for name, t in state.items()}))


def first(function: Callable[[torch.Tensor], torch.Tensor]) -> Maker:
    def change(state: dict[str, torch.Tensor]) -> None:
        name = min(name for name in state if name.endswith("weight"))
        state[name] = function(state[name])

    return tensors(change)


def cut(name: str, size: int) -> Maker:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:size]) and None


def absent(name: str) -> Maker:
    return lambda folder: (folder / name).unlink()


def special(name: str, make: Maker) -> Maker:
    def damage(folder: Path) -> None:
        (folder / name).unlink()
        make(folder / name)

    return damage


def with_inf(t: torch.Tensor) -> torch.Tensor:
    return torch.where(torch.arange(t.numel()).view(t.shape) == 0, torch.tensor(float("inf")), t)


CHECKPOINTS: dict[str, tuple[Maker, str]] = {
    "no model.json": (absent("model.json"), "model.json"),
    "model.json is empty": (replaced("model.json", ""), "model.json"),
    "model.json is a list": (replaced("model.json", "[]"), "model.json"),
    "model.json is deep": (replaced("model.json", "[" * 100_000), "model.json"),
    "model.json is binary": (replaced("model.json", bytes(range(256))), "model.json"),
    "model.json has a long number": (replaced("model.json", '{"format_version": ' + "9" * 5000 + "}"), "model.json"),
    "model.json is a pipe": (special("model.json", lambda path: os.mkfifo(path)), "model.json"),
    "newer format": (model_json(format_version=99), "newer"),
    "format is text": (model_json(format_version="one"), "format_version"),
    "no task": (model_json(task=...), "task"),
    "unknown task": (model_json(task="segment"), "segment"),
    "task is a list": (model_json(task=["caption"]), "task"),
    "no sizes": (model_json(image_encoder=...), "image_encoder"),
    "sizes are text": (model_json(image_encoder="tiny"), "image_encoder"),
    "depth of 10^7": (model_json(image_encoder__depth=10**7), ""),
    "layers of 10^7": (model_json(text_decoder__layers=10**7), ""),
    "width of 10^9": (model_json(image_encoder__width=10**9), ""),
    "vocabulary of 10^12": (model_json(text_decoder__vocab_size=10**12), ""),
    "image size of 10^9": (model_json(image_encoder__image_size=10**9), ""),
    "positions of 10^9": (model_json(text_decoder__max_positions=10**9), ""),
    "negative depth": (model_json(image_encoder__depth=-1), "depth"),
    "no heads": (model_json(image_encoder__heads=0), "heads"),
    "heads that do not divide": (model_json(image_encoder__heads=7), "heads"),
    "patch of 0": (model_json(image_encoder__patch=0), "patch"),
    "width is a fraction": (model_json(image_encoder__width=24.5), "width"),
    "width is text": (model_json(text_decoder__width="wide"), "width"),
    "dropout of 7": (model_json(text_decoder__dropout=7), "dropout"),
    "prompt is a list": (model_json(prompt=["a"]), "prompt"),
    "NaN weights": (every(lambda t: t * float("nan")), "NaN|finite"),
    "one infinite weight": (first(with_inf), "finite|inf"),
    "integer weights": (every(lambda t: t.long()), "int|type"),
    "boolean weights": (first(lambda t: t > 0), "bool|type"),
    "complex weights": (first(as_complex), "complex|type"),
    "a transposed weight": (first(lambda t: t.flatten()), "shape|is \\("),
    "a scalar weight": (first(lambda t: t.sum()), "shape|is \\("),
    "an empty weight": (first(lambda t: t[:0]), "shape|is \\("),
    "no tensors": (tensors(lambda state: state.clear()), ""),
    "a tensor too many": (tensors(lambda state: state.update(extra=torch.zeros(1))), "extra"),
    "weights cut": (cut("model.safetensors", 5000), "model.safetensors"),
    "weights cut in the header": (cut("model.safetensors", 6), "model.safetensors"),
    "weights are empty": (replaced("model.safetensors", ""), "model.safetensors"),
    "weights are text": (replaced("model.safetensors", "these are notes"), "model.safetensors"),
    "weights are a pickle": (
        replaced("model.safetensors", b"\x80\x04cposix\nsystem\n(S'id'\ntR."),
        "model.safetensors",
    ),
    "weights are a pipe": (special("model.safetensors", lambda path: os.mkfifo(path)), "model.safetensors"),
    "header of 2^60": (replaced("model.safetensors", struct.pack("<Q", 1 << 60) + b"{}"), "model.safetensors"),
    "no tokenizer": (absent("tokenizer.json"), "tokenizer"),
    "tokenizer is empty": (replaced("tokenizer.json", ""), "tokenizer"),
    "tokenizer is a list": (replaced("tokenizer.json", "[]"), "tokenizer"),
    "tokenizer is deep": (replaced("tokenizer.json", "[" * 100_000), "tokenizer"),
    "tokenizer is cut": (cut("tokenizer.json", 300), "tokenizer"),
    "tokenizer of another kind": (replaced("tokenizer.json", '{"model": {"type": "BPE"}}'), "tokenizer"),
    "tokenizer is a pipe": (special("tokenizer.json", lambda path: os.mkfifo(path)), "tokenizer"),
}

# ---- the state of training -------------------------------------------------------------------------------------------


class Code:
    """Something that would run a command when it is unpickled."""

    def __reduce__(self) -> tuple:
        return os.system, ("touch owned",)


def training_state(change: Callable[[dict], Any]) -> Maker:
    """`training.pt` with a change, which may return another content."""

    def damage(folder: Path) -> None:
        state = torch.load(folder / "training.pt", weights_only=True)
        changed = change(state)
        torch.save(state if changed is None else changed, folder / "training.pt")

    return damage


def moments(function: Callable[[torch.Tensor], Any]) -> Maker:
    """The first moments of the optimizer changed."""

    def change(state: dict) -> None:
        for entry in state["optimizer"]["state"].values():
            entry["exp_avg"] = function(entry["exp_avg"])

    return training_state(change)


TRAINING: dict[str, tuple[Maker, str]] = {
    "cut": (cut("training.pt", 1000), "training.pt"),
    "empty": (replaced("training.pt", ""), "training.pt"),
    "text": (replaced("training.pt", "notes"), "training.pt"),
    "pickled code": (training_state(lambda state: Code()), "training.pt"),
    "a list": (training_state(lambda state: [1, 2]), "training.pt"),
    "no optimizer": (training_state(lambda state: state.pop("optimizer") and None), "training.pt"),
    "no step": (training_state(lambda state: state.pop("step") and None), "training.pt"),
    "step is text": (training_state(lambda state: state.update(step="many")), "training.pt"),
    "negative step": (training_state(lambda state: state.update(step=-4)), "training.pt"),
    "random state is short": (training_state(lambda state: state.update(random=[{"cpu": torch.zeros(3).byte()}])), ""),
    "random state is text": (training_state(lambda state: state.update(random="dice")), "training.pt"),
    "moments of another shape": (moments(lambda t: torch.zeros(3)), "training.pt"),
    "moments of integers": (moments(lambda t: t.long()), "training.pt"),
    "moments are NaN": (moments(lambda t: t * float("nan")), "training.pt"),
    "moments are text": (moments(lambda t: "zero"), "training.pt"),
    "no moments": (training_state(lambda state: state["optimizer"].update(state={})), ""),
    "groups are text": (training_state(lambda state: state["optimizer"].update(param_groups="all")), "training.pt"),
    "a pipe": (special("training.pt", lambda path: os.mkfifo(path)), "training.pt"),
}


def damaged(good: Path, place: Path, damage: Maker) -> Path:
    """A copy of a checkpoint with the damage."""
    shutil.copytree(good, place)
    damage(place)
    return place


# ---- what is there, before and after ---------------------------------------------------------------------------------


def tree(folder: Path) -> dict[str, object]:
    """Every path below a folder: the content of small regular files, of others kind, size and time."""
    found: dict[str, object] = {}
    for parent, folders, names in os.walk(os.fsencode(folder)):
        for name in [*folders, *names]:
            path = os.path.join(parent, name)
            about = os.lstat(path)
            small = os.path.isfile(path) and not os.path.islink(path) and about.st_size < 1 << 20
            key = os.fsdecode(os.path.relpath(path, os.fsencode(folder)))
            if small:
                with open(path, "rb") as file:
                    found[key] = file.read()
            else:
                found[key] = (about.st_mode, about.st_size if not os.path.isdir(path) else 0)
    return found


# ---- checkpoints of other formats ------------------------------------------------------------------------------------


def cut_zip(path: Path) -> None:
    data = io.BytesIO()
    torch.save({"model": {"cls_token": torch.zeros(1, 1, 8)}}, data)
    path.write_bytes(data.getvalue()[:-100])


FOREIGN: dict[str, Maker] = {
    "pickled code": lambda path: torch.save({"model": Code()}, path),
    "text": content("these are my notes"),
    "cut zip": cut_zip,
    "pipe": lambda path: os.mkfifo(path),
    "device": lambda path: path.symlink_to("/dev/zero"),
}
