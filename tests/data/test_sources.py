"""Records of any source: names of columns, limits, layouts of folders, and what is said about wrong paths and files."""

import json
from pathlib import Path
from typing import Any

import pytest
from helpers.running import run_verb
from helpers.set_files import hub_rows, png, put, put_arrow, put_parquet, shade

from blip.data.check import check_data
from blip.data.columns import columns_of, parse_columns
from blip.data.formats import AnnotationError, iter_records
from blip.data.image_files import NoImages, find_images
from blip.data.images import UnreadableImage, open_image
from blip.data.pairs import read_pairs
from blip.data.places import Found, find_records, images_of
from blip.data.questions import read_questions
from blip.data.sources import Source, source_of
from blip.data.statements import read_statements
from blip.errors import InputError


def texts(place: Any, **how: Any) -> list[str]:
    return [record.text for record in find_records(place, **how)]


@pytest.fixture
def captions(tmp_path: Path) -> Path:
    put(tmp_path / "a.png", png(1))
    return put(tmp_path / "c.json", [{"image": "a.png", "caption": f"text {i}"} for i in range(20)])


# ---- names of columns ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["json", "jsonl", "csv", "tsv", "parquet", "arrow"])
def test_columns_of_any_format(tmp_path: Path, kind: str) -> None:
    rows = [{"img": f"{i}.png", "Frage": f"where {i}?", "Answer": "left", "organ": "lung"} for i in range(3)]
    path = tmp_path / f"set.{kind}"
    if kind in ("json", "jsonl"):
        put(path, rows if kind == "json" else "\n".join(map(json.dumps, rows)))
    elif kind in ("csv", "tsv"):
        mark = "," if kind == "csv" else "\t"
        put(path, "\n".join([mark.join(rows[0]), *(mark.join(row.values()) for row in rows)]))
    elif kind == "parquet":
        put_parquet(path, rows)
    else:
        path = put_arrow(tmp_path / "train", rows, parts=1) / "data-00000-of-00001.arrow"
    columns = {"image": "IMG", "question": "frage", "category": "organ"}
    found = read_questions([str(path)], columns=columns)
    assert [found[i].question for i in range(3)] == ["where 0?", "where 1?", "where 2?"]
    assert found[1].answers == ["left"] and found[1].category == "lung"
    assert found.image_path(2) == str(path.parent / "2.png")
    with pytest.raises(
        AnnotationError, match=r"no column 'Farge', which columns names for question; the nearest.*Frage"
    ):
        read_questions([str(path)], columns={**columns, "question": "Farge"})


def test_columns_differ_in_case_alone_where_none_are_given() -> None:
    assert columns_of(["Image", "QUESTION"], ["image", "question", "answer"], {}, path="x") == {
        "image": "Image", "question": "QUESTION"}  # fmt: skip
    with pytest.raises(AnnotationError, match="several columns called image: Image, IMAGE"):
        columns_of(["Image", "IMAGE"], ["image"], {}, path="x")
    assert columns_of(["Image", "image"], ["image"], {}, path="x") == {"image": "image"}


def test_columns_that_no_record_has(tmp_path: Path) -> None:
    path = put(tmp_path / "c.json", [{"image": "a.png", "caption": "x", "organ": "lung"}])
    with pytest.raises(AnnotationError, match=r"has no column 'orgna', which columns names for group.*organ"):
        read_pairs([str(path)], columns={"group": "orgna"})
    text = put(tmp_path / "captions.txt", "ROCO_1\t one\n")
    with pytest.raises(AnnotationError, match="no columns with names"):
        read_pairs([str(text)], dataset="roco", columns={"caption": "text"})


@pytest.mark.parametrize("given", ["question=Frage, image=img", "{question: Frage, image: img}"])
def test_columns_of_a_command_line(given: str) -> None:
    assert parse_columns([given]) == {"question": "Frage", "image": "img"}
    with pytest.raises(InputError, match="expected NAME=COLUMN"):
        parse_columns(["question"])


def test_images_of_a_column_with_another_name(tmp_path: Path) -> None:
    rows = [{"scan": row["image"], "caption": row["caption"]} for row in hub_rows(4, first=7, caption="t")]
    path = put_parquet(tmp_path / "x.parquet", rows)
    found = read_pairs([str(path)], columns={"image": "scan"})
    assert [shade(open_image(found.image_path(i))) for i in (3, 0)] == [10, 7]
    assert [shade(open_image(image)) for image in images_of([path], columns={"image": "Scan"})] == [7, 8, 9, 10]
    with pytest.raises(UnreadableImage, match="no column picture"):
        open_image(f"{path}#0:picture")


