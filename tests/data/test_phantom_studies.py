"""Phantom studies: everything follows from the seed; captions and questions agree with all of the pictures."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from helpers.running import run_verb
from PIL import Image

from blip.data.phantom_studies import CHANGES, SEEN, VIEWS, slice_words, study_records, write_studies

PICTURES = {"views": 2, "volume": 8, "video": 4}
Drawn = dict[str, list[tuple[dict, np.ndarray]]]


@pytest.fixture(scope="module")
def drawn() -> Drawn:
    """Kind of study -> 60 records with their pixels (F, 48, 48)."""
    return {
        kind: [
            (record, np.stack([np.asarray(image, dtype=float) for image in images]))
            for record, images in study_records(kind, 60, seed=5, pictures=count)
        ]
        for kind, count in PICTURES.items()
    }


def lesion_pixels(record: dict, pixels: np.ndarray) -> list[int]:
    """How many pixels of each picture are as bright or dark as a lesion alone is; the skull and the spine are 200."""
    bright = record["lesion"]["brightness"] == "bright"
    inside = pixels[:, 15:33, 16:32] if "slices" in record["lesion"] else pixels[:, 8:40, 14:34]  # of the body
    return [int((picture > 219).sum() if bright else (picture < 50).sum()) for picture in inside]


def test_follows_from_the_seed(drawn: Drawn) -> None:
    for kind, count in PICTURES.items():
        for (record, images), (first, pixels) in zip(
            study_records(kind, 3, seed=5, pictures=count), drawn[kind], strict=False
        ):
            assert record == first and np.array_equal(np.stack(images), pixels)
        others = [record["caption"] for record, _ in study_records(kind, 20, seed=6, pictures=count)]
        assert sum(a == b["caption"] for a, (b, _) in zip(others, drawn[kind], strict=False)) < 6


def test_captions_say_in_which_views_the_lesion_is(drawn: Drawn) -> None:
    for record, pixels in drawn["views"]:
        seen = record["lesion"]["seen"]
        shown = [count > 2 for count in lesion_pixels(record, pixels)]
        assert shown == [seen in ("both", view) for view in VIEWS], record
        assert record["caption"].endswith("both views" if seen == "both" else f"the {seen} view alone")
    assert set(Counter(record["lesion"]["seen"] for record, _ in drawn["views"])) == set(SEEN)


def test_captions_say_in_which_slices_the_lesion_is(drawn: Drawn) -> None:
    for record, pixels in drawn["volume"]:
        shown = [i + 1 for i, count in enumerate(lesion_pixels(record, pixels)) if count > 4]
        assert shown == record["lesion"]["slices"]
        assert record["caption"].endswith(f" visible in {slice_words(shown)}")
    assert {len(record["lesion"]["slices"]) for record, _ in drawn["volume"]} == {1, 2, 3}
    assert [slice_words(slices) for slices in ([3], [3, 4], [3, 4, 5])] == ["slice 3", "slice 3 and 4", "slice 3 to 5"]


def test_captions_say_how_the_lesion_changes(drawn: Drawn) -> None:
    seen = Counter()
    for record, pixels in drawn["video"]:
        change = record["lesion"]["change"]
        first, *_, last = lesion_pixels(record, pixels)
        ratio = last / first
        assert {"grows": ratio > 2.2, "shrinks": ratio < 0.45, "stays": 0.7 < ratio < 1.4}[change], (record, ratio)
        assert record["caption"].endswith(f" that {change}")
        seen[change] += 1
    assert set(seen) == set(CHANGES)


def test_the_order_alone_tells_growing_from_shrinking(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same draws with the one word changed give the same frames in reverse order."""
    made = {}
    for change in ("grows", "shrinks"):
        monkeypatch.setattr("blip.data.phantom_studies.CHANGES", (change,) * 3)
        made[change] = [np.stack(images) for _, images in study_records("video", 5, pictures=4)]
    for growing, shrinking in zip(made["grows"], made["shrinks"], strict=True):
        assert np.array_equal(growing[::-1], shrinking)


def test_questions_have_the_right_answer(drawn: Drawn) -> None:
    asked = {
        "in which views is the lesion seen?": lambda record: record["lesion"]["seen"],
        "in how many slices is the lesion visible?": lambda record: str(len(record["lesion"]["slices"])),
        "in which slice does the lesion begin?": lambda record: str(record["lesion"]["slices"][0]),
        "how does the lesion change?": lambda record: record["lesion"]["change"],
        "what part of the body is shown?": lambda record: record["caption"].split()[0],
    }
    found = set()
    for record in (record for records in drawn.values() for record, _ in records):
        for row in record["questions"]:
            if row["question"] in asked:
                found.add(row["question"])
                assert row["answer"] == asked[row["question"]](record)
    assert found == set(asked)


def test_files_of_the_verb_are_what_training_reads(tmp_path: Path) -> None:
    for kind, count in PICTURES.items():
        out = tmp_path / kind
        done = run_verb("phantoms", str(out), "--count", "3", "--image_size", "32", f"--{kind}", str(count))
        assert done.exit_code == 0 and f"3 studies: {out}" in done.output, done.output
        records = json.loads((out / "captions.json").read_text())
        assert records == [record for record, _ in study_records(kind, 3, pictures=count, image_size=32)]
        assert all(len(record["images"]) == count for record in records)
        for name in (name for record in records for name in record["images"]):
            with Image.open(out / name) as image:
                assert (image.mode, image.size) == ("L", (32, 32))
        questions = json.loads((out / "questions.json").read_text())
        assert {tuple(row["images"]) for row in questions} == {tuple(record["images"]) for record in records}
    longer = write_studies(tmp_path / "longer", "views", 5, image_size=32)
    assert json.loads(longer.read_text())[:3] == json.loads((tmp_path / "views" / "captions.json").read_text())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--views", "3"], "2, frontal and lateral"),
        (["--volume", "1"], "2 to 64"),
        (["--video", "65"], "2 to 64"),
        (["--views", "2", "--video", "4"], "--views, --video"),
        (["--views", "2", "--noise", "0.5"], "--noise is for phantoms of one picture"),
        (["--volume", "4", "--max_lesions", "2"], "--max_lesions is for"),
        (["--volume", "4", "--count", "0"], "at least one study"),
        (["--volume", "4", "--image_size", "8"], "16 pixels"),
    ],
)
def test_refuses_what_cannot_be_drawn(options: list[str], message: str, tmp_path: Path) -> None:
    done = run_verb("phantoms", str(tmp_path / "no"), *options)
    assert done.exit_code == 1 and message in done.output, done.output
    assert not (tmp_path / "no" / "captions.json").exists()
