"""A run on a GPU, without one: no tensor lies on the wrong device, and the CPU does not wait for the GPU.

The numbers of waits are exact. One that is too many is in the test's message with its line: what it reads has to be on
the CPU already, or to be copied early and read late (`hardware/transfers.py`).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
import torch.distributed as dist
from helpers import fine_tuning
from helpers.fake_device import FakeCuda, Wait, fake_cuda
from helpers.silent_log import SilentLog
from torch import Tensor, nn
from torch.nn.parallel import distributed as ddp
from torch.testing._internal.distributed.fake_pg import FakeStore

import blip
from blip.capfilt import steps
from blip.capfilt.candidates import read_candidates
from blip.capfilt.steps import CaptionOptions, ShardOptions
from blip.config import PretrainConfig, load_config
from blip.data.jsonl_shards import read_lines
from blip.evaluation.pretraining import evaluate_pretraining
from blip.hardware.precision import autocast
from blip.inference.predictor import Predictor
from blip.models import losses
from blip.models.decoding import Decoding
from blip.tasks.pretrain import Pretraining
from blip.train import parallel
from blip.train.loop import Loop, LoopOptions
from blip.train.optim import build_optimizer
from blip.train.parallel import data_parallel

pytestmark = pytest.mark.slow

NAMES = ("pretrain", *fine_tuning.TASKS)
# events that a forward pass waits for, by file: the lengths of hard negatives
EVENTS = {"pretrain": ["models/matching.py"], "retrieval": ["models/matching.py"]}
SAMPLES = Decoding(sample=True, top_p=0.9, num_return=2, max_new_tokens=4)
ACCUMULATION = 2
# operations that an optimizer step of ACCUMULATION batches gives the GPU, without those of the backward pass
LAUNCHES = {"pretrain": 2335, "retrieval": 1851, "caption": 909, "vqa": 1485, "nlvr": 1041, "dialogue": 1111}


@dataclass
class Made:
    """A task on the fake GPU."""

    task: Any
    gpu: FakeCuda
    batches: Iterator[Any] = field(init=False)

    def __post_init__(self) -> None:
        self.batches = self.task.batches(0)

    def forward(self) -> None:
        """The training step of one batch, without the backward pass."""
        batch = next(self.batches)
        self.gpu.clear()
        with autocast(self.gpu.device, "bf16"):
            self.task.step(batch, 0)

    def update(self, clip_norm: float | None = 1.0) -> None:
        """An optimizer step as the loop makes it, the second one: the first makes the optimizer's state."""
        options = LoopOptions(9, ACCUMULATION, clip_norm, precision="bf16", log_every=100, save_every_minutes=5)
        loop = Loop(
            self.task.parallel, build_optimizer(self.task.model, 0.1, 0.05), lambda _: 0.1, options=options,
            log=SilentLog(), save=lambda *_: None,  # type: ignore[arg-type]
        )  # fmt: skip
        for _ in range(2):
            self.gpu.clear()
            loop._one_step(self.batches, self.task.step, self.task.after_update)
            loop._end_step(lambda _: None, stop=False)


Make = Callable[..., Made]


@pytest.fixture
def gpu() -> Iterator[FakeCuda]:
    with fake_cuda() as one:
        yield one


@pytest.fixture
def make(gpu: FakeCuda, tiny_config: Path, phantoms: Path, tmp_path: Path) -> Make:
    """make(name, *options): a task of that name."""

    def made(name: str, *options: str) -> Made:
        task: Any
        if name == "pretrain":
            config = load_config(tiny_config, PretrainConfig, list(options))
            task = Pretraining(config, tmp_path, None, device=gpu.device)
        else:
            settings = fine_tuning.configure(name, phantoms, tmp_path, *options)
            task = fine_tuning.TASKS[name][2](settings, None, tmp_path, resume=None, device=gpu.device)
        return Made(task, gpu)

    return made


def files(waits: list[Wait]) -> list[str]:
    return [wait.file for wait in waits]


def assert_no_waits(gpu: FakeCuda, events: list[str]) -> None:
    """Nothing waits for all of the device's work; some places wait for an event, after which it goes on."""
    assert gpu.waits == []
    assert gpu.pageable == []
    assert files(gpu.events) == events


