"""Two processes compute what one would: against a plain loop over the same micro-batches, and through torchrun."""

import itertools
import json
import shutil
import subprocess
import time
from pathlib import Path

import pytest
import torch
from helpers.recorded_pretraining import (
    BATCH,
    CLIP,
    EVALUATED,
    LR,
    SCENARIOS,
    Scenario,
    configure,
    evaluate,
    fresh_parts,
    hardest,
    part,
    process,
)
from helpers.running import ROOT, WORLD, run_in_two, run_script, script_command, script_env, start_two
from torch import Tensor
from torch.testing import assert_close

from blip.checkpoints.format import load_weights
from blip.evaluation.pretraining import evaluate_pretraining
from blip.models import momentum
from blip.train.checkpoint import complete_checkpoints
from blip.train.log import read_metrics

TRAINED = [name for name, scenario in SCENARIOS.items() if scenario.poisoned is None]
CLOSE = {"rtol": 1e-4, "atol": 1e-5}  # float32, summed in another order


@pytest.fixture(scope="module")
def seen(tiny_config: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    """What each of the two processes saw, in all scenarios."""
    folder = tmp_path_factory.mktemp("two")
    records = json.loads((tiny_config.parent / "captions.json").read_text())
    for count in EVALUATED:
        absolute = [{**r, "image": str(tiny_config.parent / r["image"])} for r in records[:count]]
        (folder / f"val-{count}.json").write_text(json.dumps(absolute))
    found = start_two(process, folder, tiny_config)
    for one in found:
        one["folder"] = folder
    return found


def test_gathers_in_the_order_of_ranks(seen: list[dict]) -> None:
    for one in seen:
        assert one["gathered"].tolist() == [[0, 0], [1, 10]]
        assert {op: value.item() for op, value in one["reduced"].items()} == {"mean": 1.5, "sum": 3.0, "max": 2.0}


@pytest.mark.parametrize("name", TRAINED)
def test_processes_see_different_samples_and_hold_the_same_state(seen: list[dict], name: str) -> None:
    one, other = (found["train"][name] for found in seen)
    epoch = [set(found["batches"][0].indices) for found in (one, other)]
    assert not epoch[0] & epoch[1]
    for parts, other_parts in zip(one["after"], other["after"], strict=True):
        for state, other_state in zip(parts, other_parts, strict=True):
            assert all(torch.equal(tensor, other_state[key]) for key, tensor in state.items())


@pytest.mark.parametrize("name", TRAINED)
def test_equals_a_plain_loop_over_the_same_micro_batches(seen: list[dict], tiny_config: Path, name: str) -> None:
    scenario, ranks = SCENARIOS[name], [found["train"][name] for found in seen]
    config = configure(tiny_config, scenario)
    model, twin, queue = fresh_parts(config, seen[0]["folder"])
    assert_close(dict(model.state_dict()), ranks[0]["start"], rtol=0, atol=0)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9)
    ramp = max(1, round(0.2 * 48 / (WORLD * config.batch_size * config.accumulation)))
    pushed: list[tuple] = []  # every entry that ever went into the queue, one by one
    for step in range(scenario.steps):
        optimizer.zero_grad()
        alpha = config.alpha * min(1.0, step / ramp)
        for rank in ranks:
            for i in range(step * config.accumulation, (step + 1) * config.accumulation):
                batch = rank["batches"][i]
                inputs = batch.images, batch.ids, batch.lengths
                torch.set_rng_state(rank["random"][i])
                model.image_encoder.patch_dropout.share = config.patch_dropout if step < scenario.steps - 1 else 0.0
                features = twin(*inputs)
                found = momentum.candidates(momentum.Entries(*features, batch.caption_ids, batch.image_ids), queue)
                out = model(*inputs, found, alpha, draw=hardest)
                for loss in ("itc", "itm", "lm"):
                    assert getattr(out, loss).item() == pytest.approx(rank["losses"][i][loss], rel=1e-4)
                ((out.itc + out.itm + out.lm) / (WORLD * config.accumulation)).backward()
                pushed += zip(*features, batch.caption_ids, batch.image_ids, strict=True)
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        for rank in ranks:
            for key, parameter in model.named_parameters():
                assert_close(rank["gradients"][step][key], parameter.grad, **CLOSE)
        optimizer.step()
        follow(model, twin, config.momentum)
        fill(queue, pushed[-WORLD * config.batch_size * config.accumulation :])
        assert_state(ranks[0]["after"][step], model, twin, queue, scenario, len(pushed))


def follow(model: torch.nn.Module, twin: torch.nn.Module, share: float) -> None:
    """The momentum update as published, parameter by parameter."""
    theirs = dict(model.named_parameters())
    with torch.no_grad():
        for name, parameter in twin.named_parameters():
            parameter.copy_(parameter * share + theirs[name] * (1 - share))


def fill(queue: momentum.Queue, entries: list[tuple]) -> None:
    """Entry by entry into the queue; the oldest is overwritten."""
    for image, text, caption, image_id in entries:
        place = int(queue.pointer)
        queue.images[:, place], queue.texts[:, place] = image, text
        queue.caption_ids[place], queue.image_ids[place] = caption, image_id
        queue.pointer.fill_((place + 1) % queue.size)


def assert_state(
    after: list[dict[str, Tensor]], model: torch.nn.Module, twin: torch.nn.Module, queue: momentum.Queue,
    scenario: Scenario, pushed: int,
) -> None:  # fmt: skip
    weights, twin_weights, queued = after
    assert_close(weights, dict(model.state_dict()), **CLOSE)
    assert_close(twin_weights, dict(twin.state_dict()), **CLOSE)
    if scenario.queue_size >= WORLD * BATCH * scenario.accumulation:
        assert int(queued["pointer"]) == pushed % scenario.queue_size
    for name in ("images", "texts", "caption_ids", "image_ids"):  # oldest first, wherever the pointer stands
        ours = queued[name].roll(-int(queued["pointer"]), -1)
        plain = getattr(queue, name).roll(-int(queue.pointer), -1)
        assert_close(ours, plain, **(CLOSE if "ids" not in name else {"rtol": 0, "atol": 0}))


