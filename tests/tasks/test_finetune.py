"""The four fine-tuning scripts on tiny models: what they start from, what they leave, the best weights, resuming."""

import json
import math
import random
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers.fine_tuning import (
    CPU,
    TASKS,
    assert_same_run,
    configure,
    evaluations,
    score,
    script_of,
    train,
    train_apart,
    tree,
    write_part,
)
from helpers.running import ROOT, forked, run_script, script_command, script_env
from helpers.tiny import MODEL_SIZES, TINY
from safetensors.torch import load_file, save_file
from torch import Tensor

import blip
from blip.checkpoints import initialize
from blip.checkpoints.format import CheckpointError, load_weights, unique_state
from blip.config import ConfigError, load_config
from blip.models.factory import spec_of
from blip.tasks import start
from blip.tasks.config import FineTuneConfig
from blip.tasks.finetune import FineTuning
from blip.tokenizer import load_tokenizer
from blip.train.checkpoint import complete_checkpoints
from blip.train.log import read_metrics
from blip.train.parts import load_training

pytestmark = pytest.mark.usefixtures("no_java_nor_peak")


@pytest.fixture
def options(phantoms: Path, tiny_checkpoint: Path, tmp_path: Path) -> Callable[..., FineTuneConfig]:
    """(task, options) -> the configuration of a run from the tiny checkpoint."""
    return lambda task, *given: configure(task, phantoms, tmp_path, *given, init_from=tiny_checkpoint)


@pytest.fixture(scope="module")
def undisturbed(
    phantoms: Path, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., tuple[FineTuneConfig, Path]]:
    """(task, options) -> a finished run of these; each is run once."""
    known: dict[tuple, tuple[FineTuneConfig, Path]] = {}

    def run(task: str, *given: str) -> tuple[FineTuneConfig, Path]:
        if (task, *given) not in known:
            folder = tmp_path_factory.mktemp(task)
            config = configure(task, phantoms, folder, *given, init_from=tiny_checkpoint)
            train(task, config, folder / "run")
            known[task, *given] = config, folder / "run"
        return known[task, *given]

    return run


def build(task: str, config: FineTuneConfig, output: Path) -> FineTuning:
    source = start.read_source(config)
    return TASKS[task][2](start.with_sizes_of(config, source), source, output, resume=None, device=CPU)


# ---- what a run leaves -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", TASKS)
def test_a_run_leaves_log_checkpoints_best_weights_and_predictions(undisturbed: Callable, task: str) -> None:
    _, output = undisturbed(task)
    lines = read_metrics(output)
    assert [line["step"] for line in lines if "lr" in line] == [1, 2, 3, 4, 5, 6]
    assert all(math.isfinite(v) for line in lines for v in line.values() if isinstance(v, float))
    assert [line["epoch"] for line in evaluations(output)] == [1, 2]
    assert [p.name for p in complete_checkpoints(output)] == ["step-00000005", "step-00000006"]
    best = json.loads((output / "best" / "metrics.json").read_text())
    assert best["step"] in (3, 6)
    assert json.loads((output / "best" / "model.json").read_text())["task"] == task
    tested = json.loads((output / "test.json").read_text())
    assert tested["weights"] == str(output / "best")
    assert len([name for name in tested if name.startswith("test_")]) > 2
    for split, count in {"val": 7, "test": 5}.items():
        found = json.loads((output / f"{TASKS[task][4]}_{split}.json").read_text())
        assert len(found["image_to_text"] if task == "retrieval" else found) == count
    assert blip.load(output / "best").info["task"] == task


@pytest.mark.parametrize("task", TASKS)
def test_evaluating_the_run_again_gives_the_best_validation(undisturbed: Callable, task: str) -> None:
    config, output = undisturbed(task)
    files = tree(output)
    config = config.model_copy(update={"init_from": "", "tokenizer": "train"})  # that of the checkpoint counts
    found = score(task, config, output)
    expected = json.loads((output / "best" / "metrics.json").read_text())
    expected = {name: value for name, value in expected.items() if name.startswith("val_")}
    for name in ("images_in_training", "majority"):  # the training set is not read
        expected.pop(f"val_{name}", None)
    assert {name: found[name] for name in expected} == pytest.approx(expected, abs=1e-9)
    assert found["weights"] == str(output / "best")
    tested = json.loads((output / "test.json").read_text())
    for name in ("images_in_training", "majority"):
        tested.pop(f"test_{name}", None)
    assert {name: found[name] for name in tested} == pytest.approx(tested, abs=1e-9)
    assert {name: content for name, content in tree(output).items() if not name.startswith("evaluation/")} == files
    result = TASKS[task][4]
    assert json.loads((output / "evaluation" / "best-val-test" / f"{result}_test.json").read_text())
    assert load_config(output / "evaluation" / "best-val-test" / "config.yaml", type(config)).init_from


