"""Files of any content, by property: every reader returns what it found or raises a BlipError, soon and in bounded
memory."""

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from helpers.running import script_env
from helpers.tiny import STORED_EMBED, STORED_TEXT, STORED_VIT
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from blip.capfilt.candidates import CaptionedLine, ScoredLine
from blip.checkpoints.adapter_files import adapter_info
from blip.checkpoints.info import read_info
from blip.checkpoints.sizes import read_huggingface_config, special_ids
from blip.data.formats import iter_json_object, iter_records, parse_record
from blip.data.jsonl_shards import read_lines, write_jsonl_shards
from blip.data.question_splits import read_answers
from blip.data.tar_reader import samples
from blip.data.webdataset import BrokenSample, TarError, TarShards, open_shards
from blip.errors import BlipError
from blip.files import read_json, write_whole
from blip.interpret.activation_shards import read_shards
from blip.pubmed.lines import Figure, Pair, Panel, read
from blip.pubmed.panels.given import read_splits
from blip.pubmed.panels.progress import Progress
from blip.pubmed.panels.split import Summary
from blip.pubmed.report import write_report
from blip.tokenizer import Tokenizer
from blip.train.log import RunLog, read_metrics

pytestmark = pytest.mark.slow  # all of them together

SECONDS = 90  # that all examples of a test may take
bounded = settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))


class TookTooLong(BaseException):
    """A reader that hangs."""


