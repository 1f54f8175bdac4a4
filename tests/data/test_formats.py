"""Data sets of captions as distributed, images inside parquet and arrow files, checks, and broken files of any set."""

import errno
import json
import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers.real_files import RAD, lines, need, read
from helpers.running import run_verb
from helpers.set_files import BAD, hub_rows, png, put, put_arrow, put_parquet, shade

from blip.data.check import check_data
from blip.data.formats import AnnotationError, iter_json_object, iter_records
from blip.data.image_bytes import read_image
from blip.data.images import UnreadableImage, open_image
from blip.data.pairs import Pairs, read_pairs
from blip.data.questions import read_questions
from blip.data.sets.vqa_med import MAX_OPTIONAL, alternatives
from blip.hashing import stable_hash


def listed(pairs: Pairs) -> list[tuple[str, list[str]]]:
    return [(Path(pairs.image_path(i)).as_posix(), pairs.captions(i)) for i in range(len(pairs))]


# ---- captions --------------------------------------------------------------------------------------------------------


def test_roco_both_forms(tmp_path: Path) -> None:
    table = 'id,name,caption\nROCO_00002,PMC4083729_AMHSR-4-14-g002.jpg," Computed tomography, axial\n"\n'
    put(tmp_path / "csv/train/radiologytraindata.csv", table)
    put(tmp_path / "csv/train/radiology/images/PMC4083729_AMHSR-4-14-g002.jpg", png(0))
    put(tmp_path / "git/data/validation/radiology/captions.txt", 'ROCO_00017\t A "12" mm mass \n\nROCO_00018\t B\n')
    put(tmp_path / "git/data/validation/radiology/images/ROCO_00017.jpg", png(0))
    found = read_pairs([str(tmp_path / "csv")], dataset="roco", split="train")
    name = f"{tmp_path.as_posix()}/csv/train/radiology/images/PMC4083729_AMHSR-4-14-g002.jpg"
    assert listed(found) == [(name, ["Computed tomography, axial"])]
    assert found.group(0) == stable_hash("group", "PMC4083729")
    found = read_pairs([str(tmp_path / "git")], dataset="roco", split="val")
    folder = f"{tmp_path.as_posix()}/git/data/validation/radiology/images"
    expected = [(f"{folder}/ROCO_00017.jpg", ['A "12" mm mass']), (f"{folder}/ROCO_00018.jpg", ["B"])]
    assert listed(found) == expected
    text = str(tmp_path / "git/data/validation/radiology/captions.txt")
    assert listed(read_pairs([text], dataset="roco")) == expected


def test_rocov2_both_forms(tmp_path: Path) -> None:
    put(tmp_path / "valid_captions.csv", "ID,Caption\nROCOv2_2023_valid_000001,Chest X-ray\n")
    put(tmp_path / "valid_concepts.csv", "ID,CUIs\nROCOv2_2023_valid_000001,C1306645;C0817096\n")
    (tmp_path / "valid").mkdir()
    found = read_pairs([str(tmp_path)], dataset="rocov2", split="validation")
    assert listed(found) == [(f"{tmp_path.as_posix()}/valid/ROCOv2_2023_valid_000001.jpg", ["Chest X-ray"])]
    rows = [{**row, "cui": ["C1"]} for row in hub_rows(3, image_id="ROCOv2_2023_test", caption="axial CT")]
    put_parquet(tmp_path / "hub/data/test-00000-of-00001.parquet", rows)
    found = read_pairs([str(tmp_path / "hub")], dataset="rocov2", split="test")
    assert [found.captions(i) for i in range(3)] == [["axial CT 0"], ["axial CT 1"], ["axial CT 2"]]
    assert [shade(open_image(found.image_path(i))) for i in (2, 0, 1)] == [2, 0, 1]
    assert len({found.image_id(i) for i in range(3)}) == 3


