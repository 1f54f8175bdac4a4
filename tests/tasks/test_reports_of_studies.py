"""A run on studies of several pictures: it trains, and its reports are scored by patient."""

import json
from pathlib import Path

import pytest
from helpers.fine_tuning import configure, train
from helpers.study_files import write_mimic

from blip.data.pairs import read_pairs
from blip.data.sets.studies import StudyOptions

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_java_nor_peak")]


def test_records_of_several_pictures_and_of_patients(tmp_path: Path) -> None:
    folder = write_mimic(tmp_path)
    options = StudyOptions(views=("frontal",), priors=1)
    pairs = read_pairs([str(folder)], dataset="mimic_cxr", split="train", study=options)
    paths = {pairs.image_name(i): [Path(path) for path in pairs.image_paths(i)] for i in range(len(pairs))}
    assert {name: [path.stem for path in several] for name, several in paths.items()} == {
        "s53911762": ["50414267-0", "53911762-0"],
        "s50414267": ["53189527-1", "50414267-0"],
        "s53189527": ["53189527-1"],
    }
    assert all(path.is_file() for several in paths.values() for path in several)
    assert len({pairs.group(i) for i in range(3)}) == 1 and len({pairs.image_id(i) for i in range(3)}) == 3


def test_reports_are_written_and_scored(phantoms: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    folder = write_mimic(tmp_path / "mimic")
    data = [f"{part}_file=[{folder}]" for part in ("train", "val", "test")]
    data += ["dataset=mimic_cxr", "val_split=test", "train_split=train", "views=[frontal]"]
    more = ["max_steps=1", "max_new_tokens=4", "batch_size=2", "best_metric=val_exact"]
    config = configure("caption", phantoms, tmp_path, *data, *more, init_from=tiny_checkpoint)
    train("caption", config, tmp_path / "run")
    (row,) = json.loads((tmp_path / "run" / "captions_test.json").read_text())
    assert row["references"] == ["normal."] and row["group"] and len(row["images"]) == 2
    scores = json.loads((tmp_path / "run" / "scores_test.json").read_text())["scores"]
    assert {"BLEU-1", "ROUGE-L", "exact"} <= scores.keys()
