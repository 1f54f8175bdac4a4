"""Texts and paths of records: what cannot be used is named with file and record, by every reader."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.running import code_and_text
from PIL import Image

from blip.data.check import check_data
from blip.data.formats import AnnotationError
from blip.data.images import UnreadableImage, open_image
from blip.data.pairs import read_pairs
from blip.data.places import images_of
from blip.data.questions import read_questions
from blip.data.records import MAX_TEXT
from blip.data.statements import read_statements
from blip.data.webdataset import BrokenSample, Raw
from blip.interpret.explain_files import find_pairs

GOOD: dict[str, dict[str, Any]] = {
    "captions": {"image": "a.png", "caption": "a lesion"},
    "questions": {"image": "a.png", "question": "where?", "answer": "left", "choices": ["left", "right"]},
    "statements": {"images": ["a.png", "b.png"], "sentence": "both", "label": True},
}
READERS: dict[str, Callable[..., Any]] = {
    "captions": read_pairs, "questions": read_questions, "statements": read_statements,
}  # fmt: skip
TEXTS = [("captions", "caption"), ("questions", "question"), ("questions", "answer"), ("questions", "choices"),
         ("statements", "sentence")]  # fmt: skip
UNUSABLE = {"a \ud800 b": r"U\+D800", "a \udcff": r"U\+DCFF", "a\0b": "NUL", "a\x1b[31m": r"control .*U\+001B",
            "a\x7f": r"U\+007F", "\x08": r"U\+0008", "x" * (MAX_TEXT + 1): "characters"}  # fmt: skip


def write(path: Path, kind: str, **changes: Any) -> Path:
    path.write_text(json.dumps([GOOD[kind], {**GOOD[kind], **changes}]))
    return path


@pytest.mark.parametrize("text", UNUSABLE, ids=range(len(UNUSABLE)))
@pytest.mark.parametrize(("kind", "key"), TEXTS)
def test_unusable_texts_are_named(kind: str, key: str, text: str, tmp_path: Path) -> None:
    path = write(tmp_path / "set.json", kind, **{key: [text] if key == "choices" else text})
    with pytest.raises(AnnotationError, match=rf"set\.json, record 2: its \w+ (holds|has).*{UNUSABLE[text]}") as caught:
        READERS[kind]([str(path)])
    assert len(str(caught.value)) < 500
    report = check_data([str(path)], num_workers=0)
    assert len(report.errors) == 1 and "record 2" in report.errors[0]


@pytest.mark.parametrize(
    "text", ["tab\there", "line\r\nend", "\u00a0\u2028\u200b", "\x0b\x0c", "\x85\x96", "x" * MAX_TEXT, "\U0001f9e0"]
)
def test_blanks_and_rare_characters_are_texts(text: str, tmp_path: Path) -> None:
    pairs = read_pairs([str(write(tmp_path / "set.json", "captions", caption=f"a {text}"[:MAX_TEXT]))])
    assert pairs.captions(1) == [f"a {text}"[:MAX_TEXT]]


ADDRESSES = ["http://127.0.0.1:9/x.png", "https://example.org/x.png", "file:///etc/passwd", "ftp://h/x", "s3://b/x.png",
             "HTTP://x/y.png", "data://x"]  # fmt: skip


def images_of_kind(kind: str, images: list[str]) -> dict[str, Any]:
    """Statements are about two images, other records about the first."""
    return {"images": images} if kind == "statements" else {"image": images[0]}


@pytest.mark.parametrize("address", ADDRESSES)
def test_nothing_is_fetched(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("a connection"))
    for kind in GOOD:
        path = write(tmp_path / "set.json", kind, **images_of_kind(kind, [address, "b.png"]))
        with pytest.raises(AnnotationError, match=r"set\.json, record 2: its \w+ is an address.*downloaded"):
            READERS[kind]([str(path)])
    with pytest.raises(AnnotationError, match="record 2: its image is an address"):
        images_of([write(tmp_path / "set.json", "captions", image=address)])
    with pytest.raises(AnnotationError, match=r"record 2: its image .*is an address"):
        list(find_pairs(tmp_path / "set.json", []))
    with pytest.raises(UnreadableImage, match="no such file"):
        open_image(address)


@pytest.mark.parametrize("image", ["a\0.png", "\ud800.png", "  "])
def test_what_is_no_name_of_a_file(image: str, tmp_path: Path) -> None:
    for kind in GOOD:
        path = write(tmp_path / "set.json", kind, **images_of_kind(kind, [image, "a.png"]))
        with pytest.raises(AnnotationError, match=r"set\.json, record 2: its image"):
            READERS[kind]([str(path)])


def test_which_file_a_path_means(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Absolute paths and `..` are followed; `~`, variables and backslashes are characters of names."""
    folder = tmp_path / "set"
    (folder / "~").mkdir(parents=True)
    monkeypatch.setenv("HOME", str(tmp_path))
    places = {
        "../up.png": tmp_path / "up.png",
        str(tmp_path / "absolute.png"): tmp_path / "absolute.png",
        "~/home.png": folder / "~/home.png",
        "$HOME.png": folder / "$HOME.png",
        "back\\slash.png": folder / "back\\slash.png",
        "C:\\x.png": folder / "C:\\x.png",
        "http:x.png": folder / "http:x.png",
        " b .png": folder / " b .png",
    }
    for number, path in enumerate(places.values()):
        Image.new("L", (9, 9), number).save(path)
    records = [{"image": image, "caption": "x"} for image in places]
    (folder / "set.json").write_text(json.dumps(records))
    pairs = read_pairs([str(folder / "set.json")])
    for number in range(len(pairs)):
        assert open_image(pairs.image_path(number)).getpixel((0, 0)) == (number,) * 3
    assert [open_image(path).getpixel((0, 0))[0] for path in images_of([folder / "set.json"])] == [*range(len(places))]


def test_a_sample_of_a_shard_may_name_an_address(tmp_path: Path) -> None:
    parts = {"png": b"", "json": json.dumps({"image": ADDRESSES[0], "caption": "x", "image_id": "7"}).encode()}
    assert Raw(0, "0", parts).record()["caption"] == ["x"]
    parts["json"] = json.dumps({"caption": "a \ud800"}).encode()
    with pytest.raises(BrokenSample, match="half a character"):
        Raw(0, "0", parts).record()


def test_texts_of_a_command_line() -> None:
    text = os.fsdecode(b"a \xff lesion")
    for verb in ("match", "answer", "explain"):
        code, shown = code_and_text(
            verb, "x.png", text, "--checkpoint", "none", *(["--out", "x.png"] if verb == "explain" else [])
        )
        assert code == 1 and "half a character" in shown, shown


@pytest.mark.parametrize("label", ["x" * 10**6, ["y"] * 10**6, {"z" * 10**6: 1}, 10**3000])
def test_messages_about_long_values_are_short(label: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "set.json", "statements", label=label)
    with pytest.raises(AnnotationError, match="record 2: its label") as caught:
        read_statements([str(path)])
    assert len(str(caught.value)) < 1500
    path.write_text(json.dumps([{"k" * 10**6: 1}]))
    with pytest.raises(AnnotationError, match="has no") as caught:
        read_pairs([str(path)])
    assert len(str(caught.value)) < 1500