def test_labels_have_names(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    table = pyarrow.table({"image": [png(0)] * 3, "question": ["mass?"] * 3, "answer": [1, 0, 7]})
    features = {"answer": {"names": ["no", "yes"], "_type": "ClassLabel"}}
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    parquet.write_table(table, tmp_path / "x.parquet")
    found = read_questions([str(tmp_path / "x.parquet")])
    assert [found[i].answers for i in range(3)] == [["yes"], ["no"], ["7"]]
    assert [found[i].answer_type for i in range(3)] == ["closed", "closed", "open"]


# ---- which records ---------------------------------------------------------------------------------------------------


def test_limits_take_the_first_or_the_same_random_records(captions: Path) -> None:
    everything = texts(captions)
    assert texts(captions, limit=5) == everything[:5] and texts(captions, limit=99) == everything
    drawn = texts(captions, limit=5, seed=3)
    assert drawn == texts(captions, limit=5, seed=3) != texts(captions, limit=5, seed=4)
    assert drawn == sorted(drawn, key=everything.index) and len(set(drawn)) == 5
    pairs = read_pairs([str(captions)], limit=5, seed=3)
    assert [pairs.captions(i)[0] for i in range(len(pairs))] == drawn
    both = read_pairs([{"path": str(captions), "limit": 2}, {"path": str(captions), "weight": 2.0}], limit=4)
    assert [both.captions(i)[0] for i in range(4)] == [*everything[:2], *everything[:2]]
    assert list(both.record_weights()) == [1, 1, 2, 2]


def test_questions_and_statements_have_limits_too(tmp_path: Path) -> None:
    path = put(tmp_path / "q.json", [{"image": "a.png", "question": f"{i}?", "answer": "x"} for i in range(9)])
    assert len(read_questions([str(path)], limit=4, seed=0)) == 4
    path = put(tmp_path / "s.json", [{"images": ["a", "b"], "sentence": f"s{i}", "label": True} for i in range(9)])
    assert [read_statements([str(path)], limit=2)[i].sentence for i in (0, 1)] == ["s0", "s1"]


def test_check_data_reads_as_many_as_a_run(tmp_path: Path) -> None:
    for i in range(4):
        put(tmp_path / f"{i}.png", png(i))
    path = put(tmp_path / "q.json", [{"image": f"{i}.png", "question": f"{i}?", "answer": "x"} for i in range(9)])
    result = run_verb("check-data", path, "--limit", 4, "--num_workers", 0)
    assert result.exit_code == 0 and "images: 4, unreadable 0" in result.output, result.output
    report = check_data([str(path)], limit=6, num_workers=0)
    assert [file.records for file in report.files] == [6] and report.images == 6 and len(report.broken_images) == 2


def test_entries_are_checked_and_written_back() -> None:
    source = source_of({"path": "x.json", "limit": 5, "columns": {"image": "img"}}, split="train")
    assert source == Source("x.json", split="train", limit=5, columns={"image": "img"})
    assert source_of(source.entry()) == source
    for wrong in ({"limit": 0}, {"weight": 0}, {"colour": 1}, {"seed": "a"}, {"columns": {"a": 1}}):
        with pytest.raises(InputError):
            source_of({"path": "x.json", **wrong})


# ---- places ----------------------------------------------------------------------------------------------------------


def test_any_place_is_read(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    put(folder / "a.png", png(3))
    assert [record.image for record in find_records(folder)] == [str(folder / "a.png")] == [
        record.image for record in find_records(folder / "a.png")]  # fmt: skip
    saved = tmp_path / "saved"
    for split in ("train", "test"):
        put_arrow(saved / split, hub_rows(4, question="what?", answer="no"))
    put(saved / "dataset_dict.json", {"splits": ["train", "test"]})
    assert len(texts(saved, split="train")) == 4 and len(texts(saved, split="all")) == 8
    with pytest.raises(AnnotationError, match="set split to train, test or all"):
        texts(saved)
    assert [shade(open_image(path)) for path in images_of([saved], split="train", limit=2)] == [0, 2]
    (row,) = find_records(f"{saved}/train/data-00000-of-00002.arrow#1")
    assert shade(open_image(row.image)) == 2
    alone = put(tmp_path / "alone.json", [{"image": "images/a.png"}, {"image": ""}, {"picture": 1}])
    problems: list[AnnotationError] = []
    assert [record.image for record in find_records(alone, on_problem=problems.append)] == [str(folder / "a.png")]
    assert [problem.place for problem in problems] == ["record 2", "record 3"]


def test_questions_without_answers_can_be_asked(tmp_path: Path) -> None:
    rows = [{"image": "a.png", "question": "where?"}, {"image": "a.png", "question": "mass?", "answer": ["yes", "no"]}]
    first, second = find_records(put(tmp_path / "q.json", rows))
    assert (first.question, first.answers, first.answer_type) == ("where?", [], "open")
    assert second.answers == ["yes", "no"]
    with pytest.raises(AnnotationError, match="no 'answer'"):
        read_questions([str(tmp_path / "q.json")])


def test_splits_of_any_name_saved_by_datasets(tmp_path: Path) -> None:
    put_arrow(tmp_path / "mini", hub_rows(2, caption="t"))
    assert len(read_pairs([str(tmp_path)], split="mini")) == 2
    with pytest.raises(InputError, match="split is 'maxi'"):
        read_pairs([str(tmp_path)], split="maxi")


@pytest.mark.parametrize("images", ["", "images", "radiology/images", "roco/images", "pictures"])
@pytest.mark.parametrize("table", ["radiologytraindata.csv", "train/radiology/radiologytraindata.csv"])
def test_layouts_of_roco(tmp_path: Path, images: str, table: str) -> None:
    path = put(tmp_path / table, "id,name,caption\nROCO_1,PMC1_a.jpg, axial CT\nROCO_2,PMC2_b.jpg, chest\n")
    put(path.parent / images / "PMC2_b.jpg", png(4))
    (path.parent / "images").mkdir(exist_ok=True)
    found = read_pairs([str(tmp_path)], dataset="roco", split="train")
    assert shade(open_image(found.image_path(1))) == 4
    assert [found.captions(i) for i in range(2)] == [["axial CT"], ["chest"]]


# ---- wrong paths and files -------------------------------------------------------------------------------------------


def test_missing_paths_come_with_the_nearest(tmp_path: Path, captions: Path) -> None:
    for place, near in (("cc.json", "c.json"), ("c.jsn", "c.json"), ("C.JSON", "c.json")):
        with pytest.raises(AnnotationError, match=rf"{place}: does not exist.*; did you mean {tmp_path}/{near}\?"):
            read_pairs([str(tmp_path / place)])
    with pytest.raises(AnnotationError, match=rf"does not exist.*; {tmp_path} has no Data"):
        read_pairs([str(tmp_path / "Data" / "x" / "c.json")])
    with pytest.raises(AnnotationError, match="does not exist"):
        read_pairs([str(tmp_path / "roco")], dataset="roco")
    with pytest.raises(NoImages, match=r"did you mean .*a\.png"):
        find_images([tmp_path / "a.pgn"])
    put(tmp_path / "below/d.json", [])
    with pytest.raises(AnnotationError, match=r"below/d\.json does: folders are separated by /"):
        read_pairs([f"{tmp_path}/below\\d.json"])


@pytest.mark.parametrize(("name", "content", "cure"), [
    ("a.csv", b"image;caption\na.png;x, y\n", r"separated by semicolons.*to_csv\('a_commas.csv'"),
    ("a.csv", b"image\tcaption\na.png\tx\n", r"separated by tabs: rename it to a\.tsv"),
    ("a.csv", "image,caption\na.png,größe\n".encode("cp1252"), "iconv -f CP1252 -t UTF-8 .*a.csv > .*a_utf8.csv"),
    ("a.csv", "image,caption\na.png,größe\n".encode("utf-16"), "iconv -f UTF-16 -t UTF-8"),
    ("a.csv", "image,caption\na.png,x\n".encode("utf-16-le"), "iconv -f UTF-16LE -t UTF-8"),
    ("a.json", '[{"image": "a.png", "caption": "größe"}]'.encode("cp1252"), "iconv -f CP1252"),
    ("a.jsonl", '{"image": "a.png", "caption": "größe"}'.encode("utf-16"), "iconv -f UTF-16 "),
])  # fmt: skip
def test_files_of_other_programs_come_with_the_cure(tmp_path: Path, name: str, content: bytes, cure: str) -> None:
    with pytest.raises(AnnotationError, match=cure):
        list(iter_records(put(tmp_path / name, content)))


def test_paths_with_backslashes(tmp_path: Path) -> None:
    put(tmp_path / "images/a.png", png(0))
    path = put(tmp_path / "c.json", [{"image": "images\\a.png", "caption": "x"}])
    report = check_data([str(path)], num_workers=0)
    assert "with / in place of \\" in report.broken_images[0][1]


def test_a_table_with_other_columns_says_how_to_name_them(tmp_path: Path) -> None:
    path = put(tmp_path / "x.csv", "id,name,text\n1,a.png,x\n")
    with pytest.raises(AnnotationError, match=r"needs the columns image and caption; found: id, name, text \(columns="):
        read_pairs([str(path)])


def test_dicom_and_nifti_files_of_folders_are_images(tmp_path: Path) -> None:
    for name in ("1.dcm", "deep/IM0002", "a.png.txt", "DICOMDIR", "b.nii.gz", "c.gz"):
        put(tmp_path / name, b"\0" * 128 + b"DICM" + b"\0" * 20)
    assert [path.name for path in find_images([tmp_path])] == ["1.dcm", "b.nii.gz", "IM0002"]


def test_found_records_have_texts() -> None:
    assert Found(["a.png"], captions=["one", "two"]).text == "one" and Found(["a", "b"], statement="same").image == "a"
