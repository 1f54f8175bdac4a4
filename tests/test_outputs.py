"""What a command may write, and which process writes to a folder."""

import json
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from helpers.running import ROOT

from blip.files import WriteError
from blip.hashing import fingerprint, signature
from blip.outputs import LockedError, OutputError, claim_output, locked

pytestmark = pytest.mark.slow  # all of them together


def write(path: Path, text: str = "mine") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_a_new_file_and_its_repetition(tmp_path: Path) -> None:
    source, out = write(tmp_path / "a.png"), tmp_path / "new" / "rows.json"
    claim = claim_output(out, "caption", inputs=[source])
    assert not out.parent.exists(), "claiming changes nothing"
    write(out)
    claim.done()
    claim_output(out, "caption", inputs=[source])
    for command, inputs in [("match", [source]), ("caption", [source, out.parent / "b.png"]), ("caption", [])]:
        with pytest.raises(OutputError, match=r"rows\.json is a file that this command did not write"):
            claim_output(out, command, inputs=inputs)
    claim_output(out, "match", overwrite=True)
    out.write_text("changed by the user")
    with pytest.raises(OutputError, match="did not write"):
        claim_output(out, "caption", inputs=[source])


def test_a_file_of_the_user(tmp_path: Path) -> None:
    out = write(tmp_path / "notes.json")
    with pytest.raises(OutputError, match="--overwrite"):
        claim_output(out, "caption")
    claim_output(out, "caption", known=True)
    claim_output(out, "caption", overwrite=True)
    assert out.read_text() == "mine"


@pytest.mark.parametrize("overwrite", [False, True])
def test_an_output_is_never_an_input(tmp_path: Path, overwrite: bool) -> None:
    source = write(tmp_path / "set" / "a.png")
    os.link(source, tmp_path / "hard.png")
    os.symlink(source, tmp_path / "soft.png")
    for out in (source, tmp_path / "hard.png", tmp_path / "soft.png", tmp_path / "set" / ".." / "set" / "a.png"):
        with pytest.raises(OutputError, match="is an input"):
            claim_output(out, "caption", inputs=[source], overwrite=overwrite)
    with pytest.raises(OutputError, match=r"holds .*a\.png, an input"):
        claim_output(tmp_path, "build", inputs=[source], folder=True, overwrite=overwrite)
    claim_output(tmp_path / "set" / "panels", "split", inputs=[tmp_path / "set"], folder=True)


def test_a_folder_is_cleaned_of_its_own_files_alone(tmp_path: Path) -> None:
    out = tmp_path / "shards"
    claim = claim_output(out, "merge", folder=True)
    for name in ("0.tar", "1.tar", "2.tar"):
        write(out / name)
    claim.done(["0.tar", out / "1.tar", "2.tar"])
    write(out / "notes.txt")
    claim = claim_output(out, "merge", folder=True)
    write(out / "1.tar", "edited meanwhile by the user")
    claim.done(["0.tar"])
    assert sorted(p.name for p in out.iterdir()) == [".blip.json", "0.tar", "1.tar", "notes.txt"]
    other = write(tmp_path / "other" / "x.tar").parent
    with pytest.raises(OutputError, match="a folder with files that this command did not write"):
        claim_output(other, "merge", folder=True)


def test_places_where_nothing_can_be_written(tmp_path: Path) -> None:
    file = write(tmp_path / "file")
    with pytest.raises(WriteError, match="file is not a folder"):
        claim_output(file / "below" / "rows.json", "caption")
    with pytest.raises(OutputError, match="is a folder, and the output is a file"):
        claim_output(tmp_path, "caption")
    with pytest.raises(OutputError, match="is a file, and the output is a folder"):
        claim_output(file, "build", folder=True)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OutputError, match="neither a file nor a folder"):
        claim_output(tmp_path / "pipe", "caption", overwrite=True)
    for damaged in ("[]", "{", '{"files": 3}', "[" * 9999):
        write(tmp_path / ".file.blip.json", damaged)
        with pytest.raises(OutputError):
            claim_output(file, "caption")