def test_pmc_oa_and_medicat(tmp_path: Path) -> None:
    line = {"image": "PMC212319_Fig3_4.jpg", "caption": "A. Real time image", "pmcid": "PMC212319"}
    put(tmp_path / "oa/pmc_oa.jsonl", json.dumps(line) + "\n")
    (tmp_path / "oa/images").mkdir()
    found = read_pairs([str(tmp_path / "oa")], dataset="pmc_oa", split="train")
    assert listed(found) == [(f"{tmp_path.as_posix()}/oa/images/PMC212319_Fig3_4.jpg", ["A. Real time image"])]
    assert found.group(0) == stable_hash("group", "PMC212319")
    figure = {"pdf_hash": "57c9", "fig_key": "Figure1", "s2orc_references": ["as Figure 1 shows"]}
    lines = [
        {**figure, "fig_uri": "2-Figure1-1.png", "s2_caption": "(A) Barium enema", "s2orc_caption": "other"},
        {**figure, "fig_uri": "57c9_3-Figure2-1.png", "s2_caption": None, "s2orc_caption": "only S2ORC"},
    ]
    path = put(tmp_path / "medicat/subset.jsonl", "\n".join(map(json.dumps, lines)))
    (tmp_path / "medicat/figures").mkdir()
    found = read_pairs([str(path)], dataset="medicat")
    folder = f"{tmp_path.as_posix()}/medicat/figures"
    assert listed(found) == [
        (f"{folder}/57c9_2-Figure1-1.png", ["(A) Barium enema"]),
        (f"{folder}/57c9_3-Figure2-1.png", ["only S2ORC"]),
    ]


def test_coco_and_flickr(tmp_path: Path) -> None:
    put(tmp_path / "blip/coco_karpathy_train.json", [{"image": "v/1.jpg", "caption": "one", "image_id": "coco_1"}])
    put(tmp_path / "blip/coco_karpathy_val.json", [{"image": "v/2.jpg", "caption": ["a", "b"], "image_id": "coco_2"}])
    found = read_pairs([str(tmp_path / "blip")], dataset="coco", split="val")
    assert listed(found) == [(f"{tmp_path.as_posix()}/blip/v/2.jpg", ["a", "b"])]
    images = [
        {"filename": f"{i}.jpg", "imgid": i, "split": split, "sentences": [{"raw": f"x{i}"}, {"raw": f"y{i}"}]}
        for i, split in enumerate(["train", "restval", "val", "test"])
    ]
    path = put(tmp_path / "dataset_flickr30k.json", {"dataset": "flickr30k", "images": images})
    found = read_pairs([str(path)], dataset="flickr", split="train")
    assert listed(found) == [(f"{tmp_path.as_posix()}/{i}.jpg", [f"x{i}", f"y{i}"]) for i in (0, 1)]
    assert len(read_pairs([str(tmp_path)], dataset="flickr", split="test")) == 1
    assert len(read_pairs([str(path)], dataset="flickr")) == 4


def test_msrvtt(tmp_path: Path) -> None:
    lines = [{"clip_name": "video7020", "caption": "a man"}, {"clip_name": "x/video7021.avi", "caption": "a dog"}]
    put(tmp_path / "msrvtt_test.jsonl", "\n".join(map(json.dumps, lines)))
    (tmp_path / "videos").mkdir()
    found = read_pairs([str(tmp_path)], dataset="msrvtt", split="test")
    folder = f"{tmp_path.as_posix()}/videos"
    assert listed(found) == [(f"{folder}/video7020.mp4", ["a man"]), (f"{folder}/x/video7021.avi", ["a dog"])]
    assert len({found.image_id(0), found.image_id(1)}) == 2


def test_coco_original(tmp_path: Path) -> None:
    content = {
        "info": {"year": 2017},
        "annotations": [{"image_id": 9, "id": 1, "caption": "a"}, {"image_id": 9, "id": 2, "caption": "b"}],
        "images": [{"id": 9, "file_name": "000000000009.jpg"}],
        "licenses": [],
    }
    put(tmp_path / "annotations/captions_val2017.json", content)
    (tmp_path / "val2017").mkdir()
    found = read_pairs([str(tmp_path)], dataset="coco_captions", split="validation")
    assert listed(found) == [(f"{tmp_path.as_posix()}/val2017/000000000009.jpg", ["a", "b"])]


