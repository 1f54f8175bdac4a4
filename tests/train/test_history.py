"""What a run has logged, read back: of this version, of earlier ones, of a run that is going on, of damaged files."""

import json
from pathlib import Path

import pytest

from blip.files import ReadError
from blip.train.history import EVALUATION, LINE, METRICS, SAMPLES, SIMILARITIES, read_history
from blip.train.log import RunLog, read_metrics
from blip.train.schedule import Epochs

STEP = {"epoch": 0.5, "loss": 1.0, "lr": 0.1}
EPOCH = {"epoch": 1, "train_loss": 1.0, "val_loss": 2.0}


def log(folder: Path, start: int = 0, pending: tuple[str, ...] = ()) -> RunLog:
    return RunLog(folder, start, 10, epochs=Epochs(2, 1, 5), pending=pending)


def written(folder: Path) -> None:
    """Two steps and an evaluation."""
    run = log(folder)
    run.metrics(1, STEP)
    run.metrics(2, {**STEP, "epoch": 1.0})
    run.add(SAMPLES, [{"index": 0, "image": "a.png", "text": "", "truth": "x", "output": "y"}, {"index": 4}])
    run.add(SIMILARITIES, [{"edges": [-1, 0, 1], "matched": [0, 3], "unmatched": [5, 1]}])
    run.metrics(2, EPOCH)
    run.close()


def test_lines_of_steps_and_epochs_samples_and_histograms(tmp_path: Path) -> None:
    written(tmp_path)
    found = read_history(tmp_path)
    assert [(line["step"], line["epoch"]) for line in found.steps] == [(1, 0.5), (2, 1.0)]
    assert found.epochs == [{"step": 2, **EPOCH}]
    assert [(line["step"], line["epoch"], line["index"]) for line in found.samples] == [(2, 1, 0), (2, 1, 4)]
    assert found.similarities[0]["matched"] == [0, 3]
    assert type(found.epochs[0]["epoch"]) is int and type(found.steps[1]["epoch"]) is float


def test_samples_wait_for_the_line_of_their_evaluation(tmp_path: Path) -> None:
    run = log(tmp_path)
    run.add(SAMPLES, [{"index": 0}])
    assert not (tmp_path / SAMPLES).exists()
    run.metrics(1, EPOCH)
    run.metrics(2, EPOCH)
    assert len(read_history(tmp_path).samples) == 1


@pytest.mark.parametrize(
    ("start", "pending", "steps", "epochs", "samples"),
    [
        (2, (), 2, 1, 2),
        (2, (EVALUATION,), 2, 0, 0),
        (2, (LINE, EVALUATION), 1, 0, 0),
        (1, (), 1, 0, 0),
        (0, (), 0, 0, 0),
    ],
)
def test_a_resumed_run_removes_what_it_writes_again(
    start: int, pending: tuple[str, ...], steps: int, epochs: int, samples: int, tmp_path: Path
) -> None:
    written(tmp_path)
    with open(tmp_path / SAMPLES, "a") as file:
        file.write('{"step": 2, "epo')  # a kill in the middle of a line
    log(tmp_path, start, pending).close()
    found = read_history(tmp_path)
    assert (len(found.steps), len(found.epochs), len(found.samples)) == (steps, epochs, samples)
    assert len(found.similarities) == bool(samples)


def test_runs_of_earlier_versions(tmp_path: Path) -> None:
    """Their lines of steps have no epoch, and there are no other files. The last line is of an epoch cut short."""
    lines = [
        {"step": 1, "itc": 5.5, "lr": 0.1},
        {"step": 3, "itc": 5.0, "lr": 0.1},
        {"step": 4, "epoch": 1, "val_i2t_r1": 0.1},
    ]
    lines += [{"step": 6, "itc": 4.0, "lr": 0.1}, {"step": 6, "epoch": 1, "val_i2t_r1": 0.2}]
    (tmp_path / METRICS).write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = read_history(tmp_path)
    assert [line["epoch"] for line in found.steps] == [0.25, 0.75, 1.5]
    assert [line["val_i2t_r1"] for line in found.epochs] == [0.1, 0.2]
    assert found.samples == found.similarities == []
    (tmp_path / METRICS).write_text("".join(json.dumps(line) + "\n" for line in lines[:2]))
    assert "epoch" not in read_history(tmp_path).steps[0], "without an evaluation it is not known"


def test_a_run_that_is_going_on(tmp_path: Path) -> None:
    written(tmp_path)
    with open(tmp_path / METRICS, "a") as file:
        file.write('{"step": 3, "loss": 0.')
    assert [line["step"] for line in read_history(tmp_path).steps] == [1, 2]


@pytest.mark.parametrize(
    "line", ['{"step": 1', "[1]", '{"step": "1"}', '{"step": true}', '{"step": 1, "epoch": "x"}', "\xff"]
)
def test_damaged_lines_are_named(line: str, tmp_path: Path) -> None:
    written(tmp_path)
    path = tmp_path / METRICS
    path.write_bytes(path.read_bytes() + line.encode("latin-1") + b"\n")
    with pytest.raises(ReadError, match=r"metrics\.jsonl, line 4: "):
        read_history(tmp_path)


def test_a_folder_that_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(ReadError, match=r"metrics\.jsonl: No such file"):
        read_history(tmp_path)


def test_the_terminal_shows_at_most_six_numbers(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    run = RunLog(tmp_path, 0, 10, scores=("val_exact_match",))
    many = {f"val_{i}": 0.5 for i in range(20)}
    run.metrics(1, {**STEP, "itm": 0.6, "itc": 2.0, "lm": 3.0, "grad_norm": 9.0, "images_per_s": 8.0, "memory_mb": 7.0})
    run.metrics(2, {"epoch": 1, **many, "val_exact_match": 0.25, "val_loss": 1 / 3, "train_loss": 2.0})
    run.metrics(3, {"epoch": 2, **many})
    shown = capsys.readouterr().err.splitlines()
    assert shown[0] == "step 1/10  epoch 0.5  loss 1  itc 2  itm 0.6  lm 3  lr 0.1  images_per_s 8"
    assert shown[1] == "step 2/10  epoch 1  train_loss 2  val_loss 0.3333  val_exact_match 0.25"
    assert shown[2].count("val_") == 6, "those of an unknown task are the first six"
    assert "memory_mb" in read_metrics(tmp_path)[0]