def test_an_output_that_is_written_in_a_block(tmp_path: Path) -> None:
    out = tmp_path / "new" / "rows.json"
    with pytest.raises(KeyboardInterrupt), claim_output(out, "caption").writing():
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir()), "nothing is left of a run that wrote nothing"
    with claim_output(out, "caption").writing():
        assert json.loads((out.parent / ".rows.json.blip.json").read_text())["unfinished"]
        write(out, "whole")  # killed here, nobody can tell it from a file of the user's
        for command, stopped in (("caption", "; a run of it was stopped here"), ("match", "")):
            with pytest.raises(OutputError, match=re.escape(f"same inputs{stopped}: choose")):
                claim_output(out, command)
    record = (out.parent / ".rows.json.blip.json").read_bytes()
    with pytest.raises(ValueError, match="x"), claim_output(out, "caption").writing():
        raise ValueError("x")
    assert (out.parent / ".rows.json.blip.json").read_bytes() == record
    first, second = claim_output(out, "caption"), claim_output(out, "caption")
    with first.writing():
        write(out, "of the first")
    with pytest.raises(OutputError, match="by another process meanwhile"), second.writing():
        write(out, "of the second")
    assert out.read_text() == "of the first"


def test_files_beside_an_output_and_names_in_a_folder(tmp_path: Path) -> None:
    summary = write(tmp_path / "out.summary")
    with pytest.raises(OutputError, match=r"out\.summary is a file that"):
        claim_output(tmp_path / "out", "extract", names=["out.summary"])
    with claim_output(tmp_path / "out", "extract", names=["out.summary"], overwrite=True).writing() as written:
        write(tmp_path / "out")
        write(summary)
        written += ["out", "out.summary"]
    claim_output(tmp_path / "out", "extract", names=["out.summary"])
    write(summary, "changed")
    with pytest.raises(OutputError, match=r"out\.summary is a file that"):
        claim_output(tmp_path / "out", "extract", names=["out.summary"])
    with claim_output(tmp_path / "shards", "merge", folder=True).writing() as written:
        write(tmp_path / "shards" / "0.tar")
        written += ["0.tar"]
    write(tmp_path / "shards" / "notes.txt")
    claim_output(tmp_path / "shards", "merge", folder=True, names=["*.tar"])
    write(tmp_path / "shards" / "1.tar")
    with pytest.raises(OutputError, match=r"\(1\.tar\)"):
        claim_output(tmp_path / "shards", "merge", folder=True, names=["*.tar"])


def test_a_foreign_record_beside_a_file_deletes_nothing(tmp_path: Path) -> None:
    victims = [write(tmp_path / name) for name in ("victim", "sub/victim")]
    out, record = tmp_path / "o.json", tmp_path / ".o.json.blip.json"
    with claim_output(out, "caption").writing():
        write(out)
    about = json.loads(record.read_text())
    for name in ("victim", "sub/victim", "./victim", "x" * 5_000, "y/" * 3_000 + "y"):
        about["files"][name] = signature(victims[0])
    for overwrite in (False, True):
        write(record, json.dumps(about))
        with claim_output(out, "caption", overwrite=overwrite).writing():
            write(out)
        assert all(path.exists() for path in victims)
        assert set(json.loads(record.read_text())["files"]) == {"o.json"}


