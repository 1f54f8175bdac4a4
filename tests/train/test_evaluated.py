"""`--evaluate` on a run: its configuration, what overrides it and what is said about that, its folder."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from helpers.fine_tuning import configure, score, train, tree
from helpers.running import ROOT, Program

from blip.config import ConfigError, PretrainConfig, dump_config, load_config
from blip.tasks.config import RetrievalConfig, VqaConfig
from blip.train.evaluated import evaluated, evaluation_name

pytestmark = pytest.mark.usefixtures("no_java_nor_peak")


@pytest.fixture(scope="module")
def whole(phantoms: Path, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of VQA at another image size than its file says; the file lies beside it."""
    place = tmp_path_factory.mktemp("whole")
    config = configure("vqa", phantoms, place, "image_size=64", "max_steps=2", init_from=tiny_checkpoint)
    file = str(place / "vqa.yaml")
    train("vqa", config.model_copy(update={"config_file": file, "max_text_tokens": 20}), place / "run")
    return place / "run"


@pytest.fixture
def run(whole: Path, tmp_path: Path) -> Path:
    return shutil.copytree(whole, tmp_path / "run", symlinks=True)


@pytest.fixture
def other(run: Path, whole: Path) -> Path:
    """Another file than the run's, with other data and another image size."""
    path = run.parent / "other.yaml"
    val = json.loads((whole.parent / "vqa-val.json").read_text())[:3]
    (run.parent / "few.json").write_text(json.dumps(val))
    path.write_text(f"image_size: 32\nval_file: [{run.parent}/few.json]\ntest_file: []\nvit: base\nlr: 1\nk_test: 2\n")
    return path


def found(run: Path | None, file: Path | None = None, *overrides: str, **options: str):
    return evaluated(VqaConfig, file, [*overrides], options=options, output=run, default_output=Path("runs/none"))


def test_the_runs_folder_is_enough(run: Path) -> None:
    done = found(run)
    assert (done.config.image_size, done.config.max_text_tokens, done.config.init_from) == (64, 20, "")
    assert done.output == run and done.notes == [f"the configuration is that of {run}/config.yaml"]


def test_the_file_that_the_run_began_with_does_not_undo_its_own_options(run: Path, whole: Path) -> None:
    file = whole.parent / "vqa.yaml"
    done = found(run, file)
    assert (done.config.image_size, done.config.max_text_tokens) == (64, 20)
    assert f"image_size is 64, as in the run; {file} has 32" in done.notes
    assert found(run, file, "image_size=32").config.image_size == 32


def test_another_file_overrides_and_that_is_said(run: Path, other: Path) -> None:
    done = found(run, other)
    assert (done.config.image_size, done.config.val_file) == (32, [f"{run.parent}/few.json"])
    assert done.config.max_text_tokens == 20 and done.config.k_test == 2  # the run's; the file's
    assert done.config.vit == "custom"  # sizes are those of the weights
    said = "\n".join(done.notes[1:])
    assert f"image_size: 64 -> 32, by {other}" in said and "k_test: 3 -> 2, by" in said
    assert "vit" not in said and "lr" not in said and "max_text_tokens" not in said
    assert len(done.notes) == 1 + 4