def test_json_objects_are_read_item_by_item(tmp_path: Path) -> None:
    content = {"a": [1, [2], {"b": "]}"}], "empty": [], "text": "x, y", "object": {"k": [3]}, "last": None}
    path = put(tmp_path / "x.json", json.dumps(content, indent=2))
    found = list(iter_json_object(path))
    assert found == [
        ("a", 1), ("a", [2]), ("a", {"b": "]}"}), ("text", "x, y"), ("object", {"k": [3]}), ("last", None),
    ]  # fmt: skip
    assert list(iter_json_object(put(tmp_path / "y.json", "{}"))) == []


# ---- questions -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ct", ["ct"]),
        ("cta#ct angiography", ["cta", "ct angiography"]),
        ("ct (with contrast)#cta", ["ct with contrast", "ct", "cta"]),
        ("(left) lung (mass)", ["left lung mass", "left lung", "lung mass", "lung"]),
        (
            "ct (with) contrast (iv)#cta",
            ["ct with contrast iv", "ct with contrast", "ct contrast iv", "ct contrast", "cta"],
        ),
        ("(noncontrast)", ["noncontrast"]),
        ("mr (t2 (weighted))", ["mr t2 weighted", "mr", "mr t2"]),
        ("ct#CT#ct", ["ct", "CT"]),
        ("open (bracket", ["open (bracket"]),
        (" # ( )", []),
    ],
)
def test_alternatives_of_a_reference(text: str, expected: list[str]) -> None:
    assert alternatives(text) == expected


def test_alternatives_stay_few() -> None:
    assert len(alternatives(" ".join(f"(w{i})" for i in range(30)))) <= 2**MAX_OPTIONAL


def test_joined_categories_of_vqa_rad_have_one_name(tmp_path: Path) -> None:
    row = {"image_name": "a.jpg", "question": "where?", "answer": "left", "answer_type": "OPEN"}
    kinds = ["PRES, ATTRIB", "ATTRIB,PRES ", "Other", ""]
    path = put(tmp_path / "x.json", [{**row, "qid": i, "question_type": kind} for i, kind in enumerate(kinds)])
    found = read_questions([str(path)], str(tmp_path), "vqa_rad")
    assert [found[i].category for i in range(4)] == ["attrib+pres", "attrib+pres", "other", ""]


# ---- images inside parquet and arrow ---------------------------------------------------------------------------------


def test_a_row_of_parquet_and_of_arrow(tmp_path: Path) -> None:
    path = put_parquet(tmp_path / "x.parquet", hub_rows(5, caption="t"))
    folder = put_arrow(tmp_path / "train", hub_rows(5, first=40, caption="t"))
    for row in (4, 0, 3, 2, 1, 4):
        assert read_image(f"{path}#{row}") == png(row)
    assert [shade(open_image(f"{folder}/data-00001-of-00002.arrow#{row}")) for row in (1, 0)] == [43, 41]
    for row in (5, 99):
        with pytest.raises(UnreadableImage, match="it has 5 rows"):
            open_image(f"{path}#{row}")
    with pytest.raises(UnreadableImage, match="no such file"):
        open_image(f"{tmp_path}/y.parquet#0")
    with pytest.raises(UnreadableImage, match="no such file"):
        open_image(f"{path}#-1")


def test_real_files_with_a_hash_in_their_name_open(tmp_path: Path) -> None:
    put(tmp_path / "slice#3.png", png(7))
    put(tmp_path / "odd.parquet#3", png(9))
    put_parquet(tmp_path / "odd.parquet", hub_rows(4))
    assert shade(open_image(tmp_path / "slice#3.png")) == 7
    assert shade(open_image(tmp_path / "odd.parquet#3")) == 9
    assert shade(open_image(tmp_path / "odd.parquet#2")) == 2


