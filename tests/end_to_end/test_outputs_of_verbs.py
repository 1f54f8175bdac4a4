"""No verb loses a file that is not its own: a table over all verbs that write, with snapshots of the whole tree."""

import json
import os
import re
import shutil
import stat
from pathlib import Path

import pytest
from click.testing import Result
from helpers.running import ROOT, run_verb
from helpers.verbs_that_write import VERBS, Verb, make_inputs, shown, snapshot

import blip.cli
from blip.data.jsonl_shards import read_lines, write_jsonl
from blip.outputs import locked, locked_file

pytestmark = pytest.mark.slow  # all of them together

pytest.importorskip("webdataset")
pytest.importorskip("lxml")
pytest.importorskip("imagehash")
pytest.importorskip("matplotlib")

ALL = pytest.mark.parametrize("verb", VERBS.values(), ids=VERBS)
RUN = pytest.mark.parametrize(
    "verb", [v for v in VERBS.values() if v.whole], ids=[n for n, v in VERBS.items() if v.whole]
)
RESUMED = (
    "activations",
    "ablate",
    "capfilt",
    "pubmed split",
    "pubmed build",
)  # beginnings of commands that know their folders


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the commands read, made once; `place` copies it."""
    folder = tmp_path_factory.mktemp("verbs") / "here"
    with pytest.MonkeyPatch.context() as patch:
        make_inputs(folder, ROOT)
        patch.chdir(folder)
        for name in ("dataset", "dataset1"):
            run(["pubmed", "build", "pairs.jsonl", "--split_shares", "1", "0", "0", "--out", name])
    return folder


@pytest.fixture
def place(inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, a copy of `inputs`; in it images of records are those of the original."""
    shutil.copytree(inputs, tmp_path / "here", symlinks=True)
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("COLUMNS", "200")
    return tmp_path / "here"


def run(words: list[str]) -> Result:
    result = run_verb(*words)
    assert result.exit_code == 0, f"{words}\n{result.output}\n{result.exception!r}"
    return result


