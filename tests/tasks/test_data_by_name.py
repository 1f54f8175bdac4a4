"""Runs on data of the hub and on a part of the data: what their configuration repeats."""

from pathlib import Path

import pytest
from helpers.fine_tuning import CPU, configure
from helpers.hub_server import HubServer
from helpers.set_files import hub_rows, put_parquet

from blip.config import load_config
from blip.tasks import vqa
from blip.tasks.config import VqaConfig


def test_a_run_on_the_hub_holds_the_commit(
    phantoms: Path, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("datasets")
    for split in ("train", "test"):
        rows = hub_rows(9, Frage="what", answer="a")
        put_parquet(tmp_path / f"set/data/{split}-00000-of-00001.parquet", rows)
    with HubServer() as hub:
        commit = hub.add("datasets", "lab/set", tmp_path / "set")
        hub.use_here(monkeypatch, tmp_path / "cache")
        data = {"train_file": ["hub:lab/set"], "val_file": ["hub:lab/set"], "val_split": "test", "max_val_records": 5}
        limits = {"max_train_records": 8, "shuffle_records_seed": 1, "columns": {"question": "Frage"}}
        config = configure("vqa", phantoms, tmp_path, init_from=tiny_checkpoint)
        config = VqaConfig(**{**config.model_dump(exclude_unset=True), **data, **limits, "max_steps": 2})
        assert vqa.run(config, tmp_path / "run", "", device=CPU)
    held = load_config(tmp_path / "run" / "config.yaml", VqaConfig)
    assert held.train_file == held.val_file == [f"hub:lab/set@{commit}"]
    assert (held.max_train_records, held.shuffle_records_seed, held.columns) == (8, 1, {"question": "Frage"})
    answers = (tmp_path / "run" / "answers_val.json").read_text()
    assert answers.count('"question_id"') == 5
