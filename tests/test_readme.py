"""Every command of the README and of the configurations' headers runs, with small sizes, local paths and few steps."""

import json
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from bad_finetune_cases import answerer
from conftest import ROOT, TINY, script_env
from fine_tuning import SIZES as OWN_SIZES
from fine_tuning import write_part
from PIL import Image
from pmc_server import Library, Server

# what stands in a command (a pattern) -> what the test puts there. {root} is the project, {here} a folder that holds
# captions.json, questions.json and statements.json (phantoms), vocab.txt (their words), model_base.pth (a tiny model in
# the released format), and what earlier commands leave: the demo's run, a VQA model in runs/vqa_phantoms, runs/vqa_rad
SUBSTITUTES = {
    r"^torchrun ": f"{sys.executable} -m torch.distributed.run ",
    r"--nproc_per_node=\d+": "--nproc_per_node=1",
    r"--nnodes=\d+": "--nnodes=1",
    r"HOST:29500": "localhost:0",
    r" (pretrain|train_\w+|run_capfilt)\.py": r" {root}/\1.py",
    r" configs/": " {root}/configs/",
    r"--count \d+": "--count 12",
    r"data/vqa_rad --dataset vqa_rad": "questions.json",
    r"--output_dir runs/(?!small|vqa_rad --evaluate)\S+": "--output_dir {here}/{fresh}",  # --resume finds the old one
    r"(blip convert .*)": r"\1 --image_heads 2 --text_heads 2",  # the tiny model's
    r"(.*/pretrain\.py .*)": r"\1 {sizes}",  # of conftest.TINY, two steps
    r"(.*/run_capfilt\.py .*)": r"\1 {capfilt}",  # two steps of each training
    r"(.*/train_\w+\.py .*--(?:init_from|evaluate).*)": r"\1 {tuned}",  # with the sizes of the checkpoint
    r"(.*/train_\w+\.py (?!.*--(?:init_from|evaluate)).*)": r"\1 {own_sizes} {tuned}",
    r"(.*/train_.* --init_from \S+\.pth.*)": r"\1 --set image_heads=2 --set text_heads=2",
    r"(.*/train_retrieval.*)": r"\1 {captions} --set queue_size=20",
    r"(.*/train_caption.*)": r"\1 {captions} --set max_new_tokens=6",
    r"(.*/train_vqa.*)": r"\1 {questions} --set max_answer_tokens=8 --set max_new_tokens=4",
    r"(.*/train_nlvr.*)": r"\1 {statements}",
    r"(blip pubmed search .*)": r"\1 --eutils {server}",
    r"(blip pubmed fetch .*)": r"\1 --bucket {server} --rate 100",
    r"(blip pubmed run .*)": r"\1 {pubmed}",
    r" \.\./vqa_rad/": " images",
}
STEPS = {"accumulation": 1, "max_steps": 2, "drop_path": 0.0}
SIZES = {**TINY, **STEPS, "vision_init": "", "text_init": "", "val_file": "[]"}
TUNED = {**TINY, **STEPS, "dataset": "json", "image_root": ""}
for _key in (*OWN_SIZES, "queue_size"):
    del TUNED[_key]
DEMO = "{here}/runs/demo/run/checkpoints/latest"
CAPFILT = {
    "web_file": "[{here}/captions.json]",
    "human_file": "[{here}/captions.json]",
    "start": DEMO,
    "pretrain": "{root}/configs/pretrain_demo.yaml",
    "captioner": "{root}/configs/caption_phantoms.yaml",
    "filter": "{root}/configs/retrieval_phantoms.yaml",
    "pretrain_set": {**SIZES, "tokenizer": f"{DEMO}/tokenizer.json"},
    "captioner_set": TUNED,
    "filter_set": {**TUNED, "queue_size": 20},
    "fraction": 0.5,
    "shard_size": 20,
    "max_new_tokens": 4,
    "min_new_tokens": 0,
    "precision": "fp32",
}
PUBMED = {"email": "me@lab.org", "eutils": "{server}", "bucket": "{server}", "rate": 100, "workers": 1, "min_side": 32}
GIVEN = {"tokenizer": "{here}/vocab.txt", "train_file": "[{here}/captions.json]"}  # unless the command names them

README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```bash\n(.*?)```", README, flags=re.DOTALL)
HEADERS = {
    path.name: re.findall(r"^#   ((?:python|torchrun|blip|make) .*)$", path.read_text(), flags=re.MULTILINE)
    for path in sorted((ROOT / "configs").glob("*.yaml"))
}


def readme_commands() -> list[str]:
    lines = [line for block in BLOCKS if not block.startswith("#!") for line in block.splitlines()]
    return [line.split("  #")[0].split("   #")[0].strip() for line in lines if line.strip()]


