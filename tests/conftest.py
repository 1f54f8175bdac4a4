"""Where the tests find what is not part of the project, and what they share."""

import multiprocessing
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

torch.set_num_threads(1)  # the models are tiny: threads would wait for each other more than they work

ROOT = Path(__file__).resolve().parent.parent


def _folder(variable: str, default: str) -> Path:
    path = Path(os.environ.get(variable) or ROOT / ".." / "shared" / default).resolve()
    if not path.is_dir():
        pytest.skip(f"{path} is absent; set {variable} to the folder to run this test")
    return path


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first, so that two processes end at about the same time."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """Numbers computed by the published code; not part of the project."""
    return _folder("BLIP_GOLDEN", "golden")


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Real images, captions and questions; not part of the project."""
    return _folder("BLIP_DATA", "data")


@pytest.fixture(scope="module")
def no_java_nor_peak() -> Iterator[None]:
    """Captions are scored without Java's METEOR, and nobody measures how fast this machine multiplies."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("blip.train.run.measure_peak", lambda *_: 0.0)
        patch.setenv("PATH", "")
        yield


@pytest.fixture(autouse=True)
def _same_seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 48 phantoms of up to two lesions: captions.json and images."""
    from blip.data.phantoms import write_phantoms

    return write_phantoms(tmp_path_factory.mktemp("phantoms"), count=48, seed=3, max_lesions=2).parent


TINY = {  # a model that trains a step in milliseconds
    "image_size": 32,
    "crop_scale": "[0.5, 1.0]",
    "randaugment": "null",
    "max_text_tokens": 32,
    "vit": "custom",
    "vit_width": 32,
    "vit_depth": 2,
    "vit_heads": 2,
    "vit_patch": 16,
    "text_width": 32,
    "text_layers": 2,
    "text_heads": 2,
    "text_hidden": 64,
    "max_positions": 48,
    "embed_dim": 16,
    "queue_size": 20,
    "batch_size": 8,
    "warmup_steps": 4,
    "device": "cpu",
    "precision": "fp32",
    "num_workers": 0,
    "log_every_steps": 1,
}


@pytest.fixture(scope="session")
def tiny_config(phantoms: Path) -> Path:
    """A configuration file of a tiny model on the phantoms, with a tokenizer for them beside it."""
    from blip.data.pairs import read_pairs
    from blip.tokenizer import Tokenizer

    captions = phantoms / "captions.json"
    pairs = read_pairs([str(captions)])
    Tokenizer.train((pairs.captions(i)[0] for i in range(len(pairs))), 120).save(phantoms / "tokenizer.json")
    files = {"tokenizer": phantoms / "tokenizer.json", "train_file": f"[{captions}]", "val_file": f"[{captions}]"}
    path = phantoms / "tiny.yaml"
    path.write_text("".join(f"{key}: {value}\n" for key, value in {**TINY, **files}.items()))
    return path


@pytest.fixture(scope="session")
def tiny_checkpoint(tiny_config: Path) -> Path:
    """A folder of ours with a random pre-training model of `tiny_config` and its tokenizer."""
    from blip.checkpoints.format import save_weights, unique_state
    from blip.config import PretrainConfig, load_config
    from blip.tasks import start
    from blip.tokenizer import Specials, load_tokenizer

    folder = tiny_config.parent / "tiny_checkpoint"
    config = load_config(tiny_config, PretrainConfig)
    tokenizer = load_tokenizer(config.tokenizer)
    specials = Specials(tokenizer.pad_id, tokenizer.enc_id, tokenizer.dec_id)
    torch.manual_seed(0)
    model, _, _ = start.build_pretrain(config, tokenizer.size, specials, torch.device("cpu"))
    save_weights(folder, unique_state(model), start.describe_pretraining(config, model))
    tokenizer.save(folder / "tokenizer.json")
    return folder


def run_script(
    *arguments: str | Path,
    processes: int = 1,
    env: dict | None = None,
    timeout: float = 120,
    script: str = "pretrain.py",
):
    """Runs a script as a user would, alone or under torchrun, from the project's root -> CompletedProcess."""
    return subprocess.run(
        script_command(*arguments, processes=processes, script=script), cwd=ROOT, env=script_env(env), timeout=timeout,
        capture_output=True, text=True,
    )  # fmt: skip


def script_command(*arguments: str | Path, processes: int = 1, script: str = "pretrain.py") -> list[str]:
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"] if processes > 1 else []
    return [sys.executable, *launcher, str(ROOT / script), *map(str, arguments)]


def message_of(call: Callable[[], None], capsys: pytest.CaptureFixture) -> str:
    """The message with which the call ends, after a check that it is one: status 1, no traceback, one paragraph."""
    from blip.command_line import user_errors

    with pytest.raises(SystemExit) as ended, user_errors():
        call()
    shown = capsys.readouterr().err
    assert ended.value.code == 1, shown
    message = shown[shown.rindex("error: ") :]
    assert "Traceback" not in shown
    assert message.strip() and "\n\n" not in message.strip()
    return message


def forked(target: Callable, *arguments: object) -> Any:
    """A process of its own, from a server that has imported torch once, of which nobody else has to."""
    # a fork of this process could not run backward passes
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        [f"blip.tasks.{task}" for task in ("pretrain", "retrieval", "caption", "vqa", "nlvr")]
    )
    return context.Process(target=target, args=arguments)


def script_env(env: dict | None = None) -> dict:
    return {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200", **(env or {})}
