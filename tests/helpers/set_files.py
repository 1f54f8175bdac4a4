"""Files of data sets, tiny and made on the spot, and how they can be wrong: (name, function of an empty folder that
triggers the error, exception, regular expression of the message).
"""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from blip.data.formats import AnnotationError
from blip.data.pairs import read_pairs
from blip.data.questions import read_questions
from blip.data.statements import read_statements

# ---- files of each kind, tiny, made on the spot ----------------------------------------------------------------------


def put(path: Path, content: Any) -> Path:
    """Writes text, bytes or, as JSON, anything else; the folders above come into being."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def png(grey: int) -> bytes:
    """An image file of one shade, 6 pixels a side."""
    buffer = io.BytesIO()
    Image.new("L", (6, 6), grey).save(buffer, "PNG")
    return buffer.getvalue()


def shade(image: Image.Image) -> int:
    return int(np.asarray(image)[0, 0, 0])


def put_parquet(path: Path, rows: list[dict], rows_per_group: int = 2) -> Path:
    pyarrow = pytest.importorskip("pyarrow", reason="parquet needs pyarrow")
    from pyarrow import parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=rows_per_group)
    return path


def put_arrow(folder: Path, rows: list[dict], parts: int = 2) -> Path:
    """One split as `datasets.save_to_disk` leaves it: arrow streams, dataset_info.json, state.json."""
    pyarrow = pytest.importorskip("pyarrow", reason="arrow needs pyarrow")

    names = [f"data-{i:05}-of-{parts:05}.arrow" for i in range(parts)]
    put(folder / "dataset_info.json", {"features": {}})
    put(folder / "state.json", {"_data_files": [{"filename": name} for name in names], "_split": folder.name})
    for i, name in enumerate(names):
        table = pyarrow.Table.from_pylist(rows[i::parts])
        with pyarrow.ipc.new_stream(str(folder / name), table.schema) as stream:
            stream.write_table(table, max_chunksize=1)
    put(folder / "cache-0123456789abcdef.arrow", b"left behind by a map over the set")
    return folder


def hub_rows(count: int, first: int = 0, **texts: str) -> list[dict]:
    """Rows whose image is a struct of bytes and path, of the shades first, first + 1, ..."""
    return [
        {"image": {"bytes": png(first + i), "path": None}, **{k: f"{v} {i}" for k, v in texts.items()}}
        for i in range(count)
    ]


# ---- what people get wrong -------------------------------------------------------------------------------------------

VQA = {"image": "a.png", "question": "where?", "answer": "left"}
RAD = {"image_name": "a.jpg", "question": "where?", "answer": "left", "answer_type": "OPEN", "qid": 1}
ASKED = {"image_id": 1, "question": "where?", "question_id": 5}
PMC = "Figure_path,Question,Answer,Choice A,Choice B,Choice C,Choice D,Answer_label\n"


def questions(name: str, content: Any, kind: str = "json", **options: Any) -> Callable[[Path], None]:
    def trigger(folder: Path) -> None:
        read_questions([str(put(folder / name, content))], dataset=kind, **options)

    return trigger


def captions(name: str, content: Any, kind: str) -> Callable[[Path], None]:
    return lambda folder: void(read_pairs([str(put(folder / name, content))], dataset=kind))


def statements(name: str, content: Any, kind: str = "json") -> Callable[[Path], None]:
    return lambda folder: void(read_statements([str(put(folder / name, content))], dataset=kind))


def void(_: object) -> None:
    """Drops a result, so that a lambda returns nothing."""


def in_folder(files: dict[str, Any], kind: str, **options: Any) -> Callable[[Path], None]:
    def trigger(folder: Path) -> None:
        for name, content in files.items():
            put(folder / name, content)
        read_questions([str(folder)], dataset=kind, **options)

    return trigger


def parquet_without_answers(folder: Path) -> None:
    read_questions([str(put_parquet(folder / "x.parquet", hub_rows(2, question="q")))], dataset="path_vqa")


BAD: list[tuple[str, Callable[[Path], None], type[Exception], str]] = [
    ("no files", lambda _: void(read_questions([])), ValueError, "no files of questions"),
    ("unknown set", questions("x.json", [VQA], "vqarad"), ValueError, "dataset is 'vqarad'; did you mean 'vqa_rad'"),
    ("unknown split", questions("x.json", [VQA], split="trian"), ValueError, "split is 'trian'; it can be train, vali"),
    ("no question", questions("x.json", [{"image": "a"}]), AnnotationError, "record 1: has no 'answer'; its keys: ima"),
    ("list as question", questions("x.json", [{**VQA, "question": []}]), AnnotationError, "question is a list, not te"),
    ("no answers", questions("x.json", [VQA, {**VQA, "answer": []}]), AnnotationError, "record 2: its list of answers"),
    ("empty answer", questions("x.json", [{**VQA, "answer": " "}]), AnnotationError, "its answer is empty"),
    ("true as answer", questions("x.json", [{**VQA, "answer": True}]), AnnotationError, "answer is true or false, not"),
    ("null in answers", questions("x.json", [{**VQA, "answer": ["a", None]}]), AnnotationError, "its answer is null"),
    ("NaN", questions("x.json", '[{"image": "a", "question": "b", "answer": NaN}]'), AnnotationError, r"number \(nan"),
    ("choices", questions("x.json", [{**VQA, "choices": "a"}]), AnnotationError, "choices are text, not a list"),
    ("a list as record", questions("x.json", [[VQA]]), AnnotationError, "a record is an object, not a list"),
    ("nothing of the split", questions("x.json", [{**VQA, "split": "val"}], split="test"), AnnotationError,
     r"x\.json: holds no records of the split test"),
    ("table without columns", questions("x.csv", "image,text\na,b\n"), AnnotationError,
     r"x\.csv, line 1: needs the columns image, question and answer; found: image, text"),
    ("columns of parquet", parquet_without_answers, AnnotationError, "columns image, question and answer; found: imag"),
    ("broken parquet", questions("x.parquet", b"PAR1broken"), AnnotationError, "not a readable parquet file"),
    ("broken arrow", questions("x.arrow", b"\xff\xff\xff\xffbroken"), AnnotationError, "not a readable arrow file"),
    ("no image_name", questions("x.json", [{"question": "a", "answer": "b"}], "vqa_rad"), AnnotationError,
     "has no 'image_name'; its keys: question, answer"),
    ("absent split", in_folder({"trainset.json": [RAD]}, "vqa_rad", split="test"), AnnotationError,
     "holds no split test; it has train"),
    ("no split given", in_folder({"trainset.json": [RAD], "testset.json": [RAD]}, "vqa_rad"), AnnotationError,
     "is a folder: set split to train, test or all"),
    ("folder of another set", in_folder({"trainset.json": [RAD]}, "slake", split="train"), AnnotationError,
     "folder without files of 'slake', such as train.json, validate.json"),
    ("images packed", in_folder({"train.json": [RAD], "imgs.zip": b"PK"}, "slake", split="train"), AnnotationError,
     r"still packed: unzip .*imgs\.zip"),
    ("SLAKE in Chinese", questions("x.json", [{**VQA, "q_lang": "zh"}], "slake"), AnnotationError, "no records of th"),
    ("two fields", questions("x.txt", "a|b|c\nsynpic1|what?\n", "vqa_med_2019"), AnnotationError,
     r"x\.txt, line 2: 2 fields; a line is image\|question\|answer"),
    ("empty field", questions("x.txt", "synpic1||ct\n", "vqa_med_2019"), AnnotationError, "its question is empty"),
    ("PMC-VQA columns", questions("x.csv", "Figure_path,Question\na,b\n", "pmc_vqa"), AnnotationError,
     "Choice C and Choice D; found: Figure_path, Question"),
    ("PMC-VQA no answer", questions("x.csv", PMC.replace("Answer,", "Reply,") + "a,b,c,d,e,f,g,A\n", "pmc_vqa"),
     AnnotationError, "line 2: has no 'Answer'"),
    ("no annotations", questions("questions.json", {"questions": [ASKED]}, "vqa_v2"), AnnotationError,
     r"answers are looked for in annotations\.json beside it"),
    ("another's annotations", lambda folder: (put(folder / "annotations.json", {"annotations": []}),
     questions("questions.json", {"questions": [ASKED]}, "vqa_v2")(folder))[1], AnnotationError,
     r"question_id 5 is not in annotations\.json|holds no records"),
    ("cut off", questions("v2_OpenEnded_mscoco_test2015_questions.json", '{"questions": [{"question_id"', "vqa_v2"),
     AnnotationError, "questions 1: not valid JSON"),
    ("no tab", captions("captions.txt", "ROCO_1 a caption\n", "roco"), AnnotationError, r"line 1: has no tab"),
    ("ROCO columns", captions("x.csv", "image,caption\na,b\n", "roco"), AnnotationError, "the columns name and c"),
    ("ROCOv2 columns", captions("x.csv", "id,text\na,b\n", "rocov2"), AnnotationError, "the columns ID and Ca"),
    ("MedICaT", captions("x.jsonl", '{"pdf_hash": "a", "fig_uri": "b"}', "medicat"), AnnotationError, "no 's2orc_c"),
    ("MSR-VTT", captions("x.jsonl", '{"caption": "a"}', "msrvtt"), AnnotationError, "no 'clip_name', the name of a vi"),
    ("MSVD-QA", questions("x.jsonl", '{"question": "a", "answer": "b"}', "msvd_qa"), AnnotationError, "has no 'video'"),
    ("COCO without images", captions("x.json", {"annotations": [{"image_id": 1, "caption": "x"}]}, "coco_captions"),
     AnnotationError, "needs lists images and annotations"),
    ("Karpathy", captions("x.json", {"images": [{"id": 1}]}, "coco"), AnnotationError, "image 1: has no list of s"),
    ("label", statements("x.json", [{"image": "a", "sentence": "b", "label": "maybe"}]), AnnotationError,
     "its label is 'maybe'; it is true or false"),
    ("one image", statements("x.json", [{"images": ["a"], "sentence": "b", "label": True}]), AnnotationError,
     "a statement is about two, left and right"),
    ("identifier", statements("x.json", '{"identifier": "dev-850-0", "sentence": "b", "label": "True"}', "nlvr2"),
     AnnotationError, "identifier is 'dev-850-0', not of four parts"),
    ("NLVR directory", statements("x.json", '{"identifier": "1-0", "sentence": "b", "label": "true"}', "nlvr"),
     AnnotationError, "line 1: has no 'directory'"),
]  # fmt: skip