COMMANDS = [*readme_commands(), *(command for commands in HEADERS.values() for command in commands)]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, phantoms: Path, tiny_checkpoint: Path) -> Path:
    """A folder with everything that the commands name."""
    from blip.checkpoints import convert
    from blip.tokenizer import load_tokenizer

    folder = tmp_path_factory.mktemp("readme")
    shutil.copy(phantoms / "captions.json", folder)
    (folder / "images").symlink_to(phantoms / "images")
    Image.open(phantoms / "images" / "000000.png").save(folder / "image.png")
    write_part(phantoms, "nlvr", 0, 16, folder / "statements.json")
    questions = json.loads(write_part(phantoms, "vqa", 0, 16, folder / "questions.json").read_text())
    for question in questions:
        question["answer"] = 10 * [question["answer"]]  # as in VQA v2, whose score needs ten
    (folder / "questions.json").write_text(json.dumps(questions))
    tokenizer = load_tokenizer(str(tiny_checkpoint / "tokenizer.json"))
    (folder / "vocab.txt").write_text("".join(f"{tokenizer.token(i)}\n" for i in range(tokenizer.size)))
    convert.write(folder / "model_base.pth", *convert.read(tiny_checkpoint), to="salesforce")
    for run in ("demo", "named"):
        shutil.copytree(tiny_checkpoint, folder / "runs" / run / "run" / "checkpoints" / "latest")
    model = answerer(folder, tiny_checkpoint)
    about = {**json.loads((model / "model.json").read_text()), "answers": ["yes", "no", "chest"]}
    (model / "model.json").write_text(json.dumps(about))
    for run in ("vqa_phantoms", "vqa_rad"):
        shutil.copytree(model, folder / "runs" / run / "best")
    return folder


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A PubMed Central of six articles."""
    with Server(Library(6)) as server:
        yield server


def localised(command: str, here: Path, fresh: str, server: str) -> str:
    """The command as run here."""
    files = {
        name: options({f"{split}_file": f"[{{here}}/{name}.json]" for split in ("train", "val", "test")})
        for name in ("captions", "questions", "statements")
    }
    sizes = {**SIZES, **{key: value for key, value in GIVEN.items() if f"{key}=" not in command}}
    own_sizes = options({key: TINY[key] for key in OWN_SIZES})
    for pattern, substitute in SUBSTITUTES.items():
        command = re.sub(pattern, substitute, command)
    capfilt = {key: yaml(value) for key, value in CAPFILT.items() if f"{key}=" not in command}
    values = {
        "sizes": options(sizes),
        "capfilt": options(capfilt),
        "pubmed": options(PUBMED),
        "tuned": options(TUNED),
        "own_sizes": own_sizes,
        **files,
    }
    for name, value in {**values, "root": ROOT, "here": here, "fresh": fresh, "server": server}.items():
        command = command.replace(f"{{{name}}}", str(value))
    return command


def yaml(value: object) -> object:
    """A value of an option that has options of its own."""
    return "{" + ", ".join(f"{k}: {v or repr(v)}" for k, v in value.items()) + "}" if isinstance(value, dict) else value


def options(values: dict) -> str:
    return " ".join(f"--set {shlex.quote(f'{key}={value}')}" for key, value in values.items())


@pytest.mark.slow
@pytest.mark.parametrize("command", [c for c in COMMANDS if not c.startswith("make ")], ids=lambda c: c[:70])
def test_command(
    command: str,
    place: Path,
    server: Server,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture,
) -> None:
    words = shlex.split(localised(command, place, tmp_path.name, server.url))
    if words[0] == sys.executable:  # torchrun
        done = subprocess.run(words, cwd=place, env=script_env(), capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        return
    monkeypatch.chdir(place)
    monkeypatch.setenv("PATH", "")  # no Java
    monkeypatch.setattr("blip.train.run.measure_peak", lambda *_: 0.0)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(sys, "argv", words if words[0] == "blip" else words[1:])
    with pytest.raises(SystemExit) as ended:  # in this process: importing torch takes longer than two steps
        if words[0] == "blip":
            runpy.run_module("blip", run_name="__main__", alter_sys=True)
        else:
            assert words[0] == "python"
            runpy.run_path(words[1], run_name="__main__")
    assert not ended.value.code, f"{command}\n{''.join(capfd.readouterr())[-4000:]}"
    if "train_" in words[1] and "--evaluate" not in words:
        assert (place / tmp_path.name / "checkpoints" / f"step-{STEPS['max_steps']:08d}").is_dir()


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for command in (c for c in COMMANDS if c.startswith("make ")):
        assert re.search(rf"^{command.split()[1]}:", makefile, flags=re.MULTILINE), command


def test_each_configuration_has_a_command_hardware_and_score() -> None:
    for name, commands in HEADERS.items():
        text = (ROOT / "configs" / name).read_text()
        assert commands or "make " in text, f"{name} names no command"
        assert "# Hardware:" in text, name


@pytest.mark.slow
def test_demo(tmp_path: Path) -> None:
    sizes = {**TINY, "max_steps": 2, "num_workers": 0, "vocab_size": 100}
    overrides = [x for key, value in sizes.items() if key != "max_text_tokens" for x in ("--set", f"{key}={value}")]
    command = [sys.executable, "demo/demo.py", "--output_dir", str(tmp_path), "--count", "32", *overrides]
    done = subprocess.run(command, cwd=ROOT, env=script_env(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    for wanted in ("image to text R@1", "exact captions", "match accuracy", str(tmp_path)):
        assert wanted in done.stdout.replace("\n", "")


def test_every_python_file_is_in_the_tree_of_the_readme() -> None:
    tree = README[README.index("## The files") :]
    for path in (ROOT / "blip").rglob("*.py"):
        if path.stem.startswith("__"):
            continue
        name = "convert*.py" if path.stem.startswith("convert") else path.name
        assert name in tree, f"{path.relative_to(ROOT)} is not in the README's tree"
