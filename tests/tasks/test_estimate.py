"""The estimate for GPUs that are not here, against figures of another method: torch's CUDA build ran whole steps over a
library whose kernels do nothing but are counted, and the times of its kernels on an H100 were simulated one by one.

ViT-B and ViT-L, bf16, captions of 10 to 30 tokens, 20 on average, one micro-batch and one GPU.
"""

from functools import lru_cache, partial

import pytest
import torch
from torch import Tensor

from blip.config import ConfigError, PretrainConfig
from blip.hardware.cards import CARDS, Card
from blip.hardware.counting import ATTENTION
from blip.hardware.roofline import busy_seconds, host_seconds
from blip.network.qformer import QFormerConfig
from blip.network.qformer_flops import blip2_step
from blip.network.vit import named_vit
from blip.tasks import blip2_rehearsal
from blip.tasks.blip2 import Stage1
from blip.tasks.blip2_config import Blip2Config
from blip.tasks.counted import full_lengths
from blip.tasks.dry_run import trained_on_meta
from blip.tasks.estimate import GIB, Plan, memory_of_batches, plan

pytestmark = pytest.mark.slow

# GiB at most, of batches of 64, 128 and 256, without recomputation and with it
PEAK = {
    ("base", 224): ((13.2, 21.9, 39.1), (6.3, 8.2, 12.0)),
    ("base", 384): ((23.0, 41.3, 77.7), (9.1, 13.8, 23.3)),
    ("large", 224): ((23.5, 38.7, 69.0), (10.7, 13.2, 18.2)),
    ("large", 384): ((45.8, 83.2, 157.9), (14.6, 21.5, 35.3)),
}
AT_REST = {"base": 3.8, "large": 7.2}
GRADIENTS = {"base": (1.0, 1010e6), "large": (1.8, 1899e6)}  # GiB that several processes add, bytes that they exchange
# batch: launches, TFLOP, and in ms: the CPU, the GPU, a step with waits of those days, a step without waits
STEPS = {
    ("base", 64): (6580, 13.9, 46, 56, 71, 61),
    ("base", 128): (6580, 27.8, 42, 105, 117, 105),
    ("base", 256): (6648, 55.5, 47, 206, 209, 206),
    ("base", 375): (6757, 81.0, 42, 301, 305, 301),
    ("large", 75): (7536, 42.8, 45, 133, 148, 133),
}


def lengths(count: int) -> Tensor:
    texts = (20 + 5 * torch.randn(count, generator=torch.Generator().manual_seed(0))).round().long()
    return texts.clamp(10, 30)


def config(vit: str = "base", **values: object) -> PretrainConfig:
    words = {"tokenizer": "train", "vocab_size": 30522, "batch_size": 64, "precision": "bf16"}
    return PretrainConfig(vit=vit, **{**words, **values})  # type: ignore[arg-type]


@lru_cache
def planned(vit: str, batch: int, kind: str = "none", pixels: int = 224) -> Plan:
    options = config(vit, batch_size=batch, activation_checkpointing=kind, image_size=pixels)
    texts = lengths(batch)
    return plan(lambda changed: trained_on_meta(changed, texts), options, "h100")


@pytest.mark.parametrize(("vit", "pixels"), PEAK)
@pytest.mark.parametrize("kind", ["none", "torch"])
def test_memory(vit: str, pixels: int, kind: str) -> None:
    """A count of 128, and what it says of 64 and 256: a batch adds in proportion."""
    expected = dict(zip((64, 128, 256), PEAK[vit, pixels][kind == "torch"], strict=True))
    counted = planned(vit, 128, kind, pixels).counted
    for batch, peak in expected.items():
        assert (counted.rest + counted.activations * batch / 128) / GIB == pytest.approx(peak, rel=0.1), batch


@pytest.mark.parametrize("batch", [64, 256])
def test_memory_of_other_batches(batch: int) -> None:
    expected = PEAK["base", 224][0][(64, 128, 256).index(batch)]
    assert planned("base", batch).counted.peak / GIB == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize("vit", AT_REST)
def test_memory_at_rest_and_gradients(vit: str) -> None:
    counted = planned(vit, 64).counted
    assert counted.rest / GIB == pytest.approx(AT_REST[vit], rel=0.03) and counted.gradients == 0
    more, exchanged = GRADIENTS[vit]
    assert counted.trained / GIB == pytest.approx(more, rel=0.1)
    assert counted.trained == pytest.approx(exchanged, rel=0.01)