def refused(words: list[str], message: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command ends with this message, before its work, and changes nothing at all."""
    before = snapshot(place)
    with monkeypatch.context() as patch:
        patch.setattr("blip.inference.load.load", lambda *_, **__: pytest.fail("the work began"))
        patch.setattr("blip.pubmed.http_client.Client.get", lambda *_, **__: pytest.fail("the work began"))
        result = run_verb(*words)
    text = " ".join(result.output.split())
    assert result.exit_code == 1, f"{words}: {text} {result.exception!r}"
    assert text.startswith("error: ") and "Traceback" not in text and re.search(message, text), f"{words}: {text}"
    assert snapshot(place) == before, words


def files_of(out: Path) -> list[Path]:
    """The files of an output: pictures of three records are three."""
    return (
        [out] if out.name not in ("maps.png", "pipe.png") else [out.with_stem(f"{out.stem}_{n:04d}") for n in range(3)]
    )


def put(path: Path, text: str = "mine") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


# ---- what is refused -------------------------------------------------------------------------------------------------


@ALL
def test_what_is_not_the_commands_own_stays(verb: Verb, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if verb.folder:
        put(place / verb.out / "notes.txt")
        put(place / verb.out / "README.md")
        refused(
            verb.words(verb.out),
            r"a folder with files that this command did not write .*--overwrite",
            place,
            monkeypatch,
        )
    else:
        put(files_of(place / verb.out)[-1])
        refused(verb.words(verb.out), "is a file that this command did not write .*--overwrite", place, monkeypatch)


@ALL
@pytest.mark.parametrize("overwrite", [False, True])
def test_inputs_are_no_outputs(verb: Verb, overwrite: bool, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    more = ["--overwrite"] if overwrite else []
    for name in verb.inputs:
        if (place / name).is_file() != (not verb.folder):
            continue
        aliases = [name, str(place / name), f"./images/../{name}"]
        if not verb.folder:
            os.link(place / name, place / f"hard{Path(verb.out).suffix}")
            os.symlink(place / name, place / f"soft{Path(verb.out).suffix}")
            aliases += [f"soft{Path(verb.out).suffix}"]
            # a new file in place of a link leaves the content that another name has
            aliases += [] if overwrite else [f"hard{Path(verb.out).suffix}"]
        message = r"input of this command|is the name of an image|end in \.json" + (
            "" if overwrite else "|did not write"
        )
        for out in aliases:
            refused(verb.words(out, *more), message, place, monkeypatch)
        for alias in ("hard", "soft"):
            (place / f"{alias}{Path(verb.out).suffix}").unlink(missing_ok=True)


@ALL
def test_places_where_nothing_can_be_written(verb: Verb, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = Path(verb.out)
    put(place / "file")
    refused(verb.words(f"file/{out}"), "file is not a folder", place, monkeypatch)
    if verb.folder:
        put(place / out)
        refused(verb.words(str(out), "--overwrite"), "is a file, and the output is a folder", place, monkeypatch)
    else:
        files_of(place / out)[0].mkdir()
        refused(verb.words(str(out), "--overwrite"), "is a folder, and the output is a file", place, monkeypatch)
    os.mkfifo(files_of(place / f"pipe{out.suffix}")[0])
    refused(verb.words(f"pipe{out.suffix}", "--overwrite"), "neither a file nor a folder", place, monkeypatch)
    (place / "closed").mkdir()
    with monkeypatch.context() as patch:  # also where the tests run as root
        patch.setattr("blip.outputs.os.access", lambda path, mode: Path(path).name != "closed")
        refused(verb.words(f"closed/{out}"), "closed gives no permission to write", place, patch)
    long = "x" * 256 + out.suffix
    refused(verb.words(long), "a name has at most 255 bytes", place, monkeypatch)


def test_conversion_onto_its_source_and_into_folders(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for overwrite in ([], ["--overwrite"]):
        refused(["convert", "retrieval", "retrieval", "--to", "huggingface", *overwrite], "input", place, monkeypatch)
        refused(["convert", "retrieval", ".", *overwrite], "holds retrieval|did not write", place, monkeypatch)
        refused(["convert", "retrieval", "retrieval/tokenizer.json", "--to", "salesforce", *overwrite],
                "input|did not write", place, monkeypatch)  # fmt: skip
    refused(["convert", "retrieval", "caption", "--to", "huggingface"], "did not write", place, monkeypatch)


# ---- what is its own -------------------------------------------------------------------------------------------------


@RUN
def test_the_same_command_twice(verb: Verb, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder that does not exist; then for other inputs, after a change by the user, and with --overwrite."""
    inputs, out = snapshot(place), f"new/deep/{verb.out}"
    run(verb.words(out))
    first = shown(snapshot(place))
    assert {name: first[name] for name in shown(inputs)} == shown(inputs), "the inputs are as they were"
    put(place / out / "notes.txt") if verb.folder else None
    run(verb.words(out))
    second = shown(snapshot(place))
    if verb.folder:
        assert second.pop(f"{out}/notes.txt")
    assert second.keys() == first.keys() and not list(place.rglob("*.partial"))
    if verb.other[0]:
        message = "did not write|was begun with|holds activations with"
        with monkeypatch.context() as patch:
            before = shown(snapshot(place))
            result = run_verb(*verb.words(out, other=True))
            text = " ".join(result.output.split())
            assert result.exit_code == 1 and re.search(message, text) and "--overwrite" in text, text
            assert shown(snapshot(place)) == before
            patch.undo()
    if not verb.folder:
        written = [path for path in files_of(place / out) if path.exists()]
        assert written
        for own in written:
            put(own, "changed by the user")
        refused(verb.words(out), "did not write", place, monkeypatch)
    run(verb.words(out, "--overwrite", other=True))
    third = shown(snapshot(place))
    assert {name: third[name] for name in shown(inputs)} == shown(inputs)
    if verb.folder:
        assert (place / out / "notes.txt").read_text() == "mine"
    else:
        assert all(path.read_bytes() != b"changed by the user" for path in written)


@RUN
def test_overwrite_replaces_what_is_there_and_nothing_else(verb: Verb, place: Path) -> None:
    if verb.folder:
        put(place / verb.out / "notes.txt")
        put(place / verb.out / "shard-00000.extra.tar")
    else:
        for path in files_of(place / verb.out):
            put(path)
        put(place / Path(verb.out).with_suffix("") / "notes.txt")
    before = snapshot(place)
    run(verb.words(verb.out, "--overwrite"))
    after = snapshot(place)
    changed = {name for name in before if after.get(name) != before[name] and not os.path.isdir(place / name)}
    assert changed <= {path.name for path in files_of(place / verb.out)} | {verb.out}, changed
    run(verb.words(verb.out))  # it is its own now


@RUN
def test_what_a_kill_leaves_is_removed_by_the_next_run(verb: Verb, place: Path) -> None:
    """The hidden names under which files are written, as far as a verb uses them."""
    run(verb.words(verb.out))
    files = files_of(place / verb.out) if not verb.folder else [p for p in (place / verb.out).rglob("*") if p.is_file()]
    written = [path for path in files if not path.name.startswith(".")]
    if verb.command.startswith(RESUMED) and verb.folder and "shards" not in verb.command:
        written = []  # whole shards are not written again
    for path in written:
        put(path.with_name(f".{path.name}.partial"), "half")
        put(path.with_name(f".{path.name}.123.partial"), "half")
    run(verb.words(verb.out))
    assert not list(place.rglob(".*.partial"))


@pytest.mark.parametrize("cut", ["record", "files"])
def test_a_run_that_was_killed_may_write_again_with_overwrite(cut: str, place: Path) -> None:
    """Killed between its last file and the record, or in the middle of its files."""
    run(["phantoms", "drawn", "--count", "3", "--image_size", "16"])
    record = place / "drawn" / ".blip.json"
    about = json.loads(record.read_text())
    record.write_text(json.dumps({**about, "unfinished": True, "files": {} if cut == "record" else about["files"]}))
    (place / "drawn" / "captions.json").write_text("half of a former run")
    again = ["phantoms", "drawn", "--count", "3", "--image_size", "16"]
    stopped = run_verb(*again)  # nobody knows whose half it is
    assert stopped.exit_code == 1 and "a run of it was stopped here" in stopped.output
    run([*again, "--overwrite"])
    record.write_text(json.dumps({**about, "unfinished": True, "command": "another"}))
    assert run_verb("phantoms", "drawn", "--count", "3").exit_code == 1


def test_folders_are_cleaned_of_recorded_files_alone(place: Path) -> None:
    run(["phantoms", "drawn", "--count", "3", "--image_size", "16"])
    put(place / "drawn" / "images" / "000009.png")
    run(["phantoms", "drawn", "--count", "1", "--image_size", "16", "--overwrite"])
    assert sorted(p.name for p in (place / "drawn" / "images").iterdir()) == ["000000.png", "000009.png"]
    assert run_verb("phantoms", "drawn", "--count", "12", "--image_size", "16").exit_code == 1  # it would replace it
    merge = ["capfilt", "merge", "--scored", "scored", "--keep", "captions.json", "--out", "tars", "--tar_size"]
    run([*merge, "2"])
    put(place / "tars" / "2024.tar")
    run([*merge, "100"])
    assert sorted(p.name for p in (place / "tars").glob("*.tar")) == ["2024.tar", "shard-00000.tar"]
    put(place / "tars" / "shard-00001.tar")
    assert run_verb(*merge, "2").exit_code == 1


OPTIONS = (  # of a verb: those that make it another command, whose results are others
    ("phantoms", ["--count 2", "--seed 1", "--image_size 24", "--max_lesions 1", "--noise 0.5", "--name_one"]),
    ("convert", ["--to huggingface", "--to huggingface --hf_class retrieval"]),
    ("capfilt merge", ["--threshold 0.6", "--itc_threshold 0", "--fraction 0.5", "--source web"]),
    ("capfilt merge, shards", ["--threshold 0.6", "--source web"]),
    ("capfilt report", ["--threshold 0.6", "--examples 2", "--seed 1"]),
    ("caption", ["--beams 1", "--sample", "--num_return 2", "--prompt lesion", "--min_new_tokens 2"]),
    ("answer", ["--k 1", "--generate"]),
    ("explain", ["--method raw", "--layer 0", "--rows enc"]),
    ("localise", ["--limit 1", "--method relevance"]),
    ("score-maps", ["--limit 1", "--fill mean", "--seed 1", "--score boxes"]),
    ("check-data", ["--max_text_tokens 5", "--dataset captions", "--split train"]),
)


@pytest.mark.parametrize(("name", "others"), OPTIONS, ids=[name for name, _ in OPTIONS])
def test_other_options_are_another_command(
    name: str, others: list[str], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    verb = VERBS[name]
    run(verb.words(verb.out))
    for options in others:
        refused(
            verb.words(verb.out, *options.split()), "did not write for the same inputs|is a file", place, monkeypatch
        )
    run(verb.words(verb.out, *others[0].split(), "--overwrite"))


def test_a_failed_merge_leaves_what_was_there(place: Path) -> None:
    for out in ("merged.jsonl", "tars"):
        run(["capfilt", "merge", "--scored", "scored", "--out", out])
        before = snapshot(place)
        failed = run_verb("capfilt", "merge", "--scored", "scored", "--threshold", "1", "--out", out, "--overwrite")
        assert failed.exit_code == 1 and "nothing passes" in failed.output
        assert snapshot(place) == before
    gone = [{**line, "image": f"{place.parent}/gone.png"} for line in read_lines(place / "scored")]
    write_jsonl(place / "scored" / "shard-00000.jsonl", gone, end=True)
    before = snapshot(place)
    failed = run_verb("capfilt", "merge", "--scored", "scored", "--out", "tars")
    assert failed.exit_code == 1 and "could be read" in failed.output
    assert snapshot(place) == before


def test_outputs_of_earlier_versions_are_known_by_their_headers(place: Path) -> None:
    """They have no records: activations, shards, lines of split and data sets."""
    for name in ("activations", "capfilt caption", "capfilt filter", "pubmed split", "pubmed build"):
        verb = VERBS[name]
        run(verb.words(verb.out))
        for hidden in place.rglob(".*.json"):
            hidden.unlink()
        run(verb.words(verb.out))
        for hidden in place.rglob(".*.json"):
            hidden.unlink()
        result = run_verb(*verb.words(verb.out, other=True))
        assert result.exit_code == 1, f"{name}: {result.output}"


# ---- particular outputs ----------------------------------------------------------------------------------------------


def test_pictures_of_a_series_and_files_beside_an_output(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(place / "maps_0001.png")
    refused(VERBS["explain, pictures"].words("maps.png"), r"maps_0001\.png is a file that", place, monkeypatch)
    for name, beside in (("capfilt merge", "merged.json.merge.json"), ("capfilt merge, shards", "tars.merge.json"),
                         ("pubmed extract", "figures.jsonl.summary.json"),
                         ("pubmed split", "parts.jsonl.summary.json")):  # fmt: skip
        put(place / beside)
        refused(VERBS[name].words(VERBS[name].out), re.escape(beside), place, monkeypatch)


def test_the_folder_of_sub_figures(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(place / "parts" / "notes.txt")
    refused(VERBS["pubmed split"].words("parts.jsonl"), "parts is a folder with files", place, monkeypatch)
    refused(VERBS["pubmed split"].words("lines"), r"call the lines lines\.jsonl", place, monkeypatch)
    figures = [json.loads(line) for line in (place / "pairs.jsonl").read_text().splitlines()]
    (place / "corpus" / "a").mkdir(parents=True)
    shutil.copy(figures[0]["image"], place / "corpus" / "a" / "b.png")
    for where in (
        {"image": str(place / "corpus/a/b.png")},
        {"files": [figures[0]["image"], "corpus/../corpus/a/b.png"]},
    ):
        put(place / "pairs.jsonl", "".join(json.dumps({**figure, **where}) + "\n" for figure in figures))
        for out in ("corpus.jsonl", "corpus/a.jsonl"):
            refused(VERBS["pubmed split"].words(out, "--overwrite"), "holds .*an input of this", place, monkeypatch)


def test_names_of_images_are_no_names_of_other_outputs(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such an image may be one that an input of the command names."""
    named = ("pubmed split", "pubmed extract", "pubmed report", "capfilt report", "check-data", "caption", "match",
             "answer", "localise")  # fmt: skip
    for name in named:
        for out in ("new.png", "images/000001.png", "images/NEW.TIF"):
            refused(VERBS[name].words(out, "--overwrite"), "is the name of an image", place, monkeypatch)


@RUN
def test_a_second_process_ends_before_its_work(verb: Verb, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if verb.command.startswith(("activations", "ablate", "capfilt caption", "capfilt filter")):
        pytest.skip("they take the lock when the model is loaded, before any shard")
    with locked(verb.out) if verb.folder else locked_file(files_of(place / verb.out)[0]):
        for option in ([], ["--overwrite"]):
            refused(verb.words(verb.out, *option), "is being written by process", place, monkeypatch)


def test_settings_of_other_programs(place: Path) -> None:
    """Files of the names that headers have."""
    for name, header in (
        ("activations", "index.json"),
        ("capfilt filter", "settings.json"),
        ("ablate", "settings.json"),
        ("pubmed build", "build.json"),
    ):
        for content in ('{"mine": 1}', '{"shards": 3}', '{"shards": 2, "ends": true}', "[]", "no JSON", "[" * 9999):
            out = place / VERBS[name].out
            put(out / header, content)
            result = run_verb(*VERBS[name].words(str(out)))
            assert result.exit_code == 1 and "Traceback" not in result.output, result.output
            assert (out / header).read_text() == content
            shutil.rmtree(out)


def test_a_record_that_points_elsewhere_deletes_nothing(place: Path) -> None:
    run(["phantoms", "drawn", "--count", "2", "--image_size", "16"])
    victim = put(place / "victim.txt")
    from blip.hashing import signature

    record = place / "drawn" / ".blip.json"
    about = json.loads(record.read_text())
    about["files"] |= {"../victim.txt": signature(victim), str(victim): signature(victim)}
    record.write_text(json.dumps(about))
    run_verb("phantoms", "drawn", "--count", "1", "--image_size", "16")
    run_verb("phantoms", "drawn", "--count", "1", "--image_size", "16", "--overwrite")
    assert victim.read_text() == "mine"


def test_names_of_255_bytes_and_permissions(place: Path) -> None:
    old = os.umask(0o027)
    try:
        for name, out in (
            ("caption", "x" * 250 + ".json"),
            ("check-data", "\u00e4" * 125 + ".json"),
            ("convert", "converted"),
        ):
            for _ in range(2):
                run(VERBS[name].words(out))
            files = [place / out] if (place / out).is_file() else list((place / out).iterdir())
            assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o640}
    finally:
        os.umask(old)


@pytest.mark.parametrize("name", ["activations", "capfilt caption", "capfilt filter", "capfilt merge, shards",
                                  "capfilt run", "pubmed search", "pubmed build", "pubmed run"])  # fmt: skip
def test_two_processes_on_one_folder(name: str, place: Path) -> None:
    verb = VERBS[name]
    out = "corpus2" if name == "pubmed run" else verb.out
    with locked(place / out):
        result = run_verb(*verb.words(verb.out))
    assert result.exit_code == 1 and f"process {os.getpid()} on " in " ".join(result.output.split()), result.output


def test_two_processes_on_one_file_of_lines(place: Path) -> None:
    for name in ("pubmed split", "pubmed extract"):
        with locked(place, name=f".{VERBS[name].out}.lock"):
            result = run_verb(*VERBS[name].words(VERBS[name].out))
        assert result.exit_code == 1 and f"process {os.getpid()} on " in " ".join(result.output.split()), result.output
        run(VERBS[name].words(VERBS[name].out))


# ---- options ---------------------------------------------------------------------------------------------------------


def test_every_verb_that_writes_can_overwrite_and_shows_underscores() -> None:
    import typer

    app = typer.main.get_command(blip.cli.app)
    commands = {}
    for name, one in app.commands.items():  # type: ignore[attr-defined]
        commands |= {f"{name} {n}": c for n, c in one.commands.items()} if hasattr(one, "commands") else {name: one}
    for name in {
        re.match(r"[a-z-]+( [a-z]+)?", v.command.replace(" images", "").replace(" captions", ""))
        for v in VERBS.values()
    }:
        assert name
    for name, command in commands.items():
        options = [option for parameter in command.params for option in [*parameter.opts, *parameter.secondary_opts]
                   if option.startswith("--")]  # fmt: skip
        assert not [option for option in options if "-" in option[2:]], name
        # `fetch` writes to the corpus of `search` alone, the others write nothing
        if name not in ("pubmed fetch", "options", "torchrun", "serve"):
            assert "--overwrite" in options, name


@pytest.mark.parametrize("words", [
    ["capfilt", "merge", "--scored", "scored", "--keep", "captions.json", "--tar-size", "2", "--out", "tars"],
    ["phantoms", "drawn", "--count", "1", "--image-size", "16", "--max-lesions", "1", "--name-one"],
    ["pubmed", "build", "pairs.jsonl", "--out", "d", "--split-shares", "1", "0", "0", "--min-side", "32", "--no-whole"],
    ["caption", "images", "--checkpoint", "caption", "--max-new-tokens", "2", "--batch-size", "1"],
])  # fmt: skip
def test_hyphens_are_underscores(words: list[str], place: Path) -> None:
    run(words)