def test_bytes_alone_paths_alone_and_nothing(tmp_path: Path) -> None:
    put(tmp_path / "beside.png", png(5))
    path = put_parquet(tmp_path / "plain.parquet", [{"image": png(3)}, {"image": None}])
    assert shade(open_image(f"{path}#0")) == 3
    with pytest.raises(UnreadableImage, match=r"row 1 of .* holds no image"):
        open_image(f"{path}#1")
    path = put_parquet(tmp_path / "s.parquet", [{"image": {"bytes": png(1), "path": "a"}},
                                               {"image": {"bytes": None, "path": "beside.png"}}])  # fmt: skip
    assert shade(open_image(f"{path}#1")) == 5


def _shades(references: list[str]) -> list[int]:
    return [shade(open_image(reference)) for reference in references]


def test_forked_workers_open_their_own_files(tmp_path: Path) -> None:
    path = put_parquet(tmp_path / "x.parquet", hub_rows(8))
    references = [f"{path}#{row}" for row in range(8)]
    assert _shades(references) == list(range(8))  # opened here first, so that a worker could inherit positions
    with multiprocessing.get_context("fork").Pool(2) as pool:
        assert pool.map(_shades, [references[::-1], references] * 3) == [list(range(8))[::-1], list(range(8))] * 3


def test_generic_parquet_with_images(tmp_path: Path) -> None:
    path = put_parquet(tmp_path / "x.parquet", hub_rows(3, caption="text"))
    found = read_pairs([str(path)], image_root=str(tmp_path))
    assert found.image_path(1) == f"{path}#1"
    report = check_data([str(path)], num_workers=0)
    assert report.ok and report.images == 3


# ---- checks ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "record", "kind"), [
    ("c.json", {"caption": "x"}, "captions"),
    ("q.json", {"question": "is it?", "answer": "yes"}, "questions"),
    ("s.json", {"sentence": "two dogs", "label": "True"}, "sentences"),
])  # fmt: skip
def test_check_tells_generic_files_apart(tmp_path: Path, name: str, record: dict, kind: str) -> None:
    put(tmp_path / "a.png", png(0))
    path = put(tmp_path / name, [{"image": "a.png", **record}, {"image": "b.png", **record}, {"image": "a.png"}])
    report = check_data([str(path)], num_workers=0)
    assert (report.kind, report.files[0].records, report.files[0].texts, len(report.errors)) == (kind, 3, 2, 1)
    assert report.broken_images == [(str(tmp_path / "b.png"), "no such file")]
    assert report.answer_types == {"questions": {"closed": 2}, "sentences": {"true": 2}}.get(kind, {})


def test_check_counts_questions_without_answers(tmp_path: Path) -> None:
    put(tmp_path / "a.png", png(0))
    asked = {"image": "a.png", "question": "is it?"}
    path = put(tmp_path / "vqa_test.json", [asked, {**asked, "question": "is it not?", "answer": ["yes", "no no"]}])
    report = check_data([str(path)], dataset="vqa_v2", num_workers=0)
    assert report.ok and report.unanswered == 1
    assert report.answer_percentiles == {50: 2, 90: 2, 95: 2, 99: 2, 100: 2}
    assert report.length_percentiles[50] == 3 and report.length_percentiles[100] == 3


def test_check_data_verb_knows_sets(tmp_path: Path) -> None:
    put_arrow(tmp_path / "train", hub_rows(4, question="what", answer="cyst"))
    put_arrow(tmp_path / "test", hub_rows(2, first=9, question="is it", answer="yes"))
    put(tmp_path / "dataset_dict.json", {"splits": ["train", "test"]})
    done = run_verb("check-data", tmp_path, "--dataset", "retina_vqa", "--report", tmp_path / "r.json")
    assert done.exit_code == 0, done.output
    assert "6 open" in done.stdout and "no errors" in done.stdout
    assert json.loads((tmp_path / "r.json").read_text())["images"] == 6
    done = run_verb("check-data", tmp_path, "--dataset", "retina_vqa", "--split", "test")
    assert "2 open" in done.stdout
    done = run_verb("check-data", tmp_path, "--dataset", "retina")
    assert done.exit_code == 1 and "dataset is 'retina'; did you mean 'retina_vqa'" in done.stderr


