"""Tracing BLIP-2: what its Q-Former computed is read in every way through it, edits have their described effect."""

from collections.abc import Callable

import pytest
import torch
from helpers.tiny import tiny_blip2
from torch import Tensor
from torch.testing import assert_close

import blip
from blip.interpret.recording import TraceError
from blip.models.blip2 import Blip2Model
from blip.network.attention import Attention
from blip.network.packing import Rows

LENGTHS = torch.tensor([6, 3, 5, 4])
QUERIES, LAYERS, WIDTH = 3, 4, 36


@pytest.fixture
def exact() -> Blip2Model:
    """In float64, so that rounding hides nothing."""
    return tiny_blip2().double().eval()


def inputs(count: int = 4) -> tuple[Tensor, Tensor, Rows]:
    ids = torch.randint(1, 48, (4, 6)).masked_fill(torch.arange(6) >= LENGTHS[:, None], 0)
    return torch.randn(count, 3, 32, 32, dtype=torch.float64), ids, Rows(LENGTHS, 6, torch.device("cpu"))


def look(model: Blip2Model, images: Tensor) -> Tensor:
    return model.qformer.look(model.qformer.image_keys(model.image_encoder(images))).states


def match(model: Blip2Model, images: Tensor, ids: Tensor) -> Tensor:
    keys = model.qformer.image_keys(model.image_encoder(images))
    return model.match_logits(ids, LENGTHS, keys)[:, 1]


def write(model: Blip2Model, images: Tensor, ids: Tensor, rows: Rows) -> Tensor:
    read = model.qformer.look(model.qformer.image_keys(model.image_encoder(images)))
    return model.qformer.write(ids, rows, read.cache())


def explicit(run: Callable[[], Tensor], model: Blip2Model, attention: Attention) -> tuple[Tensor, Tensor]:
    """The last pattern of an attention when its soft-max is written out, and autograd's gradient of it."""
    kept = []

    def keep(module: Attention, args: tuple, output: Tensor) -> None:
        output.retain_grad()
        kept.append(output)

    handle = attention.pattern.register_forward_hook(keep)
    model.zero_grad()
    run().sum().backward()
    handle.remove()
    return kept[-1].detach(), kept[-1].grad


def test_names_are_those_of_its_layers(exact: Blip2Model) -> None:
    names = blip.names(exact)
    assert names[-1] == "queries" and "qformer.0.cross.pattern" in names and "qformer.3.self.q" in names
    assert "qformer.1.cross.pattern" not in names and "qformer.1.query_mlp" in names and "qformer.1.mlp" in names
    with (
        pytest.raises(TraceError, match=r"Its layers: image.0 to image.1, qformer.0 to qformer.3"),
        blip.trace(exact, "q"),
    ):
        pass


@pytest.mark.parametrize("images", [1, 4])
@pytest.mark.parametrize("name", ["qformer.0.self", "qformer.2.cross", "qformer.3.self"])
def test_patterns_of_matching(exact: Blip2Model, name: str, images: int, packed: bool) -> None:
    pixels, ids, _ = inputs(images)
    with blip.trace(exact, f"{name}.*", grads=True) as t:
        match(exact, pixels, ids).sum().backward()
    _, layer, site = name.split(".")
    module = exact.qformer.layers[int(layer)].get_submodule(f"{site}_attention.attention")
    pattern, gradient = explicit(lambda: match(exact, pixels, ids), exact, module)  # type: ignore[arg-type]
    if site == "cross":
        pattern, gradient = (
            x.view(images, 3, 4 // images, QUERIES, -1).transpose(1, 2).flatten(0, 1) for x in (pattern, gradient)
        )
    found, grad = t.pattern(name), t.pattern_grad(name)
    rows = QUERIES if site == "cross" or layer == "3" else QUERIES + 6
    assert found.shape == (4, 3, rows, 17 if site == "cross" else QUERIES + 6)
    real = torch.arange(rows) < QUERIES + LENGTHS[:, None]
    assert_close(found, pattern * real[:, None, :, None])
    assert_close(grad, gradient * real[:, None, :, None])


def test_patterns_of_writing(exact: Blip2Model) -> None:
    """A text attends to the queries of the pass before it, and to itself so far."""
    pixels, ids, rows = inputs()
    with blip.trace(exact, ["qformer.1.self.*", "qformer.2.cross.pattern"], grads=True) as t:
        write(exact, pixels, ids, rows).sum().backward()
    of_queries, of_text = t.all("qformer.1.self.pattern")
    assert of_queries.shape == (4, 3, QUERIES, QUERIES) and of_text.shape == (4, 3, 6, QUERIES + 6)
    attention = exact.qformer.layers[1].self_attention.attention
    pattern, _ = explicit(lambda: write(exact, pixels, ids, rows), exact, attention)
    real = (torch.arange(6) < LENGTHS[:, None])[:, None, :, None]
    assert_close(of_text, pattern * real)
    assert (of_text[..., QUERIES:].triu(1) == 0).all()
    assert t.pattern_grad("qformer.2.cross").abs().sum() > 0  # the gradient reaches what the queries read


def test_states_of_every_way(exact: Blip2Model, packed: bool) -> None:
    pixels, ids, rows = inputs()
    with torch.no_grad(), blip.trace(exact, "qformer.*.*") as t:
        states = look(exact, pixels)
    assert t["qformer.3.out"].shape == (4, QUERIES, WIDTH) and torch.equal(t["qformer.3.out"], states)
    with pytest.raises(TraceError, match=r"nothing passed through qformer\.0\.mlp"):
        t["qformer.0.mlp"]
    with torch.no_grad(), blip.trace(exact, ["qformer.*.*", "queries"]) as t:
        matched = match(exact, pixels, ids)
    assert t["qformer.0.in"].shape == (4, QUERIES + 6, WIDTH) and t["qformer.3.out"].shape == (4, QUERIES, WIDTH)
    assert t["qformer.0.mlp"].shape == (4, 6, WIDTH) and t["qformer.0.query_mlp"].shape == (4, QUERIES, WIDTH)
    assert (t["qformer.0.mlp"][1, 3:] == 0).all() and (t["qformer.1.in"][1, QUERIES + 3 :] == 0).all()
    assert_close(exact.itm_head(t["queries"]).mean(dim=1)[:, 1], matched)
    with torch.no_grad(), blip.trace(exact, "qformer.*.*") as t:
        texts = exact.qformer.text(ids, rows, first_only=True)
    assert torch.equal(t["qformer.3.out"][:, 0], texts) and t["qformer.3.mlp"].shape == (4, 1, WIDTH)


@torch.no_grad()
def test_edits(exact: Blip2Model) -> None:
    pixels, _, _ = inputs()
    before = look(exact, pixels)
    with blip.trace(exact, edit={"queries": lambda x: x * 2}):
        assert_close(look(exact, pixels), before * 2)
    with blip.trace(exact, edit={"qformer.*.cross.z": blip.zero_head(0, 1, 2)}):
        blind = look(exact, pixels)
    assert_close(blind[0], blind[1])  # no image is seen
    assert not torch.allclose(before[0], before[1])
    with blip.trace(exact, "qformer.2.out") as other:
        look(exact, pixels.flip(0))
    with blip.trace(exact, edit={"qformer.2.out": blip.patch_from(other, "qformer.2.out")}):
        assert_close(look(exact, pixels), before.flip(0))
    assert torch.equal(look(exact, pixels), before)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in exact.modules())