@pytest.mark.parametrize(("vit", "batch"), STEPS)
def test_launches_flops_and_times(vit: str, batch: int) -> None:
    launches, tflop, cpu, gpu, _, without_waits = STEPS[vit, batch]
    found = planned(vit, batch)
    kernels = [*found.counted.forward, *found.counted.backward, *found.counted.update]
    assert found.counted.launches == pytest.approx(launches, rel=0.1)
    assert found.counted.flops / 1e12 == pytest.approx(tflop, rel=0.1)
    assert 1e3 * host_seconds(kernels) == pytest.approx(cpu, rel=0.25)
    assert 1e3 * busy_seconds(kernels, found.card, "bf16") == pytest.approx(gpu, rel=0.1)
    assert 1e3 * found.step_seconds() == pytest.approx(without_waits, rel=0.25)


# ---- what is made of it ----------------------------------------------------------------------------------------------


def small(**values: object) -> PretrainConfig:
    sizes = {"vit": "custom", "vit_width": 64, "vit_depth": 2, "vit_heads": 2, "vit_patch": 16, "image_size": 64}
    texts = {"text_width": 64, "text_layers": 2, "text_heads": 2, "text_hidden": 128, "vocab_size": 1000}
    return config(**{**sizes, **texts, "queue_size": 100, "batch_size": 16, **values})  # type: ignore[arg-type]


def test_options_that_change_the_costs() -> None:
    plain = plan(trained_on_meta, small(), "h100")
    assert not plain.counted.gradients and not plain.collectives()
    for options, world in ((small(accumulation=2), 1), (small(), 8)):
        held = plan(trained_on_meta, options, "h100", world=world).counted.gradients
        assert held == pytest.approx(plain.counted.trained, rel=0.02)
    assert plan(trained_on_meta, small(precision="fp32"), "h100").counted.peak > plain.counted.peak
    assert plan(trained_on_meta, small(clip_norm=1.0), "h100").counted.launches > plain.counted.launches
    fewer = plan(trained_on_meta, small(compile=True), "h100")
    assert fewer.step_seconds() < plain.step_seconds() and len(fewer.batch) < 0.8 * len(plain.batch)
    many = plan(trained_on_meta, small(accumulation=3), "h100", world=64)
    assert [each.name for each in many.collectives()] == ["gradients", "queue"]
    assert many.collectives()[0].bytes == many.counted.trained
    assert many.waiting_seconds() < many.waiting_seconds(network=1.0)
    assert many.samples == 48 and many.images_per_second() < many.samples / many.step_seconds()


def test_the_largest_batch_fits_and_the_next_one_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    counted = plan(trained_on_meta, small(batch_size=100), "h100").counted
    tiny = Card("tiny", counted.peak / GIB / 0.9, 100, 50, 10, 500, 10, 100, "invented")
    monkeypatch.setitem(CARDS, "tiny", tiny)
    planned = plan(trained_on_meta, small(batch_size=104), "tiny")
    assert not planned.fits and plan(trained_on_meta, small(batch_size=100), "tiny").fits
    assert memory_of_batches(trained_on_meta, planned).largest(tiny) == 96
    recomputed = memory_of_batches(trained_on_meta, planned, activation_checkpointing="torch")
    assert recomputed.largest(tiny) > 104
    assert recomputed.largest(Card("less", counted.rest / GIB / 2, 100, 50, 10, 500, 10, 100, "invented")) == 0


def test_first_stage_of_blip2() -> None:
    """Counted operations are those of the formula, by the sizes; the frozen tower is computed forwards alone.

    The backward pass of fused attention computes the scores once more, one product in five: not part of the formula.
    """
    options = Blip2Config(vit="base", batch_size=64, precision="bf16", tokenizer="train", max_text_tokens=32)
    counted = plan(partial(blip2_rehearsal.trained_on_meta, Stage1), options, "a100-80").counted
    texts = full_lengths(64, 32).tolist()
    formula = blip2_step(named_vit("base", 224), QFormerConfig(vocab_size=30521), texts)
    again = sum(kernel.flops for kernel in counted.backward if kernel.kind == ATTENTION) / 5
    assert again > 0 and counted.flops - again == formula.total
    weights = blip2_rehearsal.trained_on_meta(Stage1, options).model.parameters()
    averages = 2 * counted.trained  # of the optimizer; the frozen tower has none
    assert counted.rest == pytest.approx(4 * sum(p.numel() for p in weights) + averages, rel=0.01)


def test_the_second_stage_of_blip2_is_told_apart() -> None:
    with pytest.raises(ConfigError, match="--gpu knows of BLIP-2 the first stage alone"):
        blip2_rehearsal.plan_for(Stage1, Blip2Config(language_model="hub:facebook/opt-2.7b"), "a100-80", 1)
