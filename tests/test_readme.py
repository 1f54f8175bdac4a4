"""Every command of the README and of the configurations' headers runs, with small sizes, local paths and few steps."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, TINY, script_env

# what a test puts in the place of what a person has: path or size in the README -> here
SUBSTITUTES = {
    "captions.json": "the phantoms' captions",
    "vocab.txt": "a vocabulary of 60 words",
    "model_base.pth": "a tiny model in the released format",
    "runs/...": "a temporary folder",
    "--nproc_per_node=8": "1 process",
    "--nnodes=4": "1 machine, the endpoint on it",
    "sizes": "those of conftest.TINY, two steps",
    "make demo, make test": "demo.py with 32 images; nothing, for this is make test",
}

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
    from blip.models.pretrain import Specials
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
    model, _, _ = build.build_pretrain(config, tokenizer.size, specials)
    info = build.describe(config, model)
    convert.write(folder / "model_base.pth", unique_state(model), info, to="salesforce")
    latest = folder / "runs" / "demo" / "run" / "checkpoints" / "latest"
    save_weights(latest, unique_state(model), info)
    tokenizer.save(latest / "tokenizer.json")
    return folder


def localised(command: str, folder: Path) -> list[str]:
    """The command as run here; see SUBSTITUTES."""
    words = shlex.split(command)
    tools = {"python": [sys.executable], "blip": [sys.executable, "-m", "blip"]}
    tools["torchrun"] = [sys.executable, "-m", "torch.distributed.run"]
    words = [*tools[words[0]], *words[1:]]
    words = [re.sub(r"^--nproc_per_node=\d+$", "--nproc_per_node=1", word) for word in words]
    words = [re.sub(r"^--nnodes=\d+$", "--nnodes=1", word).replace("HOST:29500", "localhost:0") for word in words]
    words = [word.replace("pretrain.py", str(ROOT / "pretrain.py")) for word in words]
    words = [re.sub(r"^configs/", f"{ROOT}/configs/", word) for word in words]
    if any(word.endswith("pretrain.py") for word in words):
        small = {**TINY, "vision_init": "", "text_init": "", "accumulation": 1, "max_steps": 2, "drop_path": 0.0}
        if not any("tokenizer=" in word for word in words):
            small["tokenizer"] = folder / "vocab.txt"
        if not any("train_file" in word for word in words):
            small["train_file"] = f"[{folder / 'captions.json'}]"
        words += [x for key, value in small.items() for x in ("--set", f"{key}={value}")]
    if "phantoms" in words:
        words[words.index("1000")] = "10"
    if "convert" in words and any("model_base" in word or "latest" in word for word in words):
        words += ["--image_heads", "2", "--text_heads", "2"]
    return words


def run(command: str, folder: Path) -> None:
    done = subprocess.run(
        localised(command, folder), cwd=folder, env=script_env(), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"


@pytest.mark.slow
@pytest.mark.parametrize("command", [c for c in COMMANDS if not c.startswith("make ")])
def test_command(command: str, place: Path, tmp_path: Path) -> None:
    if "--resume" not in command:  # a fresh output folder each time
        command = command.replace("runs/base", str(tmp_path / "base")).replace("runs/large", str(tmp_path / "large"))
    run(command, place)


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
