"""`image_pipeline`: which one a run takes, that a resumed run keeps its own, and the same samples with any workers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.fine_tuning import assert_same_run, configure, train

from blip.config import PretrainConfig
from blip.data.loader import LoaderOptions, make_loader
from blip.data.order import EpochOrder
from blip.data.pairs import CaptionEncoder, PairDataset, read_pairs
from blip.data.training_images import FastImages, WholeImages
from blip.tasks.data_options import training_images, with_pipeline_of_run
from blip.tokenizer import load_tokenizer
from blip.train.checkpoint import complete_checkpoints

CPU = torch.device("cpu")


def saved(folder: Path, text: str) -> Path:
    """The checkpoint of a run whose `config.yaml` has this text."""
    checkpoint = folder / "checkpoints" / "step-00000001"
    checkpoint.mkdir(parents=True)
    (folder / "config.yaml").write_text(text)
    return checkpoint


@pytest.mark.parametrize(
    ("text", "given", "expected"),
    [
        ("lr: 0.1\n", {}, "pil"),  # a run of an earlier version
        ("image_pipeline: fast\n", {}, "fast"),
        ("image_pipeline: pil\n", {}, "pil"),
        ("lr: 0.1\n", {"image_pipeline": "fast"}, "fast"),
        ("image_pipeline: fast\n", {"image_pipeline": "pil"}, "pil"),
    ],
)
def test_a_run_keeps_its_pipeline_unless_another_is_set(
    text: str, given: dict[str, Any], expected: str, tmp_path: Path
) -> None:
    config = PretrainConfig(**given)
    assert with_pipeline_of_run(config, saved(tmp_path, text)).image_pipeline == expected
    assert with_pipeline_of_run(config, None).image_pipeline == given.get("image_pipeline", "fast"), "a new run"


def test_the_pipeline_of_a_configuration() -> None:
    given: dict[str, Any] = {"image_size": 40, "crop_scale": (0.3, 0.9), "randaugment": (3, 7), "max_image_mb": 5}
    fast = training_images(PretrainConfig(**given, horizontal_flip=True), CPU)
    assert isinstance(fast, FastImages) and fast.augment_here
    assert (fast.image_size, fast.crop_scale, fast.horizontal_flip) == (40, (0.3, 0.9), True)
    assert (fast.randaugment.count, fast.randaugment.magnitude, fast.limits.max_bytes) == (3, 7, 5 << 20)
    on_gpu = training_images(PretrainConfig(**given), torch.device("cuda"))
    assert isinstance(on_gpu, FastImages) and not on_gpu.augment_here
    whole = training_images(PretrainConfig(**given, image_pipeline="pil"), torch.device("cuda"))
    assert isinstance(whole, WholeImages) and whole.limits.max_bytes == 5 << 20


@pytest.mark.usefixtures("no_java_nor_peak", "tiny_config")
def test_a_run_of_an_earlier_version_goes_on_as_it_began(
    phantoms: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    given = ("caption", phantoms, tmp_path, "max_steps=3", "randaugment=[2, 5]", "val_file=[]", "test_file=[]")
    train("caption", configure(*given, "image_pipeline=pil", "keep_checkpoints=9"), tmp_path / "whole")
    train("caption", configure(*given, "image_pipeline=pil", "keep_checkpoints=9"), tmp_path / "stopped")
    for later in complete_checkpoints(tmp_path / "stopped")[1:]:  # as if killed in step 2
        (later / "training.pt").unlink()
        later.rename(tmp_path / "stopped" / later.name)
    file = tmp_path / "stopped" / "config.yaml"
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(line for line in lines if not line.startswith("image_pipeline")))
    assert len(file.read_text().splitlines()) == len(lines) - 1
    train("caption", configure(*given, "keep_checkpoints=9"), tmp_path / "stopped", "auto")
    assert_same_run(tmp_path / "whole", tmp_path / "stopped")
    assert "image_pipeline: pil" in file.read_text() and "image_pipeline" not in capsys.readouterr().out


@pytest.mark.usefixtures("tiny_config")
@pytest.mark.parametrize("augment_here", [True, False])
def test_samples_depend_neither_on_workers_nor_on_the_start(phantoms: Path, augment_here: bool) -> None:
    pairs, order = read_pairs([str(phantoms / "captions.json")]), EpochOrder(24, 0)
    encode = CaptionEncoder(load_tokenizer(str(phantoms / "tokenizer.json")), 12)
    images = FastImages(24, augment_here=augment_here)

    def batches(start: tuple[int, int], workers: int, batch_size: int) -> Callable[[], Any]:
        data = PairDataset(pairs, order, encode, transform=images, seed=5)
        loader = make_loader(data, order, batch_size, start=start, options=LoaderOptions(workers))
        return lambda: next(loader)

    expected: dict[tuple[int, int], Any] = {}
    plain = batches((0, 0), 0, 4)
    for epoch in range(2):
        for _ in range(6):
            one = plain()
            for row, index in enumerate(one.indices):
                expected[epoch, index] = one.images[row], one.operations[row]
    for start, workers, size in (((0, 2), 2, 4), ((1, 1), 3, 4), ((0, 0), 1, 8)):
        following = batches(start, workers, size)
        for _ in range(24 // size - start[1]):
            one = following()
            for row, index in enumerate(one.indices):
                pixels, operations = expected[start[0], index]
                assert torch.equal(one.images[row], pixels) and one.operations[row] == operations
    assert not torch.equal(expected[0, 3][0], expected[1, 3][0]), "another epoch, another crop"
