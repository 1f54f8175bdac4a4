"""Names of files are bytes: every verb takes any of them, writes them so that they can be read again, and prints no
character that a terminal obeys."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
from helpers.fine_tuning import configure, train
from helpers.random_checkpoints import all_checkpoints
from helpers.running import ROOT, run_verb, script_env
from PIL import Image

from blip.capfilt.merge import Rule, merge
from blip.data.check import check_data
from blip.data.images import find_images, open_image
from blip.data.jsonl_shards import write_jsonl_shards
from blip.data.pairs import read_pairs
from blip.data.places import images_of
from blip.data.questions import read_questions
from blip.data.statements import read_statements
from blip.files import json_text
from blip.pubmed.build import build
from blip.pubmed.extract import extract
from blip.pubmed.panels.split import Options, split
from blip.pubmed.report import write_report
from blip.pubmed.rules import Rules

pytestmark = pytest.mark.slow  # all of them together

NAMES = [
    b"plain.png", b"not utf-8 \xff\xfe\x80.png", b"not utf-8 \xff\xfe\x81.png", b"new\nline.png", b"return\rline.png",
    b"\x1b]0;owned\x07\x1b[31m\x1b[2J.png", b"\xc2\x9b31m.png", b"-rf.png", b"--out.png", b"'\"`.png", b" blanks .png",
    "\u202egnp.exe\u2066.png".encode(), "\u2028\u0085\u00a0\ufeff.png".encode(), b"tab\there\x7f\x08.png",
    b"[bold red]x[red].png", b"%s {0} $HOME `id` ;#&|.png", b"a.parquet#0.png", b"back\\slash.png", b"~.png",
    b"x" * 251 + b".png", "\U0001f9e0e\u0301\u212b.png".encode(), "\u00e9.png".encode("latin-1"), b"*?[a].png",
]  # fmt: skip
BAD = re.compile(rb"[\x00-\x08\x0b-\x1f\x7f]|\xc2[\x80-\x9f]|\xe2\x80[\xa8-\xae]|\xe2\x81[\xa6-\xa9]")


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """A folder, whose own name is hostile too, with an image of each name, each of another grey."""
    folder = tmp_path / os.fsdecode(b"f\xff\n\x1b[1m")
    folder.mkdir()
    for number, name in enumerate(NAMES):
        Image.new("L", (40, 30), 10 * number).save(folder / "x.png")
        os.rename(folder / "x.png", os.path.join(os.fsencode(folder), name))
    return folder


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return all_checkpoints(tmp_path_factory.mktemp("checkpoints"))


def names(paths: Iterable[str | Path]) -> list[bytes]:
    return sorted(os.path.basename(os.fsencode(path)) for path in paths)


def harmless(*outputs: bytes) -> None:
    for output in outputs:
        assert not BAD.search(output), output
        output.decode()
        assert b"Traceback" not in output, output.decode()


def verb(*arguments: object, code: int = 0) -> str:
    result = run_verb(*arguments)
    assert result.exit_code == code, (result.output, result.exception)
    harmless(result.stdout_bytes, result.stderr_bytes)
    return result.output


def test_a_name_with_an_end_of_line_stays_in_its_line(
    checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "400")
    for folder in ("good", "a\nbad"):
        (tmp_path / folder).mkdir()
    Image.new("L", (40, 30)).save(tmp_path / "good" / "new\nline.png")
    (tmp_path / "a\nbad" / "b\nc.png").write_bytes(b"no image")
    common = (
        "caption",
        tmp_path / "good",
        tmp_path / "a\nbad",
        "--checkpoint",
        checkpoints["caption"],
        "--device",
        "cpu",
    )
    table, written = verb(*common, code=1), verb(*common, "--out", tmp_path / "row\ns.json", code=1)
    drawn = verb("phantoms", tmp_path / "drawn\nhere", "--count", "1")
    records = tmp_path / "a\nset.json"
    records.write_text(json.dumps([{"image": "a\nbad/b\nc.png", "caption": "x"}]))
    checked = verb("check-data", records, "--num_workers", "0", code=1)
    for text, shown in (
        (table, r"new\x0aline.png"),
        (table, r"a\x0abad/b\x0ac.png: "),
        (written, r"row\x0as.json"),
        (drawn, r"drawn\x0ahere"),
        (checked, r"b\x0ac.png: "),
        (checked, r"a\x0aset.json"),
    ):
        assert any(shown in line for line in text.splitlines()), text


def test_folders_and_annotations_give_every_name(images: Path) -> None:
    assert names(find_images([images])) == sorted(NAMES)
    file = images.parent / "set.json"
    records = [{"image": os.fsdecode(os.path.join(os.fsencode(images.name), name)), "caption": "x"} for name in NAMES]
    file.write_text(json_text(records))
    assert names(images_of([file])) == sorted(NAMES)
    for place in ("", str(images.parent)):
        pairs = read_pairs([str(file)], place)
        assert names(pairs.image_path(i) for i in range(len(pairs))) == sorted(NAMES)
        assert {open_image(pairs.image_path(i)).getpixel((0, 0))[0] for i in range(len(pairs))} == {
            10 * number for number in range(len(NAMES))
        }
        assert len({pairs.image_id(i) for i in range(len(pairs))}) == len(NAMES)
    report = check_data([str(file)], num_workers=0)
    assert report.ok and report.images == len(NAMES)


def test_questions_and_statements_keep_names(images: Path) -> None:
    every = [os.fsdecode(name) for name in NAMES]
    questions = [{"image": name, "question": "where?", "answer": "left"} for name in every]
    statements = [{"images": [name, every[0]], "sentence": "both", "label": True} for name in every]
    (images / "q.json").write_text(json_text(questions))
    (images / "s.json").write_text(json_text(statements))
    found = read_questions([str(images / "q.json")])
    assert names(found.image_paths(i)[0] for i in range(len(found))) == sorted(NAMES)
    pairs = read_statements([str(images / "s.json")])
    assert names(pairs[i].images[0] for i in range(len(pairs))) == sorted(NAMES)


@pytest.mark.parametrize(
    ("name", "task", "texts"),
    [("caption", "caption", ()), ("match", "retrieval", ("a lesion",)), ("answer", "vqa", ("is there a lesion",))],
)
def test_verbs_over_a_folder(
    name: str, task: str, texts: tuple[str, ...], images: Path, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    (images / os.fsdecode(b"bad \xff\x1b[2J.png")).write_bytes(b"no image")
    common = (name, images, *texts, "--checkpoint", checkpoints[task], "--device", "cpu")
    verb(*common, code=1)
    shown = verb(*common, "--json", code=1)
    assert names(row["image"] for row in json.loads(shown[shown.index("[\n") : shown.rindex("]") + 1])) == sorted(NAMES)
    out = tmp_path / os.fsdecode(b"rows \xff\x1b[2J.json")
    verb(*common, "--out", out, code=1)
    rows = json.loads(out.read_text())
    assert names(row["image"] for row in rows) == sorted(NAMES)
    assert all(os.path.isfile(row["image"]) for row in rows)
    if name == "caption":
        kept = [{**row, "caption": row["caption"] or "x"} for row in rows]
        (tmp_path / "again.json").write_text(json_text(kept))
        pairs = read_pairs([str(tmp_path / "again.json")])
        assert names(pairs.image_path(i) for i in range(len(pairs))) == sorted(NAMES)
        report = tmp_path / "report.json"
        verb("check-data", tmp_path / "again.json", "--num_workers", 0, "--report", report)
        assert json.loads(report.read_text())["ok"]


def test_verbs_of_interpretation(images: Path, checkpoints: dict[str, Path], tmp_path: Path) -> None:
    (images / os.fsdecode(b"bad \xff\x1b[2J.png")).write_bytes(b"no image")
    common = ("--checkpoint", checkpoints["retrieval"], "--device", "cpu")
    verb("explain", images, "a lesion", "--out", tmp_path / os.fsdecode(b"m\xff\x1b.html"), *common, code=1)
    verb(
        "activations", images, "--points", "image.0.out", "--task", "image", "--out", tmp_path / "acts", *common, code=1
    )


def test_what_check_data_shows(images: Path) -> None:
    records = [{"image": os.fsdecode(name) + "x", "caption": "x"} for name in NAMES]
    (images / os.fsdecode(b"set \x1b[2J\xff.json")).write_text(
        json_text([*records, {"image": "\x1b[2J", "caption": 1}])
    )
    shown = verb("check-data", images / os.fsdecode(b"set \x1b[2J\xff.json"), "--num_workers", 0, code=1)
    assert "\\x1b[2J" in shown and "\\udcff" in shown


def test_a_program_of_its_own_prints_nothing_that_a_terminal_obeys(images: Path, tmp_path: Path) -> None:
    """The streams of a real process are strict about characters that UTF-8 does not have."""
    records = [{"image": os.fsdecode(name), "caption": "x"} for name in NAMES]
    (images / "set.json").write_text(
        json_text([*records, {"image": os.fsdecode(b"none \xff\x1b.png"), "caption": "x"}])
    )
    command = [sys.executable, "-m", "blip", "check-data", os.fsencode(images / "set.json"), "--num_workers", "0"]
    result = subprocess.run(command, capture_output=True, cwd=ROOT, env=script_env({"LC_ALL": "C.UTF-8"}))
    assert result.returncode == 1
    harmless(result.stdout, result.stderr)
    assert rb"none \udcff\x1b.png" in result.stdout


def test_names_through_capfilt(images: Path, tmp_path: Path) -> None:
    about = {"text": "a lesion", "source": "web", "round": 0, "match": 0.9, "itc": 0.5, "model": "m"}
    lines = [{"image": str(path), **about} for path in find_images([images])]
    lines.append({**lines[0], "image": str(images / "gone.png")})
    list(write_jsonl_shards(tmp_path / "scored", {"step": "score"}, 1, make_lines=lambda _: lines))
    keep = tmp_path / "keep.json"
    keep.write_text(json_text([{"image": lines[1]["image"], "caption": "kept"}]))
    for ending in (".json", ".jsonl", ""):
        out = tmp_path / f"merged{ending}"
        merged = merge([tmp_path / "scored"], out, Rule(0.5), keep=[str(keep)])
        if ending:
            pairs = read_pairs([str(out)])
            found = names(pairs.image_path(i) for i in range(len(pairs)))
            assert found == sorted([*NAMES, b"gone.png", os.path.basename(os.fsencode(lines[1]["image"]))])
        else:
            assert merged.problems == 1


ARTICLE = """<article><front><article-meta><article-id pub-id-type="pmc">PMC1</article-id>
<title-group><article-title>t</article-title></title-group><permissions>
<license license-type="open-access"><license-p>http://creativecommons.org/licenses/by/4.0/</license-p></license>
</permissions></article-meta></front><body><fig id="f1"><label>Figure 1</label>
<caption><p>Axial MRI of the brain with a lesion.</p></caption>
<graphic xmlns:xlink="http://www.w3.org/1999/xlink" xlink:href="fig1"/></fig></body></article>"""


def test_names_through_the_steps_of_pubmed(tmp_path: Path) -> None:
    pytest.importorskip("lxml")
    pytest.importorskip("imagehash")
    folder = tmp_path / os.fsdecode(b"corpus \xff\x1b[2J\n")
    noise = np.random.default_rng(0)
    for number in range(3):
        place = folder / os.fsdecode(b"article \xfe%d" % number)
        place.mkdir(parents=True)
        (place / "a.xml").write_text(ARTICLE.replace("PMC1", f"PMC{number}"))
        coarse = Image.fromarray(noise.integers(0, 255, (6, 8, 3), dtype=np.uint8))
        coarse.resize((200, 150), Image.Resampling.BICUBIC).save(place / "fig1.jpg")
    figures, pairs, out = (tmp_path / os.fsdecode(b"%s\xff.jsonl" % name) for name in (b"figures", b"pairs", b"set"))
    out = out.with_suffix("")
    assert extract(folder, figures).files == 3
    assert split(figures, pairs, Options(str(tmp_path / os.fsdecode(b"crops\xff")))).figures == 3
    built = build(pairs, out, Rules(licenses=[], unlicensed=True), decontaminate=None, shards=True)
    assert sum(built.pairs.values()) == 3 and not built.problems
    files = [str(out / f"{name}.json") for name in ("train", "val", "test") if built.pairs[name]]
    read = read_pairs([*files])
    assert len(read) == 3 and all(open_image(read.image_path(i)).size == (200, 150) for i in range(3))
    write_report(out, tmp_path / "report.html")
    shutil.rmtree(folder)
    verb("pubmed", "split", figures, "--out", tmp_path / os.fsdecode(b"again \xff\x1b[2J.jsonl"))
    shown = verb("pubmed", "build", pairs, "--out", tmp_path / os.fsdecode(b"none \xff\x1b[2J"), "--unlicensed", code=1)
    assert "none is left" in shown


@pytest.mark.parametrize("task", ["caption", "vqa", "retrieval", "nlvr"])
def test_training_and_evaluation(
    task: str,
    images: Path,
    phantoms: Path,
    tiny_config: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture,
    no_java_nor_peak: None,
) -> None:
    """Annotations whose images have hostile names, and one that is gone: what the run writes names it."""
    config = configure(task, phantoms, tmp_path, "max_skipped_fraction=1", "max_steps=2")
    hostile = [os.fsdecode(os.path.join(os.fsencode(images), name)) for name in NAMES]
    lost = os.path.join(images, os.fsdecode(b"gone \xff\x1b[2J.png"))
    for file in sorted({str(one) for one in (*config.train_file, *config.val_file, *config.test_file)}):
        records = json.loads(Path(file).read_text())
        for number, record in enumerate(records):
            path = [lost, *hostile][(7 * len(records) + number) % (len(hostile) + 1)] if number else lost
            record |= {"images": [path, hostile[0]]} if "images" in record else {"image": path}
        Path(file).write_text(json_text(records))
    train(task, config, tmp_path / "run")
    shown = capfd.readouterr()
    harmless(shown.out.encode(), shown.err.encode())
    written = [path for path in (tmp_path / "run").rglob("*.json*") if path.is_file()]
    texts = "".join(path.read_text() for path in written)
    assert json.dumps(os.path.basename(lost))[1:-1] in texts, "the image that is gone is named"
