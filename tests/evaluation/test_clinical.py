"""Agreement of reports by the labels of another program: scores as of scikit-learn, intervals over patients."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers.running import run_verb
from sklearn.metrics import f1_score

from blip.errors import BlipError
from blip.evaluation.clinical import CONDITIONS, FIVE, REPORT, agreement, read_labels, table_of

STATES = {1: "1.0", 0: "0.0", -1: "-1.0", None: ""}


def write_labels(path: Path, values: np.ndarray, reports: list[str] | None = None) -> Path:
    """The form that CheXbert writes; a value of 2 is a condition that the report does not mention."""
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["", REPORT, *CONDITIONS])
        for i, row in enumerate(values.tolist()):
            text = reports[i] if reports else ""
            writer.writerow([i, text, *(STATES[None if value == 2 else value] for value in row)])
    return path


def random_labels(seed: int, count: int = 40) -> np.ndarray:
    values = np.random.default_rng(seed).choice([1, 0, -1, 2], p=[0.3, 0.1, 0.1, 0.5], size=(count, len(CONDITIONS)))
    values[:, CONDITIONS.index("Fracture")] = 2  # stated by nobody
    return values


@pytest.mark.parametrize("unsure", ["positive", "negative"])
def test_f1_is_that_of_scikit_learn(unsure: str, tmp_path: Path) -> None:
    values = random_labels(0), random_labels(1)
    tables = [read_labels(write_labels(tmp_path / f"{i}.csv", one)) for i, one in enumerate(values)]
    found = agreement(*tables, unsure=unsure)
    true, given = ((one == 1) | ((one == -1) & (unsure == "positive")) for one in values)
    five = [CONDITIONS.index(name) for name in FIVE]
    for name, interval in found.scores.items():
        some = five if name.endswith("_5") else list(range(len(CONDITIONS)))
        kind = name.removesuffix("_5")
        expected = f1_score(true[:, some], given[:, some], average=kind, zero_division=0)
        assert interval.mean == pytest.approx(expected, abs=1e-12)
        assert interval.low < interval.mean < interval.high
    each = f1_score(true, given, average=None, zero_division=0)
    assert [one.mean for one in found.conditions.values()] == pytest.approx(each.tolist(), abs=1e-12)
    assert found.stated["Cardiomegaly"] == (int(true[:, 1].sum()), int(given[:, 1].sum()))


def test_intervals_are_over_patients(tmp_path: Path) -> None:
    """Ten copies of each report say no more than one."""
    true, given = (random_labels(seed, 30) for seed in (2, 3))
    copies = [np.repeat(one, 10, axis=0) for one in (true, given)]
    alone, many = (
        [read_labels(write_labels(tmp_path / f"{name}{i}.csv", one)) for i, one in enumerate(pair)]
        for name, pair in (("one", (true, given)), ("ten", copies))
    )
    single = agreement(*alone).scores["micro"]
    grouped = agreement(*many, [i // 10 for i in range(300)]).scores["micro"]
    apart = agreement(*many).scores["micro"]
    assert (grouped.low, grouped.high) == pytest.approx((single.low, single.high), abs=1e-9)
    assert apart.high - apart.low < 0.5 * (single.high - single.low)


@pytest.fixture
def results(tmp_path: Path) -> Path:
    rows = [
        {
            "image": f"{i}.png",
            "caption": f"report {i}\n of it",
            "log_prob": -1,
            "references": [f"truth {i}"],
            "group": "p",
        }
        for i in range(4)
    ]
    path = tmp_path / "captions_test.json"
    path.write_text(json.dumps(rows))
    return path


def test_verbs(results: Path, tmp_path: Path) -> None:
    done = run_verb("labels", "reports", results, "--out", tmp_path / "labels")
    assert done.exit_code == 0, done.output
    assert (tmp_path / "labels" / "predictions.csv").read_text() == table_of([f"report {i} of it" for i in range(4)])
    given = random_labels(0, 4)
    true = write_labels(tmp_path / "true.csv", random_labels(1, 4), [f"truth {i}" for i in range(4)])
    mine = write_labels(tmp_path / "given.csv", given, [f"report {i} of it" for i in range(4)])
    words = ["labels", "score", results, "--references", true, "--predictions", mine]
    done = run_verb(*words, "--out", tmp_path / "scores.json")
    assert done.exit_code == 0 and "micro" in done.output and "Pleural Effusion" in done.output
    written = json.loads((tmp_path / "scores.json").read_text())
    assert (
        written["reports"] == 4 and written["scores"]["micro"]["low"] == written["scores"]["micro"]["high"]
    )  # a patient
    write_labels(mine, given[::-1], [f"report {i} of it" for i in (3, 2, 1, 0)])
    done = run_verb(*words)
    assert done.exit_code == 1 and "report 1 is another one, 'report 3 of it': keep their order" in done.output


def broken(content: str) -> Any:
    return lambda folder: (folder / "x.csv").write_text(content) and read_labels(folder / "x.csv")


HEAD = ",".join(CONDITIONS)
BAD = {
    "absent": (lambda folder: read_labels(folder / "x.csv"), "x.csv"),
    "another table": (broken("a,b\n1,2\n"), "is no table of labels: it has no column 'Enlarged Cardiomediastinum'"),
    "no rows": (broken(HEAD + "\n"), "holds no reports"),
    "a word": (broken(HEAD + "\n" + "yes," * 13 + "no\n"), "Enlarged Cardiomediastinum is .yes.; it can be 1"),
    "another number": (broken(HEAD + "\n" + "2," * 13 + "0\n"), "is '2'; it can be"),
    "quotation": (broken(HEAD + '\n"a'), "not a valid table"),
    "other lengths": (lambda folder: agreement(*(
        read_labels(write_labels(folder / f"{n}.csv", random_labels(0, n))) for n in (3, 4))), "3 reports and .* 4"),
    "unsure": (lambda folder: agreement(*[read_labels(write_labels(folder / "a.csv", random_labels(0, 3)))] * 2,
                                        unsure="maybe"), "unsure is 'maybe'; it can be positive or negative"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_mistakes_are_named(case: str, tmp_path: Path) -> None:
    trigger, message = BAD[case]
    with pytest.raises(BlipError, match=message):
        trigger(tmp_path)
