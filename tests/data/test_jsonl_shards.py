"""Shards of JSON lines: those that were cut short or changed are found, and made again by their command."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from blip.capfilt.candidates import CaptionedLine, ScoredLine
from blip.capfilt.merge import MergeError, Rule, merge
from blip.data.jsonl_shards import ShardError, read_lines, settings_of, shard_path, write_jsonl, write_jsonl_shards

LINES = [
    {"image": f"{n}.png", "text": f"é {n}", "source": "web", "round": 0, "match": 0.5, "itc": 0.1} for n in range(4)
]


def make(folder: Path, overwrite: bool = False) -> list[int]:
    """Writes two shards of two lines, unless they are there -> those that were written."""

    def lines(number: int) -> list[dict]:
        return LINES[2 * number : 2 * number + 2]

    return list(write_jsonl_shards(folder, {"step": "score"}, 2, make_lines=lines, overwrite=overwrite))


def keep(bytes_or_lines: slice, lines: bool = False) -> Callable[[bytes], bytes]:
    if lines:
        return lambda data: b"".join(data.splitlines(keepends=True)[bytes_or_lines])
    return lambda data: data[bytes_or_lines]


CUT, CHANGED = "cut", "changed"
DAMAGE: dict[str, tuple[Callable[[bytes], bytes], str]] = {  # and what its end shows
    "at a line's end": (keep(slice(0, 1), lines=True), CUT),
    "without its last line": (keep(slice(0, -1), lines=True), CUT),
    "to 100 bytes": (keep(slice(0, 100)), CUT),
    "to nothing": (keep(slice(0, 0)), CUT),
    "one byte short": (keep(slice(0, -1)), CUT),
    "a line less": (keep(slice(1, None), lines=True), CHANGED),
    "a line twice": (lambda data: data.splitlines(keepends=True)[0] + data, CHANGED),
    "a line after its end": (lambda data: data + b"{}\n", CHANGED),
    "a changed letter": (lambda data: data.replace(b"1.png", b"9.png"), CHANGED),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_shard_that_is_not_whole(damage: str, tmp_path: Path) -> None:
    assert make(tmp_path) == [0, 1] and make(tmp_path) == []
    function, seen = DAMAGE[damage]
    path = shard_path(tmp_path, 0)
    whole = path.read_bytes()
    path.write_bytes(function(whole))
    with pytest.raises(ShardError, match=r"shard-00000\.jsonl.*delete the file and start the command"):
        list(read_lines(tmp_path))
    if seen == CHANGED:  # by somebody, who may not want to lose it
        changed = path.read_bytes()
        shard_path(tmp_path, 1).unlink()
        with pytest.raises(ShardError, match=r"shard-00000\.jsonl was changed .*--overwrite"):
            make(tmp_path)
        assert path.read_bytes() == changed and not shard_path(tmp_path, 1).exists()
        assert make(tmp_path, overwrite=True) == [0, 1] and path.read_bytes() == whole
    else:
        assert make(tmp_path) == [0] and path.read_bytes() == whole


def test_settings_of_another_program_are_kept(tmp_path: Path) -> None:
    for content in ('{"shards": 3}', '{"shards": 2, "ends": true, "mine": 1}'):
        (tmp_path / "settings.json").write_text(content)
        with pytest.raises(ShardError, match="--overwrite"):
            make(tmp_path)
        assert (tmp_path / "settings.json").read_text() == content


def test_damaged_settings_are_replaced_with_overwrite_alone(tmp_path: Path) -> None:
    make(tmp_path)
    for content in ("{", '{"shards": -1}', '{"shards": true, "step": "score"}', '{"ends": "yes", "shards": 2}'):
        (tmp_path / "settings.json").write_text(content)
        with pytest.raises(ShardError, match=r"settings\.json"):
            make(tmp_path)
        assert (tmp_path / "settings.json").read_text() == content
        make(tmp_path, overwrite=True)
        assert list(read_lines(tmp_path)) == LINES


def test_shards_without_their_settings_are_not_taken_for_own(tmp_path: Path) -> None:
    make(tmp_path)
    (tmp_path / "settings.json").unlink()
    with pytest.raises(ShardError, match=r"shards without their settings\.json"):
        make(tmp_path)
    assert make(tmp_path, overwrite=True) == [0, 1]


def test_shards_of_former_versions_are_read_and_continued(tmp_path: Path) -> None:
    """Those of version 0.1 have no line at their end."""
    (tmp_path / "settings.json").write_text(json.dumps({"step": "score", "shards": 2}))
    write_jsonl(shard_path(tmp_path, 0), LINES[:2])
    assert make(tmp_path) == [1]
    assert "ends" not in settings_of(tmp_path)
    assert list(read_lines(tmp_path, ScoredLine)) == LINES  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"round": 70_000}, "round"),
        ({"round": True}, "round"),
        ({"image": None}, "image"),
        ({"text": ["a"]}, "text"),
        ({"source": ...}, "source"),
    ],
)
def test_lines_are_typed(change: dict, message: str, tmp_path: Path) -> None:
    line = {key: value for key, value in {**LINES[0], **change}.items() if value is not ...}
    list(write_jsonl_shards(tmp_path, {"step": "score"}, 1, make_lines=lambda number: [LINES[1], line]))
    for kind in (CaptionedLine, ScoredLine):
        with pytest.raises(ShardError, match=rf"shard-00000\.jsonl, line 2: .*{message}"):
            list(read_lines(tmp_path, kind))  # type: ignore[arg-type]


def test_the_same_scores_do_not_count_twice(tmp_path: Path) -> None:
    scored, copy = tmp_path / "scored", tmp_path / "copy"
    settings = {"step": "score", "data": "abc"}
    for folder in (scored, copy):
        list(write_jsonl_shards(folder, settings, 1, make_lines=lambda number: LINES))
    for second in (scored, tmp_path / "copy" / ".." / "scored", copy):
        with pytest.raises(MergeError, match="hold scores of the same texts: give one of them"):
            merge([scored, second], tmp_path / "out.json", Rule())
    assert merge([scored], tmp_path / "out.json", Rule()).kept == {"web": 4}
