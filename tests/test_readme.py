"""Every command of the README and of the configurations' headers runs, with small sizes, local paths and few steps."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, TINY, script_env

# what stands in a command (a pattern) -> what the test puts there. {root} is the project, {here} a folder that holds
# captions.json (phantoms), vocab.txt (their words) and model_base.pth (a tiny model in the released format)
SUBSTITUTES = {
    r"^python ": f"{sys.executable} ",
    r"^torchrun ": f"{sys.executable} -m torch.distributed.run ",
    r"^blip ": f"{sys.executable} -m blip ",
    r"--nproc_per_node=\d+": "--nproc_per_node=1",
    r"--nnodes=\d+": "--nnodes=1",
    r"HOST:29500": "localhost:0",
    r" pretrain\.py": " {root}/pretrain.py",
    r" configs/": " {root}/configs/",
    r"--count 1000": "--count 10",
    r"runs/(base|large|tiny|medical)\b": "{here}/{fresh}",  # a new folder each; --resume finds the old one
    r"(blip convert .*)": r"\1 --image_heads 2 --text_heads 2",  # the tiny model's
    r"(.*/pretrain\.py .*)": r"\1 {sizes}",  # of conftest.TINY, two steps
}
SIZES = {**TINY, "vision_init": "", "text_init": "", "accumulation": 1, "max_steps": 2, "drop_path": 0.0}
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
def place(tmp_path_factory: pytest.TempPathFactory, tiny_config: Path) -> Path:
    """A folder with everything that the commands name."""
    import torch

    from blip import build, convert
    from blip.config import PretrainConfig, load_config
    from blip.rows import Specials
    from blip.tokenizer import load_tokenizer
    from blip.weights import save_weights, unique_state

    folder = tmp_path_factory.mktemp("readme")
    phantoms = tiny_config.parent
    (folder / "captions.json").write_text((phantoms / "captions.json").read_text())
    (folder / "images").symlink_to(phantoms / "images")
    words = sorted(load_tokenizer(str(phantoms / "tokenizer.json"))._backend.get_vocab().items(), key=lambda x: x[1])
    (folder / "vocab.txt").write_text("".join(f"{word}\n" for word, _ in words))
    torch.manual_seed(0)
    config = load_config(tiny_config, PretrainConfig)
    tokenizer = load_tokenizer(str(folder / "vocab.txt"))
    specials = Specials(tokenizer.pad_id, tokenizer.enc_id, tokenizer.dec_id)
    model, _, _ = build.build_pretrain(config, tokenizer.size, specials, torch.device("cpu"))
    info = build.describe(config, model)
    convert.write(folder / "model_base.pth", unique_state(model), info, to="salesforce")
    latest = folder / "runs" / "demo" / "run" / "checkpoints" / "latest"
    save_weights(latest, unique_state(model), info)
    tokenizer.save(latest / "tokenizer.json")
    return folder


def localised(command: str, here: Path, fresh: str) -> str:
    """The command as run here."""
    sizes = {**SIZES, **{key: value for key, value in GIVEN.items() if f"{key}=" not in command}}
    options = " ".join(f"--set {shlex.quote(f'{key}={value}')}" for key, value in sizes.items())
    for pattern, substitute in SUBSTITUTES.items():
        command = re.sub(pattern, substitute, command)
    for name, value in {"sizes": options, "root": ROOT, "here": here, "fresh": fresh}.items():
        command = command.replace(f"{{{name}}}", str(value))
    return command


@pytest.mark.slow
@pytest.mark.parametrize("command", [c for c in COMMANDS if not c.startswith("make ")])
def test_command(command: str, place: Path, tmp_path: Path) -> None:
    words = shlex.split(localised(command, place, fresh=tmp_path.name))
    done = subprocess.run(words, cwd=place, env=script_env(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"


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