def images_and_texts(data: Path, path: str) -> tuple[int, int]:
    """Different images and texts of a set, counted in its own files."""
    if path == "vqa_rad":
        rows = read(data, RAD)
        return len({row["image_name"] for row in rows}), len(rows)
    if path == "vqa_med_2019":
        rows = [row for split in ("train", "val") for row in (med_lines(data, split))]
        return len({row.split("|")[0] for row in rows}), len(rows)
    if path == "nlvr_sample":
        rows = read(data, f"{path}/nlvr.json")
        return len({row["image"] for row in rows}), len(rows)
    if path.endswith("captions_subset.json"):
        content = read(data, path)
        return len({row["image_id"] for row in content["annotations"]}), len(content["annotations"])
    if path.endswith("captions.json"):
        rows = read(data, path)
        return len(rows), sum(len(row["caption"]) for row in rows)
    if path.endswith("tiny-dev.json"):
        rows = lines(data, path)
        pairs = [row["identifier"].rpartition("-")[0] for row in rows]  # two images each, one or more sentences
        return 2 * len(set(pairs)), len(rows)
    questions = read(data, path)["questions"]
    return len({row["image_id"] for row in questions}), len(questions)


def med_lines(data: Path, split: str) -> list[str]:
    folder = {"train": "training", "val": "validation"}[split]
    text = need(data, f"vqa_med_2019/{folder}/All_QA_Pairs_{split}.txt").read_text(encoding="utf-8")
    return [line for line in text.splitlines() if line.strip()]


@pytest.mark.real_data
@pytest.mark.parametrize(("path", "dataset"), [
    ("vqa_rad", "vqa_rad"),
    ("vqa_med_2019", "vqa_med_2019"),
    ("coco_sample/annotations/captions_subset.json", "coco_captions"),
    ("coco_sample/captions.json", "json"),
    ("nlvr_sample", "nlvr"),
    ("format_fixtures/vision/nlvr2/tiny-dev.json", "nlvr2"),
    ("format_fixtures/vision/vqav2/questions.json", "vqa_v2"),
])  # fmt: skip
def test_real_sets_are_complete(data_dir: Path, path: str, dataset: str) -> None:
    counts = images_and_texts(data_dir, path)
    report = check_data([str(data_dir / path)], dataset=dataset, num_workers=0)
    assert report.ok, report.errors + report.broken_images
    assert (report.images, sum(file.texts for file in report.files)) == counts


@pytest.mark.parametrize(("trigger", "kind", "pattern"), [c[1:] for c in BAD], ids=[c[0] for c in BAD])
def test_bad_sets(trigger: Callable[[Path], None], kind: type[Exception], pattern: str, tmp_path: Path) -> None:
    with pytest.raises(kind, match=pattern):
        trigger(tmp_path)


# ---- annotation files of others that are damaged ---------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
@pytest.mark.parametrize(("record", "message"), [
    ('{"image": "a.png", "caption": "x", "n": ' + "9" * 5000 + "}", "JSON that cannot be used"),
    ('{"image": "a.png", "caption": ' + "[" * 100_000, "JSON that cannot be used"),
    ('{"image": "a.png", "caption": "x", "caption": "y"}', "the key 'caption' occurs twice"),
])  # fmt: skip
def test_json_that_cannot_be_used(suffix: str, record: str, message: str, tmp_path: Path) -> None:
    sound = '{"image": "a.png", "caption": "x"}'
    content = f"[{sound}, {record}]" if suffix == ".json" else f"{sound}\n{record}\n"
    with pytest.raises(AnnotationError, match=f"set{suffix}, (record|line) 2: .*{message}"):
        list(iter_records(put(tmp_path / f"set{suffix}", content)))


