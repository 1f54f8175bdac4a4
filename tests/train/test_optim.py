"""Learning rate schedules, optimizer groups and rates by layer."""

import math

import pytest
import torch
from helpers.silent_log import SilentLog
from helpers.tiny import tiny_text, tiny_vit
from torch import nn

from blip.network.med import TextDecoder, TextEncoder
from blip.network.vit import ViT
from blip.train.loop import Loop, LoopOptions, Step
from blip.train.optim import build_optimizer, layer_scales
from blip.train.parallel import OptionError
from blip.train.schedule import lr_at, scaled_lr


def test_warm_up_counts_optimizer_steps_and_takes_at_most_half() -> None:
    rates = [lr_at(step, 100, 1.0, warmup_steps=10) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * (i + 1) for i in range(10)])
    assert rates[9] == max(rates) == 1.0
    short = [lr_at(step, 20, 1.0, warmup_steps=3000) for step in range(20)]
    assert short.index(max(short)) == 9  # ends within half of the run, though it asked for more
    assert lr_at(0, 1, 1.0, warmup_steps=3000) == 1.0


def test_cosine_falls_to_the_least_rate() -> None:
    rates = [lr_at(step, 110, 1.0, 0.1, 10) for step in range(10, 111)]
    assert rates == sorted(rates, reverse=True)
    assert rates[0] == 1.0
    assert rates[50] == pytest.approx(0.55)
    assert rates[25] == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi / 4)))
    assert rates[-1] == pytest.approx(0.1)


def test_epoch_decay() -> None:
    rate = {step: lr_at(step, 1000, 1.0, 0.5, 0, "epoch_decay", 0.9, 10.5) for step in (0, 10, 11, 21, 22, 999)}
    assert rate == pytest.approx({0: 1, 10: 1, 11: 0.9, 21: 0.81, 22: 0.81, 999: 0.5})


def test_learning_rate_scales_with_the_global_batch_when_asked() -> None:
    assert scaled_lr(3e-4, 1440, 2880) == pytest.approx(1.5e-4)
    assert scaled_lr(3e-4, 1440, None) == 3e-4


def test_optimizer_groups() -> None:
    model = nn.Sequential(nn.Linear(3, 2), nn.LayerNorm(2), nn.Linear(2, 2).requires_grad_(False))
    as_published = build_optimizer(model, 1e-3, 0.05)
    assert [(len(g["params"]), g["weight_decay"]) for g in as_published.param_groups] == [(4, 0.05)]
    split = build_optimizer(model, 1e-3, 0.05, decay_norms_and_biases=False)
    assert [(len(g["params"]), g["weight_decay"]) for g in split.param_groups] == [(1, 0.05), (3, 0.0)]


class Pretraining(nn.Module):
    """The names of a pre-training model, with 3 image layers and 2 text layers."""

    def __init__(self) -> None:
        super().__init__()
        self.image_encoder = ViT(tiny_vit(depth=3))
        self.text_encoder = TextEncoder(tiny_text())
        self.text_decoder = TextDecoder(self.text_encoder.config, self.text_encoder)
        self.image_proj = nn.Linear(24, 4)
        self.temperature = nn.Parameter(torch.tensor(0.07))


BY_HAND = {  # layer_decay 0.5: halved from each layer to the one below
    "image_encoder.cls_token": 1 / 16,
    "image_encoder.positions": 1 / 16,
    "image_encoder.patch_embed.weight": 1 / 16,
    "image_encoder.blocks.0.qkv.weight": 1 / 8,
    "image_encoder.blocks.1.norm1.bias": 1 / 4,
    "image_encoder.blocks.2.mlp.2.weight": 1 / 2,
    "image_encoder.norm.weight": 1,
    "text_encoder.embeddings.words.weight": 1 / 8,
    "text_encoder.embeddings.norm.bias": 1 / 8,
    "text_encoder.layers.0.self_attention.q.weight": 1 / 4,
    "text_encoder.layers.0.cross_attention.k.bias": 1 / 4,
    "text_encoder.layers.1.feed_forward.up.weight": 1 / 2,
    "text_decoder.layers.0.self_attention.norm.weight": 1 / 4,
    "text_decoder.layers.1.self_attention.v.weight": 1 / 2,
    "text_decoder.head.transform.weight": 1,
    "text_decoder.head.bias": 1,
    "image_proj.weight": 1,
    "temperature": 1,
}


