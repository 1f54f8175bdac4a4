"""Files that are read: regular ones, up to a size, and checked before they are used."""

import json
import os
from pathlib import Path

import pytest
from pydantic import BaseModel

from blip.errors import printable
from blip.files import ReadError, json_text, open_regular, read_json, read_json_lines


class Sizes(BaseModel):
    width: int
    names: list[str] = []


DAMAGED = {
    "": "not valid JSON",
    "{": "not valid JSON",
    '{"width": 1e999}': "width: ",
    '{"width": "wide"}': "width: ",
    '{"names": []}': "width: Field required",
    "[1]": "it: Input should be a valid dictionary",
    "[" * 100_000: "JSON that cannot be used",
    '{"width": ' + "9" * 5000 + "}": "JSON that cannot be used",
    b"\xff\xfe{": "not UTF-8",
}


@pytest.mark.parametrize("content", DAMAGED)
def test_damaged_json_is_named(tmp_path: Path, content: str | bytes) -> None:
    path = tmp_path / "sizes.json"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(ReadError, match=DAMAGED[content]) as caught:
        read_json(path, Sizes)
    assert str(caught.value).startswith(str(path)) and len(str(caught.value)) < 1000


def test_typed_json(tmp_path: Path) -> None:
    path = tmp_path / "sizes.json"
    path.write_text('\ufeff{"width": 3, "other": null}', encoding="utf-8")
    assert read_json(path, Sizes) == Sizes(width=3)
    path.write_text('{"width": 3}\n\n{"width": 4}\n{"width": []}\n')
    lines = read_json_lines(path, Sizes)
    assert [next(lines), next(lines)] == [("line 1", Sizes(width=3)), ("line 3", Sizes(width=4))]
    with pytest.raises(ReadError, match=r"sizes.json, line 4: .*width"):
        next(lines)


def test_only_regular_files_up_to_a_size(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "large").write_bytes(b"12345")
    problems = {
        "pipe": "not a regular file",
        ".": "is a folder",
        "absent": "No such file",
        "a\0b": "null",
        "large": "has 5 bytes; at most 4",
    }
    for path, problem in problems.items():
        with pytest.raises(ReadError, match=problem), open_regular(tmp_path / path, limit=4):
            pass
    with pytest.raises(ReadError, match="not a regular file"), open_regular("/dev/zero"):
        pass


def test_names_of_files_that_are_not_utf_8(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.png")
    text = json_text({"image": name, "caption": "Röntgen"})
    assert os.fsencode(json.loads(text.encode())["image"]) == b"caf\xe9.png"
    assert "Röntgen" in json_text(["Röntgen"])


def test_terminals_get_no_control_characters() -> None:
    assert printable("a\x1b[2Jb\r\x07é\u202e\n" + os.fsdecode(b"\xe9")) == "a\\x1b[2Jb\\x0d\\x07é\\u202e\n\\udce9"