def test_not_finite_on_one_process_stops_both_before_the_update(seen: list[dict]) -> None:
    for rank, found in enumerate(seen):
        run = found["train"]["not finite"]
        assert f"step 2: loss [{'nan' if rank == 1 else ''}" in run["error"]
        assert len(run["after"]) == 1
        assert_close(run["end"], run["after"][0][0], rtol=0, atol=0)
    assert "samples: those of another process" in seen[0]["train"]["not finite"]["error"]
    assert "captions.json record" in seen[1]["train"]["not finite"]["error"]


@pytest.mark.parametrize("count", EVALUATED)
def test_evaluation_equals_one_process(seen: list[dict], tiny_config: Path, count: int) -> None:
    config = configure(tiny_config, SCENARIOS["one micro-batch"])
    model, file = fresh_parts(config, seen[0]["folder"])[0], seen[0]["folder"] / f"val-{count}.json"
    two = seen[0]["evaluate"][count]
    assert two == seen[1]["evaluate"][count]
    assert two["val_pairs"] == count
    same_batches = [*part(config, file, 0, 2), *part(config, file, 1, 2)]
    assert evaluate_pretraining(model, same_batches, torch.device("cpu")).metrics == pytest.approx(two)
    one = evaluate(config, model, file, 0, 1)
    # a wrong pair is made of neighbours in a batch, and one process has other batches
    for metrics, name in itertools.product((one, two), ("val_itm_unmatched", "val_itm", "val_loss")):
        metrics.pop(name, None)
    assert one == pytest.approx(two)


# ---- torchrun --------------------------------------------------------------------------------------------------------


def arguments(config: Path, output: Path) -> list[str]:
    options = [
        "max_steps=6",
        "save_every_steps=3",
        "accumulation=2",
        "keep_checkpoints=3",
        "epochs=9999",
        "batch_size=4",
    ]
    return ["--config", str(config), "--output_dir", str(output), *(x for o in options for x in ("--set", o))]


@pytest.fixture(scope="module")
def torchrun_output(tmp_path_factory: pytest.TempPathFactory, tiny_config: Path) -> Path:
    """The folder of an undisturbed run on two processes, six steps long."""
    output = tmp_path_factory.mktemp("torchrun") / "run"
    done = run_script(*arguments(tiny_config, output), processes=2)
    assert done.returncode == 0, done.stderr
    assert "global batch 16, 6 steps, 3 an epoch" in done.stderr
    assert done.stderr.count("step 6/6  epoch 2  loss") == 1  # one process speaks
    assert "Warning" not in done.stderr
    return output


@pytest.mark.slow
def test_torchrun_writes_one_log_and_whole_checkpoints(torchrun_output: Path) -> None:
    steps = [line["step"] for line in read_metrics(torchrun_output) if "lr" in line]
    assert steps == [1, 2, 3, 4, 5, 6]
    assert [p.name for p in complete_checkpoints(torchrun_output)] == ["step-00000003", "step-00000006"]
    training = torch.load(torchrun_output / "checkpoints" / "latest" / "training.pt", weights_only=True)
    assert len(training["random"]) == len(training["loop"]["meters"]) == 2
    assert not torch.equal(training["random"][0]["cpu"], training["random"][1]["cpu"])  # dropout differs


@pytest.mark.slow
def test_two_processes_resumed_end_as_if_undisturbed(torchrun_output: Path, tiny_config: Path, tmp_path: Path) -> None:
    output = tmp_path / "killed"
    shutil.copytree(torchrun_output, output, symlinks=True)
    shutil.rmtree(output / "checkpoints" / "step-00000006")  # as if killed in step 6, before its checkpoint
    both = run_in_two(str(ROOT / "pretrain.py"), *arguments(tiny_config, output), "--resume", "auto")
    assert [done.returncode for done in both] == [0, 0], both
    said = both[0].stderr + both[1].stderr
    assert "step-00000003 after step 3" in said
    assert "another number of processes" not in said
    times = {"images_per_s", "memory_mb", "mfu"}
    logs = [read_metrics(folder) for folder in (output, torchrun_output)]
    assert [{k: v for k, v in line.items() if k not in times} for line in logs[0]] == [
        {k: v for k, v in line.items() if k not in times} for line in logs[1]
    ]
    ends = [o / "checkpoints" / "latest" for o in (output, torchrun_output)]
    weights = [load_weights(end)[0] for end in ends]
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())
    states = [torch.load(end / "training.pt", weights_only=True) for end in ends]
    for part_name in ("twin", "queue"):
        assert all(torch.equal(t, states[1][part_name][name]) for name, t in states[0][part_name].items())


@pytest.mark.slow
def test_torchrun_stopped_by_sigterm_saves(tiny_config: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    more = "--set", "num_workers=1", "--set", "max_steps=5000"
    command = script_command(*arguments(tiny_config, output), *more, processes=2)
    process = subprocess.Popen(command, cwd=ROOT, env=script_env(), stderr=subprocess.PIPE, text=True)
    while not (complete_checkpoints(output) or process.poll() is not None):
        time.sleep(0.05)
    process.terminate()
    _, errors = process.communicate(timeout=60)
    last = read_metrics(output)[-1]["step"]
    assert f"stopped by a signal after step {last}" in errors
    assert complete_checkpoints(output)[-1].name == f"step-{last:08d}"