@pytest.mark.parametrize("name", ["a\0b", "\ud800", "x" * 5_000, "y/" * 3_000 + "y", "", "."])
def test_a_record_with_what_names_no_file(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "shards"
    with claim_output(folder, "merge", folder=True).writing() as written:
        write(folder / "0.tar")
        written += ["0.tar"]
    record = folder / ".blip.json"
    about = json.loads(record.read_text())
    write(record, json.dumps(about | {"files": {name: [1, "a"]} | about["files"]}))
    with claim_output(folder, "merge", folder=True, overwrite=True).writing() as written:
        write(folder / "0.tar")
        written += ["0.tar"]
    assert list(json.loads(record.read_text())["files"]) == ["0.tar"]


def test_a_record_does_not_change_the_fingerprint_of_weights(tmp_path: Path) -> None:
    write(tmp_path / "model.json")
    before = fingerprint(tmp_path)
    claim_output(tmp_path, "convert", folder=True, known=True).done(["model.json"])
    assert (tmp_path / ".blip.json").is_file() and fingerprint(tmp_path) == before


HOLD = """
import sys, time
from blip.outputs import locked
with locked(sys.argv[1]):
    print("locked", flush=True)
    time.sleep(60)
"""


def test_two_processes_and_a_dead_one(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "locked\n"
        with pytest.raises(LockedError, match=f"process {holder.pid} on "), locked(tmp_path):
            pass
        holder.kill()
    with locked(tmp_path):
        about = json.loads((tmp_path / ".blip.lock.json").read_text())
        assert about["process"] == os.getpid()
    with locked(tmp_path):  # it can be taken again
        pass
    with locked(tmp_path / "new" / "deep"):
        pass
    assert not (tmp_path / "new").exists(), "nothing was written there"


def test_a_lock_that_a_child_of_a_dead_process_holds(tmp_path: Path) -> None:
    child = HOLD.replace("time.sleep(60)", "import os\n    if os.fork():\n        os._exit(0)\n    time.sleep(8)")
    with subprocess.Popen(
        [sys.executable, "-c", child, str(tmp_path)], stdout=subprocess.PIPE, text=True, cwd=ROOT
    ) as p:
        assert p.stdout is not None and p.stdout.readline() == "locked\n"
        p.wait(10)
        begin = time.monotonic()
        with locked(tmp_path):
            assert time.monotonic() - begin < 5, "taken over while the child lives"


def ended_process() -> int:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait(20)
        return process.pid


NUMBERS = ("DEAD", "0", "-1", "true", "1" + "0" * 30, "Infinity", "1e9", '"7"')
OTHERS = ("", "{", "[" * 100_000, '{"host": 3}', *(f'{{"host": "HOST", "process": {n}}}' for n in NUMBERS))


@pytest.mark.parametrize("owner", [*OTHERS, "x" * 5_000, None, "PIPE", "FOLDER"])
def test_a_lock_is_never_taken_from_a_living_process(tmp_path: Path, owner: str | None, monkeypatch) -> None:
    """What lies beside it about its holder may be of a former one, damaged, or not there yet."""
    monkeypatch.setattr("blip.distributed.locks.OWNER_SECONDS", 0.3)
    command, about = [sys.executable, "-c", HOLD, str(tmp_path)], tmp_path / ".blip.lock.json"
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "locked\n"
        file = (tmp_path / ".blip.lock").stat().st_ino
        about.unlink()
        if owner == "PIPE":
            os.mkfifo(about)
        elif owner == "FOLDER":
            about.mkdir()
        elif owner is not None:
            about.write_text(owner.replace("HOST", socket.gethostname()).replace("DEAD", str(ended_process())))
        try:
            for _ in range(2):
                with pytest.raises(LockedError, match="is being written by a process that"), locked(tmp_path):
                    pass
            assert (tmp_path / ".blip.lock").stat().st_ino == file
        finally:
            holder.kill()
    if owner != "FOLDER":
        with locked(tmp_path):
            assert json.loads(about.read_text())["process"] == os.getpid()


def test_the_name_of_a_new_holder_is_waited_for(tmp_path: Path) -> None:
    late = HOLD.replace("with locked", "import blip.distributed.locks as d\nwrite = d.write_whole\n"
                        "def slow(*a): print('locked', flush=True); time.sleep(1); write(*a)\nd.write_whole = slow\n"
                        "with locked")  # fmt: skip
    about = {"host": socket.gethostname(), "process": ended_process()}
    write(tmp_path / ".blip.lock.json", json.dumps(about))
    command = [sys.executable, "-c", late, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as holder:
        assert holder.stdout is not None and holder.stdout.readline() == "locked\n"
        try:
            with pytest.raises(LockedError, match=f"by process {holder.pid} on "), locked(tmp_path):
                pass
        finally:
            holder.kill()


def test_a_lock_writes_through_no_link(tmp_path: Path) -> None:
    other = write(tmp_path / "other")
    for link in (os.symlink, os.link, lambda _, path: os.mkfifo(path)):
        for name in (".blip.lock.json", "..blip.lock.json.partial", ".blip.lock"):
            folder = Path(tempfile.mkdtemp(dir=tmp_path))
            link(other, folder / name)
            if name == ".blip.lock":
                with pytest.raises(WriteError, match=r"blip\.lock, a lock, is a link .* remove it"), locked(folder):
                    pass
            else:
                with locked(folder):
                    pass
            assert other.read_text() == "mine"
