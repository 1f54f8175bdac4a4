"""CapFilt as a whole: killed and continued, two rounds by one command, under torchrun, and the verbs up to a page."""

import json
import random
import shutil
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from subprocess import CompletedProcess

import pytest
import torch
from helpers.running import ROOT, Program, code_and_text, forked, run_in_two, script_env
from helpers.tiny import MODEL_SIZES, TINY

import blip
from blip.capfilt import steps
from blip.capfilt.candidates import HUMAN, WEB, read_candidates
from blip.capfilt.config import CapFiltConfig
from blip.capfilt.merge import Rule, merge
from blip.capfilt.steps import CaptionOptions, ShardOptions
from blip.config import ConfigError, load_config
from blip.data.jsonl_shards import read_lines, write_jsonl
from blip.inference.predictor import Predictor
from blip.models.decoding import Decoding

run_capfilt = partial(code_and_text, "capfilt")
HOW = Decoding(sample=True, top_p=0.9, num_return=2, max_new_tokens=5)

# ---- killed ----------------------------------------------------------------------------------------------------------


def one_process(step: str, checkpoint: Path, data: Path, out: Path, rank: int, world: int) -> None:
    """What one of several processes does in a step, without a rendezvous."""
    torch.set_num_threads(1)
    blip.files.os.fsync = lambda descriptor: time.sleep(0.05)  # a slow disk: there is a middle to be killed in
    answers = {"rank": rank, "world_size": world, "is_main": rank == 0, "barrier": None}
    for name, answer in answers.items():
        setattr(blip.distributed, name, lambda answer=answer: answer)
    if step == "merge":  # the main process's work, while the others wait
        if rank == 0:
            merge([data], out / "tars", Rule(0.0), tar_size=3)
            merge([data], out / "out.jsonl", Rule(0.0))
        return
    while rank and not (out / "settings.json").exists():
        time.sleep(0.005)
    candidates, model = read_candidates([str(data)]), blip.load(checkpoint)
    if step == "caption":
        steps.caption(
            model,
            candidates,
            out,
            model_fingerprint="m",
            options=CaptionOptions(HOW, seed=4),
            shards=ShardOptions(shard_size=3, batch_size=2),
        )
    else:
        steps.score(model, candidates, out, model_fingerprint="m", shards=ShardOptions(shard_size=3, batch_size=2))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*"))
            if path.is_file() and not path.name.startswith(".")}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("step", ["caption", "filter", "merge"])
def test_killed_processes_leave_what_an_undisturbed_one_leaves(
    step: str, tiny_checkpoint: Path, model: Predictor, phantoms: Path, tmp_path: Path
) -> None:
    """Both processes are killed five times, at random moments; then they may end."""
    if step == "merge":
        pytest.importorskip("webdataset")
    data, out = phantoms / "captions.json", tmp_path / "two"
    if step == "merge":
        steps.score(model, read_candidates([str(data)]), tmp_path / "scored", model_fingerprint="m")
        data = tmp_path / "scored"
    one_process_in_order = (step, tiny_checkpoint, data, tmp_path / "one")

    def start(out: Path, world: int) -> list:
        arguments = (*one_process_in_order[:3], out)
        processes = [forked(one_process, *arguments, rank, world) for rank in range(world)]
        for process in processes:
            process.start()
        return processes

    for folder in ("one", "timed"):  # the first one also waits for the server of processes
        begun = time.monotonic()
        for process in start(tmp_path / folder, 1):
            process.join(120)
    whole, rng, cut = time.monotonic() - begun, random.Random(step), 0
    for _ in range(5):
        processes = start(out, 2)
        time.sleep(rng.uniform(0.1, 0.5) * whole)
        for process in processes:
            cut += process.is_alive()
            process.kill()  # SIGKILL
            process.join(60)
    assert cut  # at least one was killed in its work
    for process in start(out, 2):
        process.join(120)
        assert process.exitcode == 0
    assert contents(tmp_path / "one") == contents(out)


# ---- a whole round ---------------------------------------------------------------------------------------------------