@pytest.mark.parametrize("decay_norms_and_biases", [True, False])
def test_layer_decay_by_hand(decay_norms_and_biases: bool) -> None:
    model = Pretraining()
    model.image_encoder.blocks[0].requires_grad_(False)
    optimizer = build_optimizer(model, 0.1, 0.05, decay_norms_and_biases, layer_decay=0.5)
    grouped = [(id(p), group) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(key for key, _ in grouped) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    groups = dict(grouped)
    for name, scale in BY_HAND.items():
        parameter = model.get_parameter(name)
        if not parameter.requires_grad:
            assert id(parameter) not in groups
            continue
        group = groups[id(parameter)]
        assert (name, group["lr_scale"]) == (name, pytest.approx(scale))
        assert group["lr"] == pytest.approx(0.1 * scale)
        decays = decay_norms_and_biases or parameter.ndim >= 2
        assert (name, group["weight_decay"]) == (name, 0.05 if decays else 0.0)


def test_shared_parts_count_for_the_first_that_holds_them() -> None:
    scales = layer_scales(Pretraining(), 0.5)
    assert len(scales) == len(list(Pretraining().parameters()))
    assert not any(name.startswith(("text_decoder.embeddings", "text_decoder.head.words")) for name in scales)
    assert not any("text_decoder" in name and "cross_attention" in name for name in scales)


def test_a_frozen_layer_counts_for_the_depth_of_others() -> None:
    model = Pretraining()
    model.image_encoder.blocks[2].requires_grad_(False)
    assert layer_scales(model, 0.5)["image_encoder.blocks.1.qkv.weight"] == 1 / 4


def test_groups_without_layer_decay_are_those_of_older_checkpoints() -> None:
    model = Pretraining()
    (group,) = build_optimizer(model, 0.1, 0.05).param_groups
    (plain,) = torch.optim.AdamW(model.parameters(), 0.1, weight_decay=0.05, fused=True).param_groups
    assert group.keys() == plain.keys()
    assert [id(p) for p in group["params"]] == [id(p) for p in plain["params"]]
    assert {k: v for k, v in group.items() if k != "params"} == {k: v for k, v in plain.items() if k != "params"}


def train(model: Pretraining, layer_decay: float, steps: int, state: dict | None = None) -> tuple[dict, SilentLog]:
    """Runs the loop with the rates 0.01, 0.005, ... -> optimizer state and log."""
    optimizer, log = build_optimizer(model, 0.1, 0.0, layer_decay=layer_decay), SilentLog()
    if state:
        optimizer.load_state_dict(state)

    def step(batch: None, number: int) -> Step:
        loss = sum((p * (i + 1)).sum() for i, p in enumerate(model.parameters()))
        return Step(loss, {}, 1)  # type: ignore[arg-type]

    start = int(next(iter(state["state"].values()))["step"]) if state else 0
    options = LoopOptions(steps, log_every=1)
    loop = Loop(model, optimizer, lambda step: 0.01 / (step + 1), options, log, lambda *_: None, start)  # type: ignore
    loop.run(iter([None] * steps), step, lambda _: None, lambda _: None)
    return optimizer.state_dict(), log


def test_the_loop_keeps_to_each_layers_rate_and_logs_the_full_one() -> None:
    model = Pretraining()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    state, log = train(model, 0.5, 1)
    for name, scale in BY_HAND.items():  # Adam's first step is as long as the learning rate
        moved = (before[name] - model.get_parameter(name)).detach()
        torch.testing.assert_close(moved, torch.full_like(moved, 0.01 * scale), rtol=1e-3, atol=1e-7)
    assert [line["lr"] for _, line in log.lines] == [0.01]
    assert {group["lr_scale"]: group["lr"] for group in state["param_groups"]} == pytest.approx(
        {1: 0.01, 1 / 2: 0.005, 1 / 4: 0.0025, 1 / 8: 0.00125, 1 / 16: 0.000625}
    )


@pytest.mark.parametrize("layer_decay", [1.0, 0.5])
def test_optimizer_state_continues(layer_decay: float) -> None:
    whole, stopped = Pretraining(), Pretraining()
    stopped.load_state_dict(whole.state_dict())
    train(whole, layer_decay, 4)
    state, _ = train(stopped, layer_decay, 2)
    train(stopped, layer_decay, 4, state)
    for one, other in zip(whole.parameters(), stopped.parameters(), strict=True):
        assert torch.equal(one, other)


def test_what_cannot_be_optimised_is_said() -> None:
    model = nn.Sequential(nn.Linear(3, 2))
    with pytest.raises(OptionError, match=r"no image_encoder.blocks.*set layer_decay: 1"):
        build_optimizer(model, 0.1, 0.05, layer_decay=0.9)
    with pytest.raises(OptionError, match="every parameter is frozen"):
        build_optimizer(model.requires_grad_(False), 0.1, 0.05)
