"""The folder of a run: nothing that is not its own is replaced or deleted, what it continues, what has to be equal."""

import json
import os
import shutil
from pathlib import Path

import pytest
from helpers.fine_tuning import CPU, assert_same_run, configure, score, train, tree

from blip.checkpoints.format import CheckpointError, load_weights
from blip.config import ConfigError, WeightedFile
from blip.files import ReadError
from blip.outputs import LockedError, OutputError, locked
from blip.tasks import nlvr
from blip.tasks.config import FineTuneConfig
from blip.train.checkpoint import INPUTS, complete_checkpoints, find_checkpoint
from blip.train.evaluated import evaluation_name
from blip.train.folder import BEST, OF_EVALUATION, OF_TRAINING, is_of_run, run_of
from blip.train.inputs import Fingerprints, differences, fingerprints, read_fingerprints
from blip.train.log import read_metrics
from blip.train.record import RECORD, Record, own, write_result

pytestmark = pytest.mark.usefixtures("no_java_nor_peak")


def write(path: Path, text: str = "mine") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.fixture(scope="module")
def whole(phantoms: Path, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an undisturbed run of six steps that keeps three checkpoints; its configuration is beside it."""
    place = tmp_path_factory.mktemp("whole")
    config = configure("nlvr", phantoms, place, "keep_checkpoints=3", init_from=tiny_checkpoint)
    train("nlvr", config, place / "run")
    return place / "run"


@pytest.fixture
def config(phantoms: Path, tiny_checkpoint: Path, tmp_path: Path) -> FineTuneConfig:
    return configure("nlvr", phantoms, tmp_path, "keep_checkpoints=3", init_from=tiny_checkpoint)


def resumed(config: FineTuneConfig) -> FineTuneConfig:
    return config.model_copy(update={"init_from": ""})


# ---- a new run -------------------------------------------------------------------------------------------------------

NAMES = [*OF_TRAINING, BEST, "test.json", "evaluation.json", "judgements_val.json", "unreadable_test.json"]


@pytest.mark.parametrize("name", NAMES)
def test_a_new_run_replaces_nothing_of_the_user(name: str, config: FineTuneConfig, tmp_path: Path) -> None:
    output = tmp_path / "out"
    write(output / name / "notes.txt" if name == BEST else output / name)
    write(output / "log.txt")
    write(output / "checkpoints" / "step-notes.txt")
    before = tree(output)
    with pytest.raises(OutputError, match=f"{name} is a .*--overwrite"):
        train("nlvr", config, output)
    assert tree(output) == before


def test_overwrite_replaces_what_a_run_writes_and_nothing_else(config: FineTuneConfig, tmp_path: Path) -> None:

    output = tmp_path / "out"
    for name in ("config.yaml", "best/notes.txt", "log.txt", "checkpoints/step-notes.txt", "checkpoints/step-best/x"):
        write(output / name)
    nlvr.run(config, output, "", device=CPU, overwrite=True)
    after = tree(output)
    for name in ("log.txt", "checkpoints/step-notes.txt", "checkpoints/step-best/x"):
        assert after[name] == b"mine"
    assert "best/notes.txt" not in after and after["config.yaml"] != b"mine"
    with pytest.raises(ConfigError, match="holds a run: continue it with --resume auto"):
        nlvr.run(config, output, "", device=CPU, overwrite=True)


def test_an_input_is_never_an_output(config: FineTuneConfig, tmp_path: Path) -> None:
    output = tmp_path / "out"
    data = write(output / "judgements_val.json", Path(config.val_file[0]).read_text())
    config = config.model_copy(update={"val_file": [str(data)]})

    with pytest.raises(OutputError, match=r"judgements_val\.json is an input"):
        nlvr.run(config, output, "", device=CPU, overwrite=True)
    assert data.read_text() == Path(configure_val(tmp_path)).read_text()


def configure_val(folder: Path) -> Path:
    return folder / "nlvr-val.json"


def test_a_run_that_ended_before_its_first_checkpoint_starts_again(
    config: FineTuneConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr("blip.tasks.nlvr.Judging.step", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            train("nlvr", config, output)
    assert (output / "config.yaml").is_file() and not complete_checkpoints(output)
    train("nlvr", config, output)
    assert read_metrics(output)[-1]["step"] == 6


def test_a_name_that_a_run_comes_to_later(tmp_path: Path) -> None:
    write(tmp_path / "extra_val.json")
    with pytest.raises(OutputError, match=r"extra_val\.json was not written by this run"):
        own(tmp_path, "extra_val.json")
    assert own(tmp_path, "new.json") == tmp_path / "new.json"
    write(tmp_path / "new.json")
    assert own(tmp_path, "new.json") and Record(tmp_path).files == ["new.json"]


def test_results_that_the_user_changed_are_kept(config: FineTuneConfig, whole: Path, tmp_path: Path) -> None:
    run = shutil.copytree(whole, tmp_path / "run", symlinks=True)
    score("nlvr", resumed(config), run)
    score("nlvr", resumed(config), run)
    (scored,) = (run / "evaluation").iterdir()
    for name in ("evaluation.json", "judgements_val.json", "config.yaml", "test.json"):
        place = run if name == "test.json" else scored
        (place / name).write_text((written := (place / name).read_text()) + ("# " if "yaml" in name else "mine"))
        before = tree(run)
        call = (lambda: train("nlvr", resumed(config), run, "auto")) if name == "test.json" else (
            lambda: score("nlvr", resumed(config), run))  # fmt: skip
        with pytest.raises(OutputError, match=f"{name} was changed after .*--overwrite"):
            call()
        assert tree(run) == before
        (place / name).write_text(written)
    write(scored / "evaluation.json")
    nlvr.score(resumed(config), run, CPU, overwrite=True)
    assert "weights" in json.loads((scored / "evaluation.json").read_text())
    score("nlvr", resumed(config), run)


def test_a_result_that_a_kill_left_is_not_a_changed_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_result(tmp_path, "test.json", {"score": 1})
    with monkeypatch.context() as patch:
        patch.setattr(Record, "sign", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            write_result(tmp_path, "test.json", {"score": 2})
    write_result(tmp_path, "test.json", {"score": 3})
    write(tmp_path / "test.json")
    with pytest.raises(OutputError, match=r"test\.json was changed"):
        write_result(tmp_path, "test.json", {"score": 4})
    assert (tmp_path / "test.json").read_text() == "mine"


@pytest.mark.parametrize("resume", ["", "auto"])
def test_a_file_is_no_output_folder(resume: str, config: FineTuneConfig, tmp_path: Path) -> None:
    file = write(tmp_path / "captions.json")
    with pytest.raises(OutputError, match=r"captions\.json is a file, and the output is a folder"):
        train("nlvr", config, file, resume)
    with pytest.raises(OutputError, match=r"/dev/null is neither a file nor a folder"):
        train("nlvr", config, Path("/dev/null"), resume)
    assert file.read_text() == "mine"


def test_a_damaged_record_comes_with_advice(config: FineTuneConfig, whole: Path, tmp_path: Path) -> None:
    run = back(whole, tmp_path / "run")
    (run / RECORD).write_text("{")
    with pytest.raises(
        ReadError, match=r"\.blip\.run\.json: not valid JSON.*Remove it and start the same command again"
    ):
        train("nlvr", resumed(config), run, "auto")
    (run / RECORD).unlink()
    train("nlvr", resumed(config), run, "auto")
    assert_same_run(whole, run)


@pytest.mark.parametrize("resume", ["", "auto"])
def test_an_empty_folder_of_the_user_is_no_run(
    resume: str, config: FineTuneConfig, whole: Path, tmp_path: Path
) -> None:
    write(tmp_path / "out" / "checkpoints" / "step-00000002" / "notes.txt")
    (tmp_path / "out" / "checkpoints" / "step-00000009").mkdir()
    train("nlvr", config, tmp_path / "out", resume)
    (tmp_path / "out" / "checkpoints" / "step-00000009").rmdir()
    assert_same_run(whole, tmp_path / "out")
    assert (tmp_path / "out" / "checkpoints" / "step-00000002.kept-1" / "notes.txt").read_text() == "mine"


def test_an_evaluation_replaces_nothing_of_the_user(config: FineTuneConfig, whole: Path, tmp_path: Path) -> None:
    given = config.model_copy(update={"init_from": str(whole / "best")})
    for name in (n for n in OF_EVALUATION if n.startswith(("evaluation", "judgements", "unreadable"))):
        output = tmp_path / name
        write(output / "evaluation" / evaluation_name(given, str(whole / "best"), output) / name)
        before = tree(output)
        with pytest.raises(OutputError, match="--overwrite"):
            score("nlvr", given, output)
        assert tree(output) == before
    write(tmp_path / "new" / "tokenizer.json", "another run's")
    score("nlvr", given, tmp_path / "new")
    score("nlvr", given, tmp_path / "new")
    assert (tmp_path / "new" / "tokenizer.json").read_text() == "another run's"


def test_a_second_process_is_refused(config: FineTuneConfig, whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path / "run", symlinks=True)
    before = tree(tmp_path / "run")
    with locked(tmp_path / "run"):
        with pytest.raises(LockedError, match=f"being written by process {os.getpid()} on "):
            train("nlvr", resumed(config), tmp_path / "run", "auto")
        assert tree(tmp_path / "run") == before
        score("nlvr", resumed(config), tmp_path / "run")  # in a folder of its own, also while the run goes on
    (scored,) = (tmp_path / "run" / "evaluation").iterdir()
    with locked(scored), pytest.raises(LockedError):
        score("nlvr", resumed(config), tmp_path / "run")


# ---- what a run continues --------------------------------------------------------------------------------------------


def back(run: Path, target: Path, step: int = 4) -> Path:
    """A copy of a run as if it had been killed after a step, before the next was evaluated."""
    shutil.copytree(run, target, symlinks=True)
    for checkpoint in complete_checkpoints(target):
        if int(checkpoint.name[-8:]) > step:
            shutil.rmtree(checkpoint)
            Record(target).forget([checkpoint.name])
    return target


def test_another_runs_checkpoint_is_refused(config: FineTuneConfig, whole: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    train("nlvr", config.model_copy(update={"max_steps": 3}), output)
    before = tree(output)
    for path in (whole, whole / "checkpoints" / "step-00000004", whole / "checkpoints" / "latest"):
        with pytest.raises(ConfigError, match=r"another run than .*--output_dir .*whole.*--init_from"):
            train("nlvr", resumed(config), output, str(path))
    assert tree(output) == before


def test_a_run_goes_on_in_an_empty_folder(config: FineTuneConfig, whole: Path, tmp_path: Path) -> None:
    before = tree(whole)
    output = tmp_path / "out"
    write(output / "log.txt")
    train("nlvr", resumed(config), output, str(whole / "checkpoints" / "step-00000004"))
    assert_same_run(whole, output)
    assert tree(whole) == before
    assert (output / "tokenizer.json").read_bytes() == (whole / "tokenizer.json").read_bytes()


def test_it_does_not_where_the_user_has_files(config: FineTuneConfig, whole: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    write(output / "tokenizer.json")
    with pytest.raises(OutputError, match=r"tokenizer\.json is a file"):
        train("nlvr", resumed(config), output, str(whole / "checkpoints" / "step-00000004"))
    assert tree(output) == {"tokenizer.json": b"mine"}


def test_a_run_within_the_folder_of_another_is_another_run(config: FineTuneConfig, whole: Path, tmp_path: Path) -> None:
    outer = shutil.copytree(whole, tmp_path / "outer", symlinks=True)
    inner = shutil.copytree(whole, outer / "inner", symlinks=True)
    before = tree(outer)
    for path in (inner, inner / "checkpoints" / "latest", inner / "checkpoints" / "step-00000004"):
        with pytest.raises(ConfigError, match=r"outer holds another run than .*--output_dir .*inner"):
            train("nlvr", resumed(config), outer, str(path))
    assert tree(outer) == before


@pytest.mark.parametrize("resume", ["auto", "run", "run/checkpoints/latest", "run/checkpoints/step-00000004", "disk"])
def test_checkpoints_on_another_disk(resume: str, config: FineTuneConfig, whole: Path, tmp_path: Path) -> None:
    run = back(whole, tmp_path / "run")
    (run / "checkpoints").rename(tmp_path / "disk")
    (run / "checkpoints").symlink_to(tmp_path / "disk")
    (tmp_path / "disk" / "latest").unlink()
    (tmp_path / "disk" / "latest").symlink_to("step-00000004")
    resume = str(tmp_path / "disk" / "step-00000004" if resume == "disk" else tmp_path / resume)
    train("nlvr", resumed(config), run, "auto" if resume.endswith("auto") else resume)
    assert_same_run(whole, run)
    assert (run / "checkpoints").is_symlink()


def test_the_run_of_a_linked_checkpoint(tmp_path: Path) -> None:
    step = tmp_path / "disk" / "step-00000004"
    step.mkdir(parents=True)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "checkpoints").symlink_to(step.parent)
    (step.parent / "latest").symlink_to(step.name)
    (tmp_path / "mine").symlink_to(tmp_path / "run" / "checkpoints" / "latest")
    for name in ("latest", step.name):
        assert run_of(tmp_path / "run" / "checkpoints" / name) == tmp_path / "run"
    assert is_of_run(tmp_path / "mine", tmp_path / "run")
    assert run_of(tmp_path / "mine") == tmp_path


@pytest.mark.parametrize("resume", ["auto", "run"])
def test_a_copy_under_the_name_of_another_step_is_passed_over(
    resume: str, config: FineTuneConfig, whole: Path, tmp_path: Path, capsys
) -> None:
    run = back(whole, tmp_path / "run")
    copy = run / "checkpoints" / "step-00000009"
    shutil.copytree(whole / "checkpoints" / "step-00000004", copy)
    (run / RECORD).unlink()  # as in a version that kept none
    before = tree(copy)
    train("nlvr", resumed(config), run, resume if resume == "auto" else str(run))
    assert "step-00000009 is passed over" in capsys.readouterr().err.replace("\n", " ")
    assert tree(copy) == before
    for name in ("step-00000004", "step-00000005", "step-00000006"):
        assert (run / "checkpoints" / name).is_dir()
    shutil.rmtree(run / BEST)
    assert score("nlvr", resumed(config), run)["weights"].endswith("step-00000006")
    for name in ("step-00000004", "step-00000005", "step-00000006"):
        shutil.rmtree(run / "checkpoints" / name)
    with pytest.raises(CheckpointError, match="step-00000009 holds another step than its name says"):
        train("nlvr", resumed(config), run, "auto")


def test_the_tokenizer_comes_with_the_weights(config: FineTuneConfig, whole: Path, tmp_path: Path) -> None:
    output = back(whole, tmp_path / "run")
    write(output / "tokenizer.json", '{"another": 1}')
    train("nlvr", resumed(config), output, "auto")
    for name in (".", "checkpoints/latest", "checkpoints/step-00000005", "best"):
        assert (output / name / "tokenizer.json").read_bytes() == (whole / "tokenizer.json").read_bytes()


def test_a_failed_resume_leaves_all_as_it_was(config: FineTuneConfig, whole: Path, tmp_path: Path) -> None:
    output = back(whole, tmp_path / "run")
    state = complete_checkpoints(output)[-1] / "training.pt"
    state.write_bytes(state.read_bytes()[:1000])
    before = tree(output)
    with pytest.raises(CheckpointError, match=r"training\.pt is damaged"):
        train("nlvr", resumed(config).model_copy(update={"lr": 0.5}), output, "auto")
    assert tree(output) == before


def test_without_the_best_weights_the_next_are_the_best(config: FineTuneConfig, whole: Path, tmp_path: Path) -> None:
    output = back(whole, tmp_path / "run")
    shutil.rmtree(output / "best")
    train("nlvr", resumed(config), output, "auto")
    assert load_weights(output / "best")[1]["step"] == 6


# ---- inputs ----------------------------------------------------------------------------------------------------------


def test_other_data_need_a_word(config: FineTuneConfig, whole: Path, tmp_path: Path, capsys) -> None:

    output = back(whole, tmp_path / "run")
    assert (output / "checkpoints" / "step-00000004" / INPUTS).is_file()
    train("nlvr", resumed(config), back(whole, tmp_path / "moved"), "auto")  # the same data at another place
    records = json.loads(Path(config.train_file[0]).read_text())
    records[3]["sentence"] += " or so"
    Path(config.train_file[0]).write_text(json.dumps(records))
    before = tree(output)
    with pytest.raises(ConfigError, match=r"trained with other data: .*nlvr-train\.json .*--allow_changed"):
        train("nlvr", resumed(config), output, "auto")
    assert tree(output) == before
    nlvr.run(resumed(config), output, "auto", device=CPU, allow_changed=True)
    assert "trained with other data" in capsys.readouterr().err
    train("nlvr", resumed(config), output, "auto")  # its checkpoints now know of them


def test_order_and_number_of_the_files_count(config: FineTuneConfig, whole: Path, tmp_path: Path) -> None:
    a, b = (str(write(tmp_path / f"{name}.json", name)) for name in "ab")
    moved = str(write(tmp_path / "moved.json", "b"))

    def of(*files: str) -> Fingerprints:
        return fingerprints(config.model_copy(update={"train_file": [*files]}))

    assert differences(of(a, b), of(a, moved)) == []
    for other in ((b, a), (a, b, b), (a, a)):
        assert differences(of(a, b), of(*other)) and differences(of(*other), of(a, b))
    assert differences(of(a, a), of(a, b)) == [f"{b} was not part of it"]
    assert differences(of(a, b), of(b, a)) == [
        "train_file names the same files in another order, or another number of times"
    ]
    stored = {"train_file": {a: of(a)["train_file"][0][1:]}}
    path = write(tmp_path / INPUTS, json.dumps(stored))
    assert read_fingerprints(path) == {"train_file": of(a)["train_file"]}, "as they were stored before"
    twice = config.model_copy(update={"train_file": [*config.train_file, *config.train_file]})
    with pytest.raises(ConfigError, match="another number of times"):
        train("nlvr", resumed(twice), back(whole, tmp_path / "run"), "auto")


def test_a_checkpoint_of_an_earlier_version(config: FineTuneConfig, whole: Path, tmp_path: Path, capsys) -> None:
    output = back(whole, tmp_path / "run")
    (output / RECORD).unlink()
    for checkpoint in complete_checkpoints(output):
        (checkpoint / INPUTS).unlink()
    train("nlvr", resumed(config), output, "auto")
    assert "is of an earlier version: whether its data have changed is not known" in capsys.readouterr().err
    assert_same_run(whole, output)
    assert [path.name[-1] for path in complete_checkpoints(output)] == ["4", "5", "6"], "its checkpoints are its own"


# ---- checkpoints of the user, copies of runs -------------------------------------------------------------------------


def test_folders_of_other_names_are_no_checkpoints_and_stay(
    config: FineTuneConfig, whole: Path, tmp_path: Path, capsys
) -> None:
    output = back(whole, tmp_path / "run")
    folder = output / "checkpoints"
    shutil.copytree(folder / "step-00000004", folder / "step-best")
    shutil.copytree(folder / "step-00000004", folder / "step-00000005")  # of the user, and in the way
    write(folder / "step-00000005" / "notes.txt")
    write(folder / "step-notes.txt")
    write(folder / ".step-notes.partial" / "x")
    assert [path.name[-1] for path in complete_checkpoints(output)] == ["4", "5"]
    assert find_checkpoint("auto", output) == folder / "step-00000004"
    train("nlvr", resumed(config), output, str(folder / "step-best"))
    assert_same_run(whole, output)
    assert {path.name for path in folder.iterdir()} == {
        "latest", "step-00000004", "step-00000005", "step-00000006", "step-best", "step-notes.txt",
        ".step-notes.partial", "step-00000005.kept-1",
    }  # fmt: skip
    assert (folder / "step-00000005.kept-1" / "notes.txt").read_text() == "mine"
    assert "is not of this run and is now" in capsys.readouterr().err


@pytest.mark.parametrize("links", [True, False], ids=["cp -r", "cp -rL"])
def test_copies_of_a_run_go_on(links: bool, config: FineTuneConfig, whole: Path, tmp_path: Path, capsys) -> None:
    shutil.copytree(whole, tmp_path / "copied", symlinks=links)
    output = back(tmp_path / "copied", tmp_path / "run")  # which keeps what is a link
    latest = output / "checkpoints" / "latest"
    if not links:
        assert not latest.is_symlink()
        write(latest / "notes.txt")
    train("nlvr", resumed(config), output, "auto")
    assert_same_run(whole, output)
    assert latest.is_symlink() and latest.resolve().name == "step-00000006"
    assert "could not" not in capsys.readouterr().err
    if not links:
        assert (output / "checkpoints" / "latest.kept-1" / "notes.txt").read_text() == "mine"


def test_a_file_system_without_links(
    config: FineTuneConfig, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "symlink_to", refused)
    output = tmp_path / "run"
    train("nlvr", config, output)
    assert_same_run(whole, output)
    latest = output / "checkpoints" / "latest"
    assert latest.read_text() == "step-00000006\n"
    assert find_checkpoint(str(latest), output) == output / "checkpoints" / "step-00000006"


def test_which_records_are_taken_counts(config: FineTuneConfig) -> None:
    def of(**options: object) -> Fingerprints:
        return fingerprints(config.model_copy(update=options))

    assert differences(of(), of(shuffle_records_seed=3)) == [], "without a limit a seed chooses nothing"
    assert differences(of(), of(max_train_records=9)) == ["max_train_records 9 was not set"]
    first, drawn = of(max_train_records=9), of(max_train_records=9, shuffle_records_seed=3)
    assert differences(first, drawn) == ["shuffle_records_seed 3 was not set"]
    gone = ["max_train_records 9 is no longer set", "shuffle_records_seed 3 is no longer set"]
    assert differences(drawn, of()) == gone
    entry = WeightedFile(path=str(config.train_file[0]), limit=2)
    assert differences(of(), of(train_file=[entry])) == [f"{entry.path} with limit 2 was not set"]
    hub = of(train_file=["hub:lab/vqa@" + "0" * 40])
    assert differences(hub, hub) == [] != differences(hub, of(train_file=["hub:lab/vqa@" + "1" * 40]))
