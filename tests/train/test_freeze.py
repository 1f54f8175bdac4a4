"""Frozen parts stay as they are; the rest trains, in several processes too."""

from collections.abc import Iterator

import pytest
import torch
from helpers.tiny import tiny_text, tiny_vit
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from blip.config import ConfigError
from blip.network.med import TextDecoder, TextEncoder
from blip.network.packing import Rows
from blip.network.vit import ViT
from blip.train.freeze import freeze
from blip.train.optim import build_optimizer

WORDS = 50


class Captioner(nn.Module):
    """The parts that a captioning model has, and a loss that needs every one of them."""

    def __init__(self) -> None:
        super().__init__()
        self.image_encoder = ViT(tiny_vit(depth=3))
        self.text_encoder = TextEncoder(tiny_text(vocab_size=WORDS))
        self.text_decoder = TextDecoder(self.text_encoder.config, self.text_encoder)
        self.temperature = nn.Parameter(torch.tensor(0.07))

    def forward(self, images: Tensor, ids: Tensor) -> Tensor:
        rows = Rows(torch.full((len(ids),), ids.shape[1]), ids.shape[1], ids.device)
        keys = self.text_encoder.image_keys(self.image_encoder(images))
        matched = self.text_encoder.multimodal(ids, rows, keys)
        written = self.text_decoder.head(self.text_decoder(ids, rows, keys))
        return matched.square().mean() / self.temperature + written.logsumexp(-1).mean()


def inputs() -> tuple[Tensor, Tensor]:
    return torch.randn(2, 3, 32, 32), torch.randint(1, WORDS, (2, 5))


def step(model: nn.Module, parallel: nn.Module | None = None) -> set[str]:
    """Two optimizer steps -> names of the parameters that moved."""
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = build_optimizer(model, 1e-2, 0.05)
    for _ in range(2):
        (parallel or model)(*inputs()).backward()
        optimizer.step()
        optimizer.zero_grad()
    return {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}


@pytest.mark.parametrize(
    "parts", [["image_encoder"], ["image_encoder.blocks.0", "image_encoder.cls_token"], ["text_decoder", "temperature"]]
)
def test_frozen_parts_stay_and_all_others_move(parts: list[str]) -> None:
    model = Captioner()
    inside = {id(model.get_parameter(part)) for part in parts if part in dict(model.named_parameters())}
    inside |= {
        id(p) for part in parts if part in dict(model.named_modules()) for p in model.get_submodule(part).parameters()
    }
    freeze(model, parts)
    frozen = {name for name, p in model.named_parameters() if id(p) in inside}
    moved = step(model)
    assert frozen
    assert moved == {name for name, _ in model.named_parameters()} - frozen


def test_what_is_shared_is_frozen_in_both() -> None:
    model = Captioner()
    freeze(model, ["text_encoder"])
    own = {name for name, p in model.text_decoder.named_parameters() if p.requires_grad}
    assert {name.split(".")[2] for name in own if name.startswith("layers.")} == {"self_attention"}
    assert {name for name in own if name.startswith("head.")} == {
        f"head.{name}" for name in ("transform.weight", "transform.bias", "norm.weight", "norm.bias", "bias")
    }
    assert not any(name.startswith("embeddings.") for name in own)


def test_a_frozen_encoder_keeps_no_graph() -> None:
    model = Captioner()
    assert model.image_encoder(inputs()[0]).requires_grad
    freeze(model, ["image_encoder"])
    assert not model.image_encoder(inputs()[0]).requires_grad


def test_nothing_frozen_is_nothing_done() -> None:
    model = Captioner()
    freeze(model, [])
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("image_encodr", r"the model has no part 'image_encodr'; it has image_encoder, text_encoder, .*temperature"),
        ("image_encoder.block.0", r"image_encoder has no part 'block'; it has patch_embed, blocks, norm, cls_token"),
        ("image_encoder.blocks.3", r"image_encoder.blocks has no part '3'; it has 0, 1, 2$"),
        ("temperature.x", r"temperature has no part 'x'; it has no parts"),
        ("", r"the model has no part ''"),
    ],
)
def test_an_unknown_part_names_those_that_exist(part: str, message: str) -> None:
    model = Captioner()
    with pytest.raises(ConfigError, match=rf"^freeze: {part}: {message}"):
        freeze(model, ["text_decoder", part])
    assert all(p.requires_grad for p in model.parameters())  # nor was the known one frozen


def test_nothing_left_to_train_is_an_error() -> None:
    model = Captioner()
    parts = [*dict(model.named_children()), "temperature"]
    with pytest.raises(ConfigError, match="nothing would be left to train"):
        freeze(model, parts)
    freeze(model, parts[:-1])
    with pytest.raises(ConfigError, match="nothing would be left to train"):
        freeze(model, parts[-1:])


@pytest.fixture
def process_group() -> Iterator[None]:
    """A group of this process alone: enough for DDP to insist on a gradient for every parameter that it sees."""
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_distributed_training_waits_for_no_frozen_part(process_group: None) -> None:
    alone, model = Captioner(), Captioner()
    model.load_state_dict(alone.state_dict())
    for each in (alone, model):
        freeze(each, ["image_encoder"])
    torch.manual_seed(1)
    step(alone)
    torch.manual_seed(1)
    moved = step(model, DistributedDataParallel(model))
    assert not any(name.startswith("image_encoder") for name in moved)
    for one, other in zip(alone.parameters(), model.parameters(), strict=True):
        assert torch.equal(one, other)