@pytest.fixture(autouse=True)
def limit() -> Iterator[None]:
    def end(*_: object) -> None:
        raise TookTooLong(f"more than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(SECONDS)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


# ---- JSON ------------------------------------------------------------------------------------------------------------

Reader = Callable[[Path], Any]  # gets the file
LINE = {"image": "a.png", "text": "a lesion", "source": "web", "round": 0, "match": 0.5, "itc": 0.1, "model": "m"}
FIGURE = {"image": "a.png", "caption": "(A) x", "article": "PMC1", "figure": "F1", "label": "1", "files": ["a.png"]}
PANEL = {**FIGURE, "panel": ["A"], "box": [0, 0, 9, 9], "how": "letter", "confidence": 0.5, "whole_image": "a.png"}
SHARD = {"file": "shard-00000.safetensors", "asked": 2, "records": [0, 1], "shapes": {"x": [2, 3]}, "problems": []}
MODEL = {"format_version": 1, "task": "retrieval", "image_encoder": asdict(STORED_VIT), "embed_dim": STORED_EMBED,
         "text_encoder": asdict(STORED_TEXT), "prompt": "a", "answers": ["yes"], "max_text_tokens": 30}  # fmt: skip
ADAPTER = {"format_version": 1, "rank": 2, "alpha": 2, "dropout": 0.0, "targets": ["qkv"], "trainable": [], "new": [],
           "base": "x", "model": MODEL}  # fmt: skip
RECORD = {"image": "a.png", "caption": "x", "how": "letter", "confidence": 0.5, "article": "PMC1", "label": "1"}
COUNTS = {"pairs": {"train": 1}, "articles": {"train": 1}, "out": {"no file": 2}, "licenses": {"CC0": 1}}
BUILT = {"pairs_file": "p.jsonl", "read": 3, **COUNTS, "years": {"2020": 1}, "words": {"10": 1}, "how": {"letter": 1},
         "problems": ["x"]}  # fmt: skip
SPLIT = {"how": {"letter": 1}, "why_whole": {"x": 1}, "unreadable": 0, "problems": [], "made_from": ""}
TOKENIZER = json.loads(Tokenizer.train(["a large lesion"], 40)._backend.to_str())


def capfilt(kind: Any) -> Reader:
    """Reads a line in a folder of shards."""

    def reader(path: Path) -> None:
        (path.parent / "shard-00000.jsonl").write_bytes(path.read_bytes())
        write_whole(path.parent / "settings.json", '{"shards": 1}')
        list(read_lines(path.parent, kind))

    return reader


def adapter(path: Path) -> None:
    (path.parent / "adapter.safetensors").touch()
    adapter_info(path.parent)


def continued(path: Path) -> None:
    """The record of a split that was stopped."""
    settings = {"crops": "c"}
    partial = Path(Progress(path.parent / "out.jsonl", settings).record)
    partial.write_bytes(json.dumps(settings).encode() + b"\n" + path.read_bytes())
    progress = Progress(path.parent / "out.jsonl", settings)
    progress.close()


def log(path: Path) -> None:
    RunLog(path.parent, 3, 9).close()
    read_metrics(path.parent)


def special(path: Path) -> None:
    special_ids(path, {"text_encoder": {"vocab_size": 40}})


def shards(path: Path) -> None:
    with tarfile.open(path.parent / "a.tar", "w") as tar:
        tar.addfile(tarfile.TarInfo("1.txt"))
    open_shards([str(path.parent)])


def page_of(path: Path) -> None:
    """The report on a data set with one pair of one split figure."""
    folder = path.parent
    files = {"build.json": {**BUILT, "pairs_file": str(folder / "p.jsonl")}, "p.jsonl.summary.json": SPLIT,
             "train.json": [RECORD], "val.json": [], "test.json": [], "p.jsonl": PANEL}  # fmt: skip
    if path.name == "build.json":  # its file of pairs is wherever it says
        files["build.json"] = None
    for name, content in files.items():
        if content is not None and not (folder / name).exists():
            (folder / name).write_text(json.dumps(content) + "\n")
    write_report(folder, folder / "page.html")


def shards_of_jsonl(path: Path) -> None:
    list(write_jsonl_shards(path.parent, {"seed": 1}, 2, make_lines=lambda number: []))


FORMS: dict[str, tuple[str, Any, Reader]] = {
    "model.json": ("model.json", MODEL, read_info),
    "adapter.json": ("adapter.json", ADAPTER, adapter),
    "config.json": ("config.json", {"vision_config": {"num_attention_heads": 2, "hidden_act": "gelu"},
                                    "text_config": {"num_attention_heads": 2, "hidden_dropout_prob": 0.1}},
                    read_huggingface_config),
    "tokenizer.json": ("tokenizer.json", TOKENIZER, lambda path: Tokenizer.from_file(path).encode(["a lésion ☃"], 9)),
    "ids of a tokenizer": ("tokenizer.json", TOKENIZER, special),
    "settings.json": ("settings.json", {"seed": 1, "shards": 2, "ends": True}, shards_of_jsonl),
    "sizes.json": ("sizes.json", {"a.tar": 1, "bytes": {"a.tar": 10240}, "sha256": {"a.tar": "ab"}}, shards),
    "index.json": ("index.json", {"points": ["x"], "shards": [SHARD]}, lambda path: list(read_shards(path.parent))),
    "metrics.jsonl": ("metrics.jsonl", {"step": 3, "loss": 0.5}, log),
    "captions": ("line.jsonl", LINE, capfilt(CaptionedLine)),
    "scores": ("line.jsonl", LINE, capfilt(ScoredLine)),
    "end of a shard": ("line.jsonl", {"end": {"lines": 0, "bytes": 0, "sha256": "x"}}, capfilt(CaptionedLine)),
    "figures": ("line.jsonl", FIGURE, lambda path: list(read(path, Figure))),
    "pairs": ("line.jsonl", PANEL, lambda path: list(read(path, Pair))),
    "panels": ("line.jsonl", PANEL, lambda path: list(read(path, Panel))),
    "build.json": ("build.json", BUILT, page_of),
    "summary of split": ("p.jsonl.summary.json", SPLIT, page_of),
    "records of a data set": ("train.json", [RECORD], page_of),
    "panels of a report": ("p.jsonl", PANEL, page_of),
    "split captions": ("line.jsonl", {"article": "PMC1", "figure": "F1", "lead": "x", "confidence": 0.9,
                                      "parts": [{"labels": ["A"], "text": "y"}]}, read_splits),
    "progress": ("line", {"length": 0, "counts": {"figures": 1, "how": {"whole": 1}}}, continued),
    "summary": ("summary.json", {"figures": 1, "how": {"whole": 1}, "problems": []},
                lambda path: read_json(path, Summary)),
    "answers": ("answers.json", ["yes", "no"], lambda path: read_answers(str(path))),
    "captions of a set": ("set.json", [{"image": "a.png", "caption": ["x"], "image_id": 3}],
                          lambda path: [parse_record(record) for _, record in iter_records(path)]),
    "a set with an object": ("set.json", {"images": [{"id": 1}], "info": {"year": 1}},
                             lambda path: list(iter_json_object(path))),
}  # fmt: skip

NUMBERS = st.sampled_from([-1, 0, 1, 10**7, 10**12, 10**400, 1.5, -0.0, 1e308, float("nan"), float("inf")])
WORDS = st.sampled_from(["", "a", "x" * 5000, "\ud800", "\udcff", "\0", "../../x", "\u202e", "é", "\x1b[2J"])
LEAVES = st.none() | st.booleans() | NUMBERS | WORDS | st.integers() | st.text(max_size=9)
VALUES = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)