def small_rounds(start: Path, phantoms: Path) -> list[str]:
    """Options of `blip capfilt run` for rounds on 48 phantoms, two training steps each."""
    whole = {key: None if value == "null" else value for key, value in TINY.items()}
    whole |= {"crop_scale": [0.5, 1.0], "max_steps": 2, "val_file": []}
    small = {key: value for key, value in whole.items() if key not in (*MODEL_SIZES, "queue_size")}
    data = [str(phantoms / "captions.json")]
    options = {
        "web_file": data, "human_file": data, "start": str(start), "device": "cpu",
        "pretrain_set": {**whole, "tokenizer": str(start / "tokenizer.json")},
        "captioner_set": small, "filter_set": {**small, "queue_size": 8}, "shared_set": {**whole, "lr": 1e-3},
        "fraction": 0.5, "shard_size": 20, "max_new_tokens": 5,
    }  # fmt: skip
    return [word for key, value in options.items() for word in ("--set", f"{key}={json.dumps(value)}")]


def bootstrap(start: Path, phantoms: Path, output: Path, *more: str) -> CompletedProcess:
    """One round or more."""
    command = ["capfilt", "run", "--config", ROOT / "configs" / "capfilt_phantoms.yaml", "--output_dir", output]
    return Program("blip", *command, *small_rounds(start, phantoms), *more).finish(600)


@pytest.mark.slow
def test_two_rounds_by_one_command(tiny_checkpoint: Path, phantoms: Path, tmp_path: Path) -> None:
    done = bootstrap(tiny_checkpoint, phantoms, tmp_path, "--rounds", "2")
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
    for number in (1, 2):
        place = tmp_path / f"round{number}"
        records = [json.loads(line) for line in (place / "bootstrapped.jsonl").read_text().splitlines()]
        assert {record["source"] for record in records} >= {HUMAN, WEB}
        assert (place / "report.html").is_file() and (place / "model" / "checkpoints" / "latest").exists()
        assert {line["round"] for line in read_lines(place / "synthetic") if "text" in line} == {number}
    config = (tmp_path / "round2" / "captioner" / "config.yaml").read_text()
    assert "round1/model" in config  # the second round starts from the model of the first
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("shard-*")}
    shutil.rmtree(tmp_path / "round2" / "model")
    for step in (tmp_path / "round1" / "model" / "checkpoints").glob("step-*"):
        shutil.copytree(step, step.with_name("step-00000009"))  # a copy that is passed over, as in any run
    merged = tmp_path / "round1" / "bootstrapped.jsonl"
    lost = merged.read_bytes()
    merged.unlink()
    again = bootstrap(tiny_checkpoint, phantoms, tmp_path, "--rounds", "2")
    assert again.returncode == 0 and "training" in again.stdout
    assert again.stdout.count("training") == 1  # what was done is not done again
    assert merged.read_bytes() == lost
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("shard-*")}
    shutil.rmtree(tmp_path / "round2" / "model" / "checkpoints")
    gone = bootstrap(tiny_checkpoint, phantoms, tmp_path, "--rounds", "2")
    assert gone.returncode == 1 and "round2/model was trained and has lost its checkpoints" in gone.stderr
    shared = bootstrap(tiny_checkpoint, phantoms, tmp_path / "s", "--set", "shared=configs/pretrain_demo.yaml")
    assert shared.returncode == 0, shared.stderr[-3000:]
    assert not (tmp_path / "s" / "round1" / "filter").exists()
    longer = bootstrap(tiny_checkpoint, phantoms, tmp_path / "s", "--set", "shared=configs/pretrain_demo.yaml")
    assert longer.returncode == 0 and "training" not in longer.stdout
    done = tmp_path / "s" / "round1" / "shared" / "done.json"
    done.write_text(done.read_text().replace('"max_steps": 2', '"max_steps": 3'))
    changed = bootstrap(tiny_checkpoint, phantoms, tmp_path / "s", "--set", "shared=configs/pretrain_demo.yaml")
    assert changed.returncode == 1 and "was trained with another max_steps" in changed.stderr
    other = bootstrap(tiny_checkpoint, phantoms, tmp_path, "--set", "threshold=0.7")
    assert other.returncode == 1 and "begun with other settings: threshold 0.1 -> 0.7" in other.stderr