def test_the_tasks_facts_go_with_the_weights(undisturbed: Callable) -> None:
    assert blip.load(undisturbed("caption")[1] / "best").info["prompt"] == "a picture of "
    answers = blip.load(undisturbed("vqa")[1] / "best").info["answers"]
    config, _ = undisturbed("vqa")
    asked = json.loads(Path(config.train_file[0]).read_text())
    given = {record["answer"] for record in asked}
    tokenizer = load_tokenizer(str(undisturbed("vqa")[1] / "best" / "tokenizer.json"))
    tokens = {answer: tuple(ids) for answer, ids in zip(given, tokenizer.encode(list(given), 8), strict=True)}
    assert set(answers) <= given
    assert {tokens[answer] for answer in answers} == set(tokens.values()) and len(answers) == len(set(tokens.values()))


@pytest.mark.slow
@pytest.mark.parametrize("task", [task for task in TASKS if task != "dialogue"])  # that one: test_readme.py
def test_as_a_program(task: str, phantoms: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    configure(task, phantoms, tmp_path, init_from=tiny_checkpoint)
    command = ["--config", tmp_path / f"{task}.yaml", "--output_dir", tmp_path / "run", "--set", "max_steps=1"]
    script = script_of(task)
    words = script_command(*command, "--init_from", tiny_checkpoint, script=script)
    done = subprocess.run(words, cwd=ROOT, env=script_env({"PATH": ""}), timeout=120, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "test_" in done.stdout and "1 steps" in done.stderr
    done = run_script(*command, "--set", "init_from=", "--evaluate", script=script, env={"PATH": ""})
    assert done.returncode == 0, done.stderr
    assert f"weights: {tmp_path / 'run' / 'best'}" in done.stdout


# ---- what a run starts from ------------------------------------------------------------------------------------------

NEW: dict[str, set[str]] = {"retrieval": set(), "caption": set(), "vqa": set(), "nlvr": {"cls_head"}, "dialogue": set()}


@pytest.mark.parametrize("task", TASKS)
def test_starts_from_a_checkpoint_of_pretraining(
    options: Callable, tiny_checkpoint: Path, task: str, tmp_path: Path
) -> None:
    made = build(task, options(task), tmp_path)
    theirs, own = load_weights(tiny_checkpoint)[0], unique_state(made.model)
    assert set(initialize.parts_of(made.missing)) == NEW[task]
    assert not made.warning
    for name, tensor in own.items():
        if name in theirs:
            assert torch.equal(tensor, theirs[name]), name
        elif name not in made.missing:  # what pre-training shares, or NLVR2 holds twice
            shared = name.replace("text_decoder.", "text_encoder.")
            twice = name.replace(".first.", ".").replace(".second.", ".")
            assert torch.equal(tensor, theirs[shared if shared in theirs else twice]), name


@pytest.mark.parametrize("task", TASKS)
def test_starts_from_nothing(phantoms: Path, task: str, tmp_path: Path) -> None:
    config = configure(task, phantoms, tmp_path, "max_steps=1", "tokenizer=train", "vocab_size=90")
    train(task, config, tmp_path / "run")
    assert evaluations(tmp_path / "run")[-1]["step"] == 1
    assert score(task, config, tmp_path / "run")["weights"].endswith("best")
    stored = json.loads((tmp_path / "run" / "best" / "model.json").read_text())
    assert stored.get("text_encoder", {}).get("images", 1) == spec_of(task).images
    assert blip.load(tmp_path / "run" / "best").info["task"] == task


def test_statements_of_earlier_runs_from_nothing_can_be_loaded(phantoms: Path, tmp_path: Path) -> None:
    train(
        "nlvr",
        configure("nlvr", phantoms, tmp_path, "max_steps=1", "tokenizer=train", "vocab_size=90"),
        tmp_path / "run",
    )
    place = tmp_path / "run" / "best" / "model.json"
    info = json.loads(place.read_text())
    info["text_encoder"]["images"] = 1
    place.write_text(json.dumps(info))
    assert blip.load(tmp_path / "run" / "best").info["task"] == "nlvr"


def test_sizes_are_those_of_the_checkpoint(options: Callable, tmp_path: Path) -> None:
    made = build("caption", options("caption", "image_size=64", f"text_hidden={TINY['text_hidden']}"), tmp_path)
    assert made.model.image_encoder.config.width == TINY["vit_width"]
    assert made.model.image_encoder.config.image_size == 64
    assert made.model.text_decoder.config.layers == TINY["text_layers"]


@pytest.mark.parametrize(
    ("given", "pattern"),
    [
        ("text_width=48", r"has sizes of its own: leave out text_width 48 \(it has 32\)"),
        ("vit=tiny", r"leave out vit tiny \(it has \(32, 2, 2, 16\)\)"),
        ("max_text_tokens=49", "max_text_tokens 49 is above the 48 positions"),
        ("max_new_tokens=45", "prompt and max_new_tokens: .* tokens, and the model has 48 positions"),
    ],
)
def test_other_sizes_are_refused(options: Callable, given: str, pattern: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=pattern):
        build("caption", options("caption", given), tmp_path)


def test_retrieval_keeps_the_temperature_of_its_start(options: Callable, tiny_checkpoint: Path, tmp_path: Path) -> None:
    source = start.read_source(options("retrieval"))
    source.tensors["temperature"].fill_(0.02)
    config = start.with_sizes_of(options("retrieval"), source)
    assert TASKS["retrieval"][2](
        config, source, tmp_path, resume=None, device=CPU
    ).model.temperature.item() == pytest.approx(0.02)
    asked = build("retrieval", options("retrieval", "temperature=0.05"), tmp_path)
    assert asked.model.temperature.item() == pytest.approx(0.05)


def test_questions_split_by_image(options: Callable, phantoms: Path, tmp_path: Path) -> None:
    config = options(
        "vqa", "val_file=[]", "test_file=[]", "split_shares=[0.4, 0.3, 0.3]", "max_steps=1", "batch_size=2"
    )
    write_part(phantoms, "vqa", 0, 40, Path(config.train_file[0]))
    train("vqa", config, tmp_path / "run")
    found = score("vqa", config.model_copy(update={"init_from": ""}), tmp_path / "run")
    assert 0 < found["val_questions"] + found["test_questions"] < 40
    assert found["val_images_in_training"] == found["test_images_in_training"] == 0


# ---- the best weights ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("best_is", "best", "step"), [("highest", 0.7, 2), ("lowest", 0.2, 3)])
def test_best_weights_outlive_a_resumption(
    options: Callable, best_is: str, best: float, step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {1: 0.5, 2: 0.7, 3: 0.2, 4: 0.7, 5: 0.3}
    made: list[FineTuning] = []
    script, _, judging = TASKS["nlvr"][:3]

    class Scripted(judging):
        def at_step_end(self, step, log):
            self.evaluate = lambda split: {"val_accuracy": values[step]}
            made.append(self)
            return super().at_step_end(step, log)

    monkeypatch.setattr(script, "Judging", Scripted)
    given = ("nlvr", "batch_size=12", "max_steps=5", "test_file=[]", "keep_checkpoints=9", f"best_is={best_is}")
    output = tmp_path / "run"
    train("nlvr", options(*given), output)
    weights, info = load_weights(output / "best")
    assert info["step"] == step and evaluations(output)[-1]["best"] == best
    same = load_weights(output / "checkpoints" / f"step-{step:08d}")[0]
    assert all(torch.equal(tensor, weights[name]) for name, tensor in same.items())

    for later in complete_checkpoints(output)[3:]:  # as if killed in step 4
        (later / "training.pt").unlink()
        later.rename(output / later.name)
    train("nlvr", options(*given, "init_from="), output, "auto")
    assert load_weights(output / "best")[1]["step"] == step
    assert [line["best"] for line in evaluations(output)][-2:] == [best, best]
    assert len({id(one) for one in made}) == 2


@pytest.mark.parametrize("kept", [False, True], ids=["", "kept by an earlier version"])
def test_what_is_not_a_number_is_never_the_best(
    options: Callable, kept: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    values = {1: math.nan, 2: 0.7, 3: math.nan, 4: 0.9}
    script, _, judging = TASKS["nlvr"][:3]

    class Scripted(judging):
        def at_step_end(self, step, log):
            self.evaluate = lambda split: {"val_accuracy": values[step]}
            return super().at_step_end(step, log)

        def state(self):
            progress = {"best": torch.tensor(math.nan, dtype=torch.float64)}
            return {**super().state(), **({"progress": progress} if kept else {})}

    monkeypatch.setattr(script, "Judging", Scripted)
    output, given = tmp_path / "run", ("nlvr", "batch_size=12", "test_file=[]", "keep_checkpoints=9")
    train("nlvr", options(*given, "max_steps=3"), output)
    assert load_weights(output / "best")[1]["step"] == 2
    train("nlvr", options(*given, "init_from=", "max_steps=4"), output, "auto")
    assert load_weights(output / "best")[1]["step"] == 4


# ---- resuming --------------------------------------------------------------------------------------------------------

LORA = "lora={rank: 2, targets: [qkv], dropout: 0.1}"
RUNS = [(task,) for task in TASKS] + [("nlvr", LORA), ("vqa", "freeze=[image_encoder]"), ("caption", "layer_decay=0.8")]


@pytest.mark.slow
@pytest.mark.parametrize("given", RUNS, ids=["-".join(run).partition("=")[0] for run in RUNS])
def test_killed_and_resumed_as_if_undisturbed(
    undisturbed: Callable, options: Callable, given: tuple[str, ...], tmp_path: Path
) -> None:
    output, moments = tmp_path / "run", random.Random(str(given))
    process = forked(train_apart, given[0], options(*given), output)
    process.start()
    while process.is_alive() and not complete_checkpoints(output):
        time.sleep(0.005)
    time.sleep(moments.uniform(0, 0.2))
    process.kill()
    process.join()
    assert complete_checkpoints(output), "it never got so far"
    train(given[0], options(*given, "init_from="), output, "auto")
    assert_same_run(undisturbed(*given)[1], output)


def test_what_the_optimizer_depends_on_cannot_change(undisturbed: Callable, options: Callable, tmp_path: Path) -> None:
    _, output = undisturbed("nlvr")
    for given in (LORA, "freeze=[image_encoder]", "layer_decay=0.8"):
        with pytest.raises(ConfigError, match=f"cannot change within a run: {given.partition('=')[0]}"):
            train("nlvr", options("nlvr", given), output, "auto")


def test_adapters_know_their_base(undisturbed: Callable, options: Callable, tmp_path: Path) -> None:
    _, output = undisturbed("nlvr", LORA)
    made = build("nlvr", options("nlvr", LORA), tmp_path)
    with torch.no_grad():
        made.model.get_parameter("image_encoder.norm.weight").add_(0.1)
    last = complete_checkpoints(output)[-1]
    with pytest.raises(CheckpointError, match="do not belong to init_from"):
        made.load(last, load_training(last))


# ---- small means -----------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_weights_of_a_run_with_adapters_load_anywhere(
    undisturbed: Callable, options: Callable, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    _, output = undisturbed("nlvr", LORA)
    last = complete_checkpoints(output)[-1]
    adapted = build("nlvr", options("nlvr", LORA), tmp_path)
    adapted.load(last, load_training(last))
    assert any("lora_A" in name for name, _ in adapted.model.named_parameters())
    plain = blip.load(last).model
    images, ids = torch.randn(3, 2, 3, 32, 32), torch.randint(5, 60, (3, 6))
    lengths = torch.full((3,), 6)
    expected = adapted.model.eval()(images, ids, lengths)
    torch.testing.assert_close(plain(images, ids, lengths), expected, rtol=0, atol=1e-6)
    changed = changes(load_weights(last)[0], build("nlvr", options("nlvr"), tmp_path))
    assert changed and all(name.endswith("qkv.weight") for name in changed)
    assert json.loads((output / "best" / "adapter.json").read_text())["base"] == str(tiny_checkpoint)


@pytest.mark.parametrize("task", ["nlvr", "vqa"])
def test_a_folder_of_adapters_alone_loads_with_its_base(
    undisturbed: Callable, tiny_checkpoint: Path, tmp_path: Path, task: str
) -> None:
    """Parts that the base lacks, such as a new head, come with the adapters even where they are frozen."""
    pytest.importorskip("peft")
    _, output = undisturbed(task, LORA)
    for name in ("adapter.safetensors", "adapter.json"):  # the tokenizer is that of the base
        (tmp_path / name).write_bytes((output / "best" / name).read_bytes())
    merged, alone = blip.load(output / "best"), blip.load(tmp_path)
    assert alone.info.items() <= merged.info.items() and alone.info["task"] == task
    expected = unique_state(merged.model)
    assert unique_state(alone.model).keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in unique_state(alone.model).items())
    assert not any("lora" in name for name, _ in alone.model.named_modules())

    about = json.loads((tmp_path / "adapter.json").read_text())
    assert {name.split(".")[0] for name in about["new"]} == ({"cls_head"} if task == "nlvr" else set())
    for base, message in (("gone", "their base checkpoint gone does not exist: restore it"), ("", "names no base")):
        (tmp_path / "adapter.json").write_text(json.dumps({**about, "base": base}))
        with pytest.raises(CheckpointError, match=message):
            blip.load(tmp_path)
    (tmp_path / "adapter.json").write_text(json.dumps({key: value for key, value in about.items() if key != "model"}))
    with pytest.raises(CheckpointError, match=r"does not describe the model: copy the run's model\.json"):
        blip.load(tmp_path)


def test_adapters_without_parts_that_their_base_lacks_are_refused(undisturbed: Callable, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    _, output = undisturbed("nlvr", LORA)
    about = json.loads((output / "best" / "adapter.json").read_text())
    tensors = load_file(output / "best" / "adapter.safetensors")
    save_file({name: t for name, t in tensors.items() if name not in about["new"]}, tmp_path / "adapter.safetensors")
    (tmp_path / "adapter.json").write_text(json.dumps({**about, "new": []}))
    with pytest.raises(CheckpointError, match=r"neither holds cls_head\.0\.weight"):
        blip.load(tmp_path)


def changes(weights: dict[str, Tensor], begun: FineTuning) -> list[str]:
    """The names of what differs from the start."""
    return [name for name, tensor in unique_state(begun.model).items() if not torch.equal(tensor, weights[name])]


def test_a_frozen_image_encoder_stays_as_it_was(undisturbed: Callable, options: Callable, tmp_path: Path) -> None:
    weights = load_weights(complete_checkpoints(undisturbed("vqa", "freeze=[image_encoder]")[1])[-1])[0]
    changed = changes(weights, build("vqa", options("vqa"), tmp_path))
    assert changed and not any(name.startswith("image_encoder.") for name in changed)


def test_lower_layers_learn_more_slowly(undisturbed: Callable, options: Callable, tmp_path: Path) -> None:
    """Adam's steps are as long as the learning rate, whatever the gradient."""
    begun = unique_state(build("caption", options("caption"), tmp_path).model)
    moved = {}
    for given in ((), ("layer_decay=0.8",)):
        weights = load_weights(complete_checkpoints(undisturbed("caption", *given)[1])[-1])[0]
        names = [f"image_encoder.blocks.{i}.mlp.0.weight" for i in range(2)]
        moved[given] = [float((weights[name] - begun[name]).abs().mean()) for name in names]
    shares = [slow / fast for slow, fast in zip(moved["layer_decay=0.8",], moved[()], strict=True)]
    assert shares == pytest.approx([0.64, 0.8], rel=0.1)


def test_the_written_configuration_is_the_run(undisturbed: Callable, tiny_checkpoint: Path) -> None:
    config, output = undisturbed("vqa")
    written = load_config(output / "config.yaml", TASKS["vqa"][1])
    assert written.init_from == str(tiny_checkpoint)
    assert {key: getattr(written, key) for key in MODEL_SIZES} == MODEL_SIZES
    assert all(getattr(written, key) == value for key, value in config if key not in MODEL_SIZES)