def places(value: Any, here: tuple = ()) -> list[tuple]:
    """The way to every value inside a value."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [here, *(place for key, one in list(inside)[:40] for place in places(one, (*here, key)))]


def changed(value: Any, place: tuple, new: Any) -> Any:
    """A copy of a value with another one at a place; `...` leaves it out."""
    if not place:
        return None if new is ... else new
    copy = dict(value) if isinstance(value, dict) else list(value)
    if len(place) == 1 and new is ...:
        del copy[place[0]]
    else:
        copy[place[0]] = changed(copy[place[0]], place[1:], new)
    return copy


def readable_or_refused(form: str, folder: Path, content: bytes) -> None:
    name, _, reader = FORMS[form]
    for old in folder.iterdir():
        old.unlink()
    (folder / name).write_bytes(content)
    try:
        reader(folder / name)
    except BlipError as error:
        assert len(str(error)) < 3000


@pytest.mark.parametrize("form", FORMS)
def test_a_sound_file_is_read(form: str, tmp_path: Path) -> None:
    name, sound, reader = FORMS[form]
    (tmp_path / name).write_text(json.dumps(sound))
    refused = {"index.json": "damaged or cut short", "end of a shard": "a line needs image"}
    if form in refused:  # what they describe is not there, or otherwise
        with pytest.raises(BlipError, match=refused[form]):
            reader(tmp_path / name)
    else:
        reader(tmp_path / name)


@pytest.mark.parametrize("form", FORMS)
@bounded
@given(data=st.data())
def test_any_value_anywhere(form: str, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    sound = FORMS[form][1]
    value = sound
    for _ in range(data.draw(st.integers(1, 2))):
        place = data.draw(st.sampled_from(places(value)))
        value = changed(value, place, data.draw(VALUES | st.just(...)))
    readable_or_refused(form, tmp_path_factory.mktemp("form"), json.dumps(value).encode())


DAMAGED = [
    b"", b"[" * 100_000, b'{"a":' * 100_000, b'{"step": ' + b"9" * 5000 + b"}", b"\xff\xfe{}", b"\xef\xbb\xbf{}",
    b"\0" * 600, b'{"a": 1, "a": 2}', b"NaN", b'"\\ud800"', b"{}\n{}", bytes(range(256)), "{}".encode("utf-16"),
]  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("content", DAMAGED, ids=range(len(DAMAGED)))
def test_damaged_bytes(form: str, content: bytes, tmp_path: Path) -> None:
    readable_or_refused(form, tmp_path, content)


@pytest.mark.parametrize("form", FORMS)
@bounded
@given(cut=st.integers(0, 5000), flips=st.lists(st.tuples(st.integers(0, 5000), st.integers(0, 255)), max_size=4))
def test_cut_and_changed_bytes(form: str, tmp_path_factory: pytest.TempPathFactory, cut: int, flips: list) -> None:
    content = bytearray(json.dumps(FORMS[form][1]).encode())
    for place, byte in flips:
        content[place % len(content)] = byte
    readable_or_refused(form, tmp_path_factory.mktemp("form"), bytes(content[: len(content) - cut % len(content)]))


@pytest.mark.parametrize("form", FORMS)
def test_what_is_no_regular_file(form: str, tmp_path: Path) -> None:
    name, _, reader = FORMS[form]
    if form in ("captions", "scores", "end of a shard", "progress", "settings.json"):
        pytest.skip("is copied for the reader, or replaced by it")
    if form in ("summary of split", "panels of a report"):
        pytest.skip("counts as absent")
    os.mkfifo(tmp_path / name)
    with pytest.raises(BlipError):
        reader(tmp_path / name)


# ---- tar files -------------------------------------------------------------------------------------------------------

NAMES = st.sampled_from([
    "1.png", "1.json", "1.txt", "2.json", "2.caption", "3.png", "3.tar.gz", "noending", ".hidden", "../../x.png",
    "/x.png", "a/b/1.json", "1.PNG", "x" * 300 + ".png", "__meta__/x.json", "é.json", "\udcff.json", "1." + "y" * 99,
    "\n.txt", "1..json",
])  # fmt: skip
CONTENTS = st.sampled_from([
    b"", b"{}", b'{"caption": "a lesion"}', b'{"caption": "\\ud800"}', b"[" * 20_000,
    b'{"caption": ["x", "y"], "image": 3}', b'{"caption": "' + b"w" * 2_000_000 + b'"}',
    b'{"image_id": ' + b"9" * 5000 + b"}", b"\xff\xfe", b'{"caption": {}}', b"null",
    b'{"caption": "x", "caption": "y"}', b"\x89PNG\r\n\x1a\n",
])  # fmt: skip
KINDS = st.sampled_from([
    tarfile.REGTYPE, tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE,
    tarfile.CHRTYPE, tarfile.FIFOTYPE, tarfile.GNUTYPE_SPARSE, b"x", b"g", b"L", b"?",
])  # fmt: skip
SIZES = st.sampled_from([None, None, None, 0, 1, 513, 2**20, 2**33, 2**40, 2**62])  # in the header; None: the true one
MEMBERS = st.lists(st.tuples(NAMES, CONTENTS, KINDS, SIZES), max_size=8)


def tar_of(members: list[tuple[str, bytes, bytes, int | None]], form: int) -> bytes:
    """A tar file whose headers need not be true."""
    out = bytearray()
    for name, content, kind, size in members:
        about = tarfile.TarInfo(name)
        about.type, about.size = kind, len(content) if size is None else size
        about.linkname = "1.png" if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE) else ""
        try:
            out += about.tobuf(form, "utf-8", "surrogateescape")
        except ValueError:  # what this form cannot hold
            continue
        out += content + b"\0" * (-len(content) % 512)
    return bytes(out) + b"\0" * 1024


def read_all(data: bytes, folder: Path) -> None:
    """Counted, and read with each count that `sizes.json` may give."""
    path = folder / "x.tar"
    path.write_bytes(data)
    try:
        count = len(open_shards([str(path)]))
    except TarError:
        count = 3
    for given_count in (count, count + 1, max(1, count - 1)):
        shard = TarShards([str(path)], [given_count])
        try:
            for raw in shard.read(0):
                for part in (raw.record, raw.image):
                    try:
                        part()
                    except BrokenSample:
                        continue
        except TarError as error:
            assert "x.tar" in str(error)


@pytest.mark.parametrize("name", ["x.tar", "sizes.json"])
def test_pipes_among_shards(name: str, tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(tar_of([("1.txt", b"one", b"0", None)], tarfile.GNU_FORMAT))
    (tmp_path / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / name)
    with pytest.raises(TarError, match="not a regular file"):
        open_shards([str(tmp_path)])


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@bounded
@given(members=MEMBERS)
def test_members_of_any_kind(form: int, members: list, tmp_path_factory: pytest.TempPathFactory) -> None:
    read_all(tar_of(members, form), tmp_path_factory.mktemp("tar"))


@bounded
@given(
    members=MEMBERS,
    cut=st.integers(0, 10_000),
    flips=st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 255)), max_size=5),
)
@example(members=[("1.txt", b"x", tarfile.REGTYPE, None)], cut=1024, flips=[])
def test_cut_and_changed_tar_files(
    members: list, cut: int, flips: list, tmp_path_factory: pytest.TempPathFactory
) -> None:
    data = bytearray(tar_of(members, tarfile.PAX_FORMAT))
    for place, byte in flips:
        data[place % len(data)] = byte
    read_all(bytes(data[: len(data) - cut % len(data)]), tmp_path_factory.mktemp("tar"))


PAX = [
    b"30 size=99999999999999999999\n", b"14 size=-1024\n", b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n",
    b"24 GNU.sparse.size=9999\n", b"0 a=b\n", b"9999999999 a=b\n", b"12 path=\xff\xfe\n", b"\xff" * 40,
    b"18 hdrcharset=BIN\n",
    b"27 GNU.sparse.map=0,1,a,b,c\n", b"13 mtime=nan\n", b"12 uid=1e999\n",
]  # fmt: skip


@pytest.mark.parametrize("header", PAX, ids=range(len(PAX)))
def test_pax_headers(header: bytes, tmp_path: Path) -> None:
    for kind in (b"x", b"g"):
        members = [("h", header, kind, None), ("1.txt", b"99999999\n" * 60, tarfile.REGTYPE, None)]
        read_all(tar_of(members * 3, tarfile.USTAR_FORMAT), tmp_path)


def test_a_sparse_sample_costs_itself(tmp_path: Path) -> None:
    """Made by hand: GNU's header of a file of 1 TB that holds nothing."""
    about = tarfile.TarInfo("2.png")
    about.type, about.size = tarfile.GNUTYPE_SPARSE, 0
    header = bytearray(about.tobuf(tarfile.GNU_FORMAT))
    header[386:410] = b"00000000000\0" + b"00000000000\0"  # the only stretch that is stored: none
    header[483:495] = b"\x80" + (1 << 40).to_bytes(11, "big")  # the size of the whole
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    data = tar_of([("1.txt", b"one", b"0", None)], tarfile.GNU_FORMAT)[:-1024] + bytes(header)
    data += tar_of([("3.txt", b"three", b"0", None)], tarfile.GNU_FORMAT)
    found = list(samples(io.BytesIO(data)))
    assert [one.key for one in found] == ["1", "2", "3"]
    assert [one.parts.get("txt") for one in found] == [b"one", None, b"three"]
    assert "sparse" in found[1].problem


