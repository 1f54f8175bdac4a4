"""Folders outside the project, the fixtures that several rooms share, and the order of the files."""

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from helpers.running import ROOT
from helpers.tiny import TINY, keep_padding

import blip
from blip.hardware.precision import tf32
from blip.inference.predictor import Predictor

# numbers are compared with those of the CPU, and `blip.load` takes a GPU if there is one
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
torch.set_num_threads(1)  # the models are tiny: threads would wait for each other more than they work


def _folder(variable: str, default: str) -> Path:
    path = Path(os.environ.get(variable) or ROOT / ".." / "shared" / default).resolve()
    if not path.is_dir():
        pytest.skip(f"{path} is absent; set {variable} to the folder to run this test")
    return path


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests come first, so that two processes end at about the same time."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_collection_finish() -> None:
    """What is imported and collected stays: Python need not go through it again whenever it collects garbage."""
    gc.freeze()


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """`blip serve`, where a test ran it in this process, has set another number: sums would differ in their last bit
    from those of other processes, and threads of two processes on the same cores mostly wait for each other."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def exact_products() -> Iterator[None]:
    """On a GPU, torch computes convolutions in TF32 unless told otherwise, and numbers would agree to three digits."""
    with tf32(False):
        yield


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """Numbers computed by the published code; not part of the project."""
    return _folder("BLIP_GOLDEN", "golden")


@pytest.fixture(scope="session")
def golden2_dir() -> Path:
    """Numbers computed by the published code of BLIP-2; not part of the project."""
    return _folder("BLIP_GOLDEN2", "golden_blip2")


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Real images, captions and questions; not part of the project."""
    return _folder("BLIP_DATA", "data")


@pytest.fixture(scope="module")
def no_java_nor_peak() -> Iterator[None]:
    """Captions are scored without METEOR, which needs Java, and the speed of this machine is not measured."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("blip.train.run.measure_peak", lambda *_: 0.0)
        patch.setenv("PATH", "")
        yield


@pytest.fixture(params=[True, False], ids=["packed", "padded"])
def packed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether models leave padding out of memory, as they do; a test runs once more with it in memory."""
    if not request.param:
        keep_padding(monkeypatch)
    return request.param


@pytest.fixture(autouse=True)
def _same_seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def phantoms(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 48 phantoms of up to two lesions: captions.json and images."""
    from blip.data.phantoms import write_phantoms

    return write_phantoms(tmp_path_factory.mktemp("phantoms"), count=48, seed=3, max_lesions=2).parent


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
    from blip.tokenizer import load_tokenizer

    folder = tiny_config.parent / "tiny_checkpoint"
    config = load_config(tiny_config, PretrainConfig)
    tokenizer = load_tokenizer(config.tokenizer)
    torch.manual_seed(0)
    model, _, _ = start.build_pretrain(config, tokenizer.size, tokenizer.specials, device=torch.device("cpu"))
    save_weights(folder, unique_state(model), start.describe_pretraining(config, model))
    tokenizer.save(folder / "tokenizer.json")
    return folder


@pytest.fixture(scope="module")
def model(tiny_checkpoint: Path) -> Predictor:
    """The predictor of `tiny_checkpoint`."""
    return blip.load(tiny_checkpoint)


@pytest.fixture(scope="module")
def pictures(phantoms: Path) -> list[Path]:
    """The images of three phantoms."""
    return sorted((phantoms / "images").glob("*.png"))[:3]