# ---- training --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_forward_pass_waits_for_nothing(name: str, make: Make, gpu: FakeCuda) -> None:
    make(name).forward()
    assert_no_waits(gpu, EVENTS.get(name, []))
    assert gpu.launches


def test_dropping_patches_waits_for_nothing(make: Make, gpu: FakeCuda) -> None:
    made = make("pretrain", "patch_dropout=0.5", "full_patches_epochs=0", "epochs=9")
    made.forward()
    assert made.task.model.image_encoder.patch_dropout.share == 0.5
    assert_no_waits(gpu, EVENTS["pretrain"])


@pytest.mark.parametrize("name", NAMES)
def test_an_optimizer_step_waits_once(name: str, make: Make, gpu: FakeCuda) -> None:
    """For the verdict on the step, when the update has been given to the GPU."""
    make(name).update()
    assert_no_waits(gpu, [*ACCUMULATION * EVENTS.get(name, []), "train/verdict.py"])


@pytest.mark.parametrize("name", NAMES)
def test_launches(name: str, make: Make, gpu: FakeCuda) -> None:
    """Where this fails after a change that needs other operations, the number above is to be replaced."""
    make(name).update()
    assert sum(gpu.launches.values()) == pytest.approx(LAUNCHES[name], rel=0.05)


@pytest.mark.parametrize("name", NAMES)
def test_batches_are_in_page_locked_memory(name: str, make: Make, gpu: FakeCuda) -> None:
    batch = next(make(name).batches)
    images = batch.images  # on the device already: RandAugment is done there
    assert images.is_cuda and gpu.pageable == []
    assert all(gpu.is_pinned(x) for x in vars(batch).values() if isinstance(x, Tensor) and x is not images)


@pytest.mark.parametrize(("name", "given"), [("pretrain", 100), ("retrieval", 8)])
def test_the_gpu_has_work_while_the_cpu_waits_for_hard_negatives(
    name: str, given: int, make: Make, gpu: FakeCuda
) -> None:
    """In pre-training the decoder's pass, in retrieval the projection of keys."""
    make(name).forward()
    assert [wait.given >= given for wait in gpu.events] == [True]


def test_the_gpu_has_the_update_while_the_cpu_waits_for_the_verdict(make: Make, gpu: FakeCuda) -> None:
    make("caption").update()
    (wait,) = gpu.events
    assert wait.given >= 2 and gpu.launches["_fused_adamw_"] == 1


def test_gradients_are_multiplied_only_where_they_are_clipped(make: Make, gpu: FakeCuda) -> None:
    made = make("caption")
    made.update()
    clipped = gpu.launches["_foreach_mul_"] + gpu.launches["mul_"]
    made.update(clip_norm=None)
    assert gpu.launches["_foreach_mul_"] + gpu.launches["mul_"] < clipped


# ---- several processes -----------------------------------------------------------------------------------------------