# ---- memory ----------------------------------------------------------------------------------------------------------

BOMBS = {
    "members of 1 TB in a few bytes": """
import gzip, tarfile
about = tarfile.TarInfo("1.png"); about.size = 1 << 40
with gzip.open(place / "x.tar.gz", "wb", 1) as file:
    file.write(about.tobuf(tarfile.GNU_FORMAT))
    for _ in range(1 << 6):
        file.write(bytes(1 << 24))
from blip.data.webdataset import open_shards
open_shards([str(place / "x.tar.gz")])
""",
    "a header of 4 GB": """
import gzip, tarfile
about = tarfile.TarInfo("h"); about.type = b"x"; about.size = 1 << 32
with gzip.open(place / "x.tar.gz", "wb", 1) as file:
    file.write(about.tobuf(tarfile.GNU_FORMAT))
    for _ in range(1 << 6):
        file.write(bytes(1 << 24))
from blip.data.webdataset import open_shards
open_shards([str(place / "x.tar.gz")])
""",
    "a compressed checkpoint": """
import io, torch, zipfile
data = io.BytesIO(); torch.save({"model": {"cls_token": torch.zeros(1)}}, data)
with zipfile.ZipFile(data) as old, zipfile.ZipFile(place / "x.pth", "w", zipfile.ZIP_DEFLATED) as new:
    for record in old.infolist():
        content = bytes(1 << 28) if "/data/" in record.filename else old.read(record)
        new.writestr(record.filename, content)
from blip.checkpoints.convert import read
read(place / "x.pth")
""",
    "a tensor that repeats one number": """
import torch
torch.save({"model": {"text_decoder.x": torch.zeros(1).expand(1 << 20, 1 << 20)}}, place / "x.pth")
from blip.checkpoints.convert import read
read(place / "x.pth")
""",
    "a width of 10^9": """
import json
from blip.checkpoints.info import read_info
sizes = {"width": 10**9, "heads": 1, "depth": 10**7}
(place / "model.json").write_text(json.dumps({"format_version": 1, "task": "caption", "image_encoder": sizes}))
read_info(place / "model.json")
""",
    "a line without end": """
from blip import files
files.MAX_LINE = 1 << 20
with open(place / "x.jsonl", "wb") as file:
    file.truncate(1 << 36)
list(files.read_json_lines(place / "x.jsonl", dict))
""",
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_bombs_take_little_memory_and_time(bomb: str, tmp_path: Path) -> None:
    """In a process that may have 6 GB of addresses, of which torch takes the most."""
    if bomb.endswith("bytes") or "header" in bomb:
        pytest.importorskip("webdataset")
    program = "\n".join([
        "import pathlib, resource, sys", "resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))",
        "from blip.errors import BlipError", "place = pathlib.Path(sys.argv[1])", "try:",
        *(f"    {line}" for line in BOMBS[bomb].strip().splitlines()),
        "except BlipError as error:", "    print('refused:', error)",
    ])  # fmt: skip
    done = subprocess.run([sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, timeout=80,
                          env=script_env())  # fmt: skip
    assert done.stdout.startswith("refused:"), done.stdout + done.stderr[-3000:]