def test_weights_of_a_run_of_another_task_are_evaluated_by_the_file(
    phantoms: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """Retrieval by a pre-trained model, which has learned it."""
    weights = tmp_path / "pre" / "checkpoints" / "step-00000001"
    shutil.copytree(tiny_checkpoint, weights)
    dump_config(PretrainConfig(), tmp_path / "pre/config.yaml")
    config = configure("retrieval", phantoms, tmp_path, "queue_size=0", init_from=weights)
    options = {"options": {"init_from": str(weights)}, "output": None, "default_output": tmp_path / "out"}
    done = evaluated(RetrievalConfig, tmp_path / "retrieval.yaml", ["queue_size=0"], **options)
    assert (done.config, done.output, done.notes) == (config, tmp_path / "out", [])
    assert score("retrieval", config, tmp_path / "out")["test_i2t_candidates"] == 5
    with pytest.raises(ConfigError, match="belongs to a run of another task, whose"):
        evaluated(RetrievalConfig, None, [], **options)
    with pytest.raises(ConfigError, match=rf"pre is of another task: give --init_from {weights}"):
        evaluated(RetrievalConfig, None, [], **{**options, "options": {}, "output": tmp_path / "pre"})


def test_set_overrides_all_and_that_is_said(run: Path, other: Path) -> None:
    done = found(run, other, "image_size=48", "k_test=3", "train_file=[]")
    assert (done.config.image_size, done.config.k_test, done.config.train_file) == (48, 3, [])
    assert "image_size: 64 -> 48, by --set" in done.notes
    assert not any("k_test" in note for note in done.notes)  # as in the run


def test_the_runs_own_configuration_as_the_file(run: Path, tmp_path: Path) -> None:
    for place in (None, run):
        done = found(place, run / "config.yaml")
        assert done.output == run and done.config.init_from in ("", str(run / "best"))
        assert len(done.notes) == 1
    elsewhere = found(tmp_path / "elsewhere", run / "config.yaml")
    assert elsewhere.output == tmp_path / "elsewhere" and elsewhere.config.init_from == str(run / "best")


def test_weights_lead_to_their_run(run: Path, tmp_path: Path) -> None:
    for weights in (run / "best", run / "checkpoints" / "latest"):
        done = found(None, None, init_from=str(weights))
        assert done.config.init_from == str(weights) and done.config.image_size == 64 and done.output == run
        assert found(None, None, f"init_from={weights}").config.init_from == str(weights)
    assert found(tmp_path / "x", None, init_from=str(run / "best")).output == tmp_path / "x"


def test_without_a_run_the_file_counts(run: Path, other: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    text = other.read_text().replace("lr: 1\n", "").replace("vit: base\n", "")
    other.write_text(text)
    done = found(tmp_path / "new", other, init_from=str(tiny_checkpoint))
    assert done.config.image_size == 32 and done.notes == []
    for call in (lambda: found(tmp_path / "new"), lambda: found(run, None, init_from=str(tiny_checkpoint))):
        with pytest.raises(ConfigError, match=r"(holds|belongs to) no run.*give --config"):
            call()


def test_names_of_folders(run: Path, tmp_path: Path) -> None:
    config = load_config(run / "config.yaml", VqaConfig)
    best = str(run / "best")
    assert evaluation_name(config, best, run) == "best-val-test"
    assert evaluation_name(config.model_copy(update={"test_file": []}), best, run) == "best-val"
    assert evaluation_name(config.model_copy(update={"batch_size": 99, "epochs": 7}), best, run) == "best-val-test"
    one = evaluation_name(config.model_copy(update={"image_size": 32}), best, run)
    two = evaluation_name(config.model_copy(update={"image_size": 48}), best, run)
    assert one.startswith("best-val-test-") and len({one, two}) == 2
    elsewhere = config.model_copy(update={"val_file": ["data/slake.json"], "test_file": []})
    assert evaluation_name(elsewhere, best, run) == "best-slake"
    assert evaluation_name(elsewhere, best, tmp_path / "x") == "run-best-slake"
    assert evaluation_name(elsewhere, "hub:Salesforce/blip-vqa-base", tmp_path) == "blip-vqa-base-slake"
    held = config.model_copy(update={"val_file": [f"hub:lab/set@{'1f' * 20}"], "test_file": []})
    assert evaluation_name(held, f"hub:lab/vqa@{'0e' * 20}", tmp_path) == "vqa-0e0e0e0e-set-1f1f1f1f"
    assert "/" not in evaluation_name(config.model_copy(update={"val_file": ["/a/b c/..", "x;y"]}), "../w.pth", run)


# ---- as a program ----------------------------------------------------------------------------------------------------


def script(*given: str | Path) -> CompletedProcess:
    return Program(str(ROOT / "train_vqa.py"), *given, env={"PATH": ""}).finish()


def scored(done: CompletedProcess) -> dict:
    assert done.returncode == 0, done.stderr
    return json.loads(Path(done.stdout.split()[-1]).read_text())


def test_ways_to_evaluate_a_run(run: Path, whole: Path) -> None:
    """All give the same scores, and none changes the run."""
    before = tree(run)
    ways: list[Callable[[], CompletedProcess]] = [
        lambda: script("--output_dir", run, "--evaluate"),
        lambda: script("--config", run / "config.yaml", "--evaluate", "--name", "by-file"),
        lambda: script("--config", whole.parent / "vqa.yaml", "--output_dir", run, "--evaluate"),
        lambda: script("--output_dir", run, "--evaluate", "--set", "train_file=[]", "--name", "untrained"),
        lambda: script("--init_from", run / "best", "--evaluate", "--name", "by-weights"),
    ]
    results = [scored(way()) for way in ways]
    for result in results:
        assert {k: v for k, v in result.items() if k in results[3]} == results[3]
    assert results[0]["val_questions"] == 7 and results[0]["weights"] == str(run / "best")
    after = tree(run)
    assert {name: after.pop(name) for name in before} == before
    folders = {Path(name).parent.name for name in after}
    assert folders == {"best-val-test", "by-file", "untrained", "by-weights"}
    assert {Path(name).name for name in after if "by-file" in name} == {
        ".blip.run.json", "answers_test.json", "answers_val.json", "config.yaml", "evaluation.json",
        "scores_test.json", "scores_val.json",
    }  # fmt: skip
    assert load_config(run / "evaluation" / "by-file" / "config.yaml", VqaConfig).image_size == 64


def test_other_settings_under_one_name_are_refused(run: Path) -> None:
    command = ("--output_dir", run, "--evaluate", "--name", "mine")
    scored(script(*command))
    before = tree(run)
    done = script(*command, "--set", "image_size=32")
    assert done.returncode == 1 and "other settings (image_size 64 -> 32): choose another --name" in done.stderr
    assert tree(run) == before
    assert "image_size: 64 -> 32, by --set" in done.stderr
    scored(script(*command, "--set", "image_size=32", "--overwrite"))
    for name in ("../x", "a/b", ".."):
        assert "without separators" in script("--output_dir", run, "--evaluate", "--name", name).stderr
    assert "--name is for --evaluate" in script("--output_dir", run, "--resume", "auto", "--name", "x").stderr


def test_a_run_that_was_moved_is_evaluated_again(run: Path, tmp_path: Path) -> None:
    """Its evaluation names the weights by the former path."""
    first = scored(script("--output_dir", run, "--evaluate"))
    run.rename(tmp_path / "moved")
    again = scored(script("--output_dir", tmp_path / "moved", "--evaluate"))
    assert again.pop("weights") == str(tmp_path / "moved" / "best") and first.pop("weights") == str(run / "best")
    assert again == first


def test_answers_come_from_the_training_files_where_the_checkpoint_lists_none(run: Path) -> None:
    info = json.loads((run / "best" / "model.json").read_text())
    del info["answers"]
    (run / "best" / "model.json").write_text(json.dumps(info))
    assert scored(script("--output_dir", run, "--evaluate"))["val_questions"] == 7
    done = script("--output_dir", run, "--evaluate", "--set", "train_file=[]", "--name", "x")
    assert "no answer to rank: set answer_file or train_file" in done.stderr
    assert not (run / "evaluation" / "x").exists()


def test_a_run_is_resumed_without_its_file(run: Path) -> None:
    done = script("--output_dir", run, "--resume", "auto", "--set", "max_steps=3")
    assert done.returncode == 0, done.stderr
    assert "max_steps 2 -> 3" in done.stderr
    assert load_config(run / "config.yaml", VqaConfig).config_file.endswith("vqa.yaml")
    done = script("--output_dir", run.parent / "none")
    assert done.returncode == 2 and "give a configuration, such as --config" in done.stderr