@pytest.mark.slow
def test_a_round_under_torchrun_with_packaged_configurations(
    tiny_checkpoint: Path, phantoms: Path, tmp_path: Path
) -> None:
    """Outside a checkout, where only names of configurations can be found; two processes share every step."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "blip"]
    command += ["capfilt", "run", "--config", "capfilt_phantoms", "--output_dir", "out"]
    names = ["--set", "shared=pretrain_demo", "--set", "pretrain=configs/pretrain_demo.yaml"]
    done = subprocess.run(
        [*command, *small_rounds(tiny_checkpoint, phantoms), *names],
        cwd=tmp_path, env=script_env({"PYTHONPATH": str(ROOT)}), capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    place = tmp_path / "out" / "round1"
    assert (place / "shared" / "done.json").is_file() and (place / "model" / "checkpoints" / "latest").exists()
    assert len(list((place / "scored").glob("shard-*.jsonl"))) == 3
    assert done.stdout.count("done: ") == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rounds": 2, "pretrain": "", "start": "x"}, "set pretrain"),
        ({"pretrain": ""}, "nothing to start from"),
        ({"web_file": []}, "web_file"),
        ({"treshold": 0.4}, "threshold"),
    ],
)
def test_rounds_that_cannot_be(options: dict, message: str) -> None:
    words = [f"{key}={json.dumps(value)}" for key, value in options.items()]
    with pytest.raises(ConfigError, match=message):
        load_config(ROOT / "configs" / "capfilt_phantoms.yaml", CapFiltConfig, words)


# ---- the verbs -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_verbs_in_two_processes(tiny_checkpoint: Path, phantoms: Path, tmp_path: Path) -> None:
    """Two processes write what one writes; merging is the work of one of them."""
    data = phantoms / "captions.json"
    steps = [
        ["filter", "--checkpoint", tiny_checkpoint, "--data", data, "--shard_size", 10, "--device", "cpu"],
        ["merge", "--scored", tmp_path / "two" / "filter", "--fraction", 0.5],
    ]
    for step in steps:
        name = step[0] + ("" if step[0] == "filter" else ".jsonl")
        for done in run_in_two("blip", "capfilt", *step, "--out", tmp_path / "two" / name):
            assert done.returncode == 0, done.stderr[-3000:]
        assert run_capfilt(*step, "--out", tmp_path / "one" / name)[0] == 0
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_verbs_from_captions_to_a_page(tiny_checkpoint: Path, phantoms: Path, tmp_path: Path) -> None:
    data, syn, out = phantoms / "captions.json", tmp_path / "syn", tmp_path / "scored"
    options = ["--checkpoint", tiny_checkpoint, "--shard_size", 16]
    assert run_capfilt("caption", "--data", data, "--out", syn, "--max_new_tokens", 4, *options)[0] == 0
    code, said = run_capfilt("filter", "--data", data, "--data", syn, "--out", out, *options)
    assert code == 0 and "texts of 48 images" in said, said
    assert run_capfilt("merge", "--scored", out, "--out", tmp_path / "boot.json", "--fraction", 0.5)[0] == 0
    lines = list(read_lines(out))
    lines[0]["text"] = "<script>alert(1)</script>"
    write_jsonl(out / "shard-00000.jsonl", lines[:30], end=True)
    shown = ["--fraction", 0.5, "--examples", 5]
    code, said = run_capfilt("report", "--scored", out, "--out", tmp_path / "page.html", *shown)
    page = (tmp_path / "page.html").read_text()
    assert code == 0 and "<script>alert" not in page and "http" not in page.replace("http-equiv", ""), said
    assert page.count("<article") == 20 and page.count("data:image/jpeg") == 20 and page.count("<svg") == 4
    code, said = run_capfilt("caption", "--data", data, "--out", syn, "--max_new_tokens", 5, *options)
    assert code != 0 and "begun with max_new_tokens 4, now it is 5" in said