def wrapped(model: nn.Module, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> nn.Module:
    """The model as `data_parallel` wraps it in one process of two; what exchanges gradients is left out."""
    monkeypatch.setattr(parallel, "world_size", lambda: 2)
    monkeypatch.setattr(ddp, "_verify_param_shape_across_processes", lambda *_: None)
    monkeypatch.setattr(ddp, "_sync_module_states", lambda *_, **__: None)
    monkeypatch.setattr(ddp.DistributedDataParallel, "_ddp_init_helper", lambda *_, **__: None)
    dist.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    try:
        one = data_parallel(model, device)
    finally:
        dist.destroy_process_group()
    assert isinstance(one, ddp.DistributedDataParallel)
    one.reducer, one.logger = MagicMock(), MagicMock()
    one.reducer._rebuild_buckets.return_value = False
    return one


@pytest.mark.parametrize("name", NAMES)
def test_ddp_copies_no_argument(name: str, make: Make, gpu: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lengths stay on the CPU: on the GPU, the layout of texts would wait for them."""
    made = make(name)
    made.task.parallel = wrapped(made.task.model, gpu.device, monkeypatch)
    made.forward()
    assert_no_waits(gpu, EVENTS.get(name, []))
    made.update()
    assert_no_waits(gpu, [*ACCUMULATION * EVENTS.get(name, []), "train/verdict.py"])


# ---- evaluation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_an_evaluation_finds_every_tensor_on_its_device(
    name: str, make: Make, gpu: FakeCuda, no_java_nor_peak: None
) -> None:
    """Re-ranking, captions by beams, ranked answers, judgements; in the run's precision."""
    made, gpu.number = make(name, "precision=bf16"), 1
    formats: set[torch.dtype] = set()
    if name != "pretrain":
        layer = made.task.model.image_encoder.blocks[0].mlp[0]
        layer.register_forward_hook(lambda _, __, out: formats.add(out.dtype))
        assert made.task.scores("val") and formats == {torch.bfloat16}
        return
    with autocast(gpu.device, "bf16"):
        assert evaluate_pretraining(made.task.model, made.task.val, gpu.device).metrics
        assert made.task.captions(torch.empty(2, 3, 32, 32, device=gpu.device))


@pytest.fixture
def model(gpu: FakeCuda, tiny_checkpoint: Path) -> Predictor:
    """The predictor of `tiny_checkpoint` on the fake GPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: True)
        patch.setattr(torch.cuda, "device_count", lambda: 1)
        return blip.load(tiny_checkpoint, device="cuda")


def test_inference_finds_every_tensor_on_its_device(model: Predictor, pictures: list[Path]) -> None:
    texts = ["chest", "a dark square", "head"]
    assert len(model.caption(pictures)) == len(model.write(pictures, None, SAMPLES)) == 3
    assert model.match_logits(pictures, texts).is_cuda and model.itc_score(pictures, texts).is_cuda
    assert model.match_all(pictures, model.encode_text(texts), texts)[1].shape == (3, 3)


def test_traces_find_every_tensor_on_its_device(model: Predictor, pictures: list[Path]) -> None:
    """Maps need a backward pass, which fake tensors of a GPU cannot do."""
    with blip.trace(model, "text.*.cross.*") as t:
        model.match_logits(pictures[:1], ["chest"])
    assert t.pattern("text.0.cross").is_cuda


def test_capfilt_finds_every_tensor_on_its_device(model: Predictor, phantoms: Path, tmp_path: Path) -> None:
    candidates = read_candidates([str(phantoms / "captions.json")])
    options, shards = CaptionOptions(SAMPLES), ShardOptions(batch_size=16)
    steps.caption(model, candidates, tmp_path / "a", model_fingerprint="m", options=options, shards=shards)
    steps.score(model, candidates, tmp_path / "b", model_fingerprint="m", shards=shards)
    assert list(read_lines(tmp_path / "b"))


# ---- mistakes that these tests find ----------------------------------------------------------------------------------


def on_the_cpu(logits: Tensor, is_match: Tensor, *rest: Any) -> Tensor:
    return PLAIN["match"](logits, is_match.cpu(), *rest)


def reads_a_number(logits: Tensor, targets: Tensor, *rest: Any) -> Tensor:
    loss = PLAIN["language_model"](logits, targets, *rest)
    return loss if loss.item() < 100 else loss / 2


def sends_a_number(similarity: Tensor, *rest: Any, **named: Any) -> Tensor:
    scale = torch.tensor(1.0, device=similarity.device)
    return PLAIN["contrast"](similarity * scale, *rest, **named)


PLAIN = {name: getattr(losses, name) for name in ("match", "language_model", "contrast")}
MUTANTS = {
    "match": (on_the_cpu, RuntimeError, "device"),
    "language_model": (reads_a_number, AssertionError, "a number is read.*models/pretrain.py"),
    "contrast": (sends_a_number, AssertionError, "a copy from the CPU.*models/momentum.py"),
}


@pytest.mark.parametrize("changed", MUTANTS)
def test_a_mistake_is_found(changed: str, make: Make, gpu: FakeCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    mistake, error, message = MUTANTS[changed]
    monkeypatch.setattr(losses, changed, mistake)
    with pytest.raises(error, match=message):
        make("pretrain").forward()
        assert_no_waits(gpu, EVENTS["pretrain"])