def test_columns_of_one_name(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    texts = pyarrow.array(["x"])
    table = pyarrow.Table.from_arrays([texts, texts, texts, texts], names=["image", "caption", "caption", "other"])
    parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(AnnotationError, match=r"a\.parquet: has 2 columns called caption"):
        list(iter_records(tmp_path / "a.parquet"))
    with pytest.raises(AnnotationError, match=r"a\.csv, line 1: has 2 columns called image"):
        list(iter_records(put(tmp_path / "a.csv", "image,caption,image\na,b,c\n")))
    others = pyarrow.Table.from_arrays([texts] * 4, names=["image", "caption", "other", "other"])
    parquet.write_table(others, tmp_path / "b.parquet")
    assert len(list(iter_records(tmp_path / "b.parquet"))) == 1


@pytest.mark.parametrize("name", ["a.json", "a.jsonl", "a.csv", "a.parquet"])
def test_too_many_open_files(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / name, "x")

    def full(*_: object) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr("blip.files.os.open", full)
    with pytest.raises(AnnotationError, match=rf"{name}: Too many open files"):
        list(iter_records(tmp_path / name))


IMAGE, ONE = {"id": 1, "file_name": "a.png"}, {"image_id": 1, "caption": "x"}
ASKED = {"image": "a.png", "question": "q", "answer": "y"}
ODD = {
    "sentences of numbers": ("coco", {"images": [{"sentences": [1]}]}, "image 1: has no list of sentences"),
    "names of numbers": ("coco", {"images": [{"sentences": [], "filename": 2}]}, "image 1: its filepath and filename"),
    "an id of a list": ("coco_captions", {"images": [{**IMAGE, "id": [1]}], "annotations": [ONE]}, "its id is a list"),
    "an id twice": ("coco_captions", {"images": [IMAGE, IMAGE], "annotations": [ONE]}, "image 2: has the id 1 of an"),
    "an image_id of an object": ("coco_captions", {"images": [IMAGE], "annotations": [{**ONE, "image_id": {}}]},
                                 "its image_id is an object"),
    "a group of an object": ("json", [{"image": "a", "caption": "x", "group": {"a": 1}}], "its group is an object"),
    "a group that is no number": ("json", [{"image": "a", "caption": "x", "patient": float("nan")}], "its patient is"),
    "an empty object": ("question", [{**ASKED, "question_id": {}}], "its question_id is an object"),
    "too many answers": ("question", [{**ASKED, "answer": ["a"] * 70_000}], "70,000 entries; it may have 1 to 10,000"),
}  # fmt: skip


@pytest.mark.parametrize("kind", ODD)
def test_odd_types_in_published_forms_are_named(kind: str, tmp_path: Path) -> None:
    dataset, content, message = ODD[kind]
    place = tmp_path / "set.json"
    place.write_text(json.dumps(content))
    with pytest.raises(AnnotationError, match=message):
        read_questions([str(place)]) if dataset == "question" else read_pairs([str(place)], dataset=dataset)


def test_an_answer_of_thousands_of_digits(tmp_path: Path) -> None:
    (tmp_path / "set.json").write_text(json.dumps([{**ASKED, "answer": 10**4000}]))
    assert read_questions([str(tmp_path / "set.json")])[0].answers == ["1" + "0" * 4000]


@pytest.mark.parametrize(
    ("content", "place", "message"),
    [
        ("image,caption\na.png,x\nsc\xe4n.png,x\n".encode("latin-1"), "line 3", r"the byte 0xe4\); save .* in JSON"),
        ("image,caption\na.png,x\n".encode("utf-16"), "line 1", "not UTF-8"),
        (b'image,caption\na.png,x\nb.png,"y', "line 3", "not a valid table"),
        (b"image,caption\na.png," + b"x" * 200_000, "line 2", "field larger"),
    ],
)
def test_tables_that_cannot_be_read_name_the_line(content: bytes, place: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "set.csv").write_bytes(content)
    with pytest.raises(AnnotationError, match=message) as error:
        list(iter_records(tmp_path / "set.csv"))
    assert error.value.place == place


def test_a_line_of_a_table_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of zeros, without the end of a line, has one line of the file's size."""
    monkeypatch.setattr("blip.data.text_lines.MAX_LINE", 1000)
    (tmp_path / "set.csv").write_text("image,caption\n")
    os.truncate(tmp_path / "set.csv", 1 << 40)
    with pytest.raises(AnnotationError, match="line 2: has 1,000 characters or more"):
        list(iter_records(tmp_path / "set.csv"))
