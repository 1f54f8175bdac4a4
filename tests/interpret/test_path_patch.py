"""Path patching equals two references: one layer written out by hand, and a loop of single traced edits."""

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.exact_effects import LEFT, RIGHT, exact_model, odds, single_edit
from torch import Tensor

import blip
from blip.errors import InputError
from blip.inference.predictor import Predictor
from blip.interpret.hooks import Edit


@pytest.fixture(scope="module")
def exact(tiny_checkpoint: Path) -> Predictor:
    return exact_model(tiny_checkpoint)


@pytest.fixture
def pairs(exact: Predictor, pictures: list[Path]) -> tuple[tuple, tuple]:
    first, second = (image.double() for image in exact.pixels(pictures[:2]))
    return (first, LEFT), (second, RIGHT)


def value(m: Predictor, pair: tuple) -> float:
    return float(odds(m, [pair[0]], [pair[1]]).detach())


@torch.no_grad()
def test_a_path_written_out_by_hand(exact: Predictor, pairs: tuple[tuple, tuple]) -> None:
    """From head 1 of the first self-attention to the queries of head 0 of the second one."""
    base, source = pairs
    with blip.trace(exact, "text.*") as clean:
        value(exact, base)
    with blip.trace(exact, "text.0.self.z") as other:
        value(exact, source)
    first, second = exact.model.text_encoder.layers
    z = clean["text.0.self.z"].clone()
    z[:, 1] = other["text.0.self.z"][:, 1]
    joined = [x.transpose(1, 2).flatten(2) for x in (z, clean["text.0.cross.z"])]
    x = first.self_attention.norm(clean["text.0.in"] + first.self_attention.out(joined[0]))
    x = first.cross_attention.norm(x + first.cross_attention.out(joined[1]))  # as it was
    x = first.feed_forward.norm(x + clean["text.0.mlp"])  # as it was
    arriving = second.self_attention.q(x.flatten(0, 1))  # the last layer reads the queries of [ENC] alone
    q = clean["text.1.self.q"].clone()
    width = q.shape[-1]
    q[0, 0] = arriving[: q.shape[2], :width]
    with blip.trace(exact, edit={"text.1.self.q": lambda _: q}):
        expected = value(exact, base) - float(0)
    expected -= value(exact, base)
    paths = blip.path_patch(exact, base, source, senders="text.0.self.z", receivers="text.1.self.q", metric=odds)
    found = paths.select(sender="text.0.self.z 1", receiver="text.1.self.q 0").values
    assert abs(expected) > 1e-4 and float(found) == pytest.approx(expected, abs=1e-10)


@torch.no_grad()
@pytest.mark.parametrize(
    ("senders", "receivers", "paths"),
    [
        (["text.0.*.z", "text.0.mlp"], ["text.*.q", "text.1.self.v", "text.1.cross.z", "text.1.mlp"], 49),
        (["image.*.attn.z", "image.0.mlp"], ["image.1.attn.k", "text.*.cross.[kv]"], 46),
    ],
)
def test_paths_equal_a_loop_of_single_edits(
    exact: Predictor, pairs: tuple[tuple, tuple], senders: list[str], receivers: list[str], paths: int
) -> None:
    base, source = pairs
    found = blip.path_patch(exact, base, source, senders=senders, receivers=receivers, metric=odds, batch_size=24)
    with blip.trace(exact, "*") as clean:
        plain = value(exact, base)
    with blip.trace(exact, "*") as other:
        value(exact, source)
    names, seen = blip.names(exact), []
    for place, effect in enumerate(found.values.ravel()):
        labels = found.labels_at(place)
        (sender, head), (receiver, to_head) = (
            (point, int(number) if number else None)
            for point, _, number in (labels[dim].partition(" ") for dim in ("sender", "receiver"))
        )
        same = sender.rpartition(".")[0] == receiver.rpartition(".")[0]
        if names.index(sender) >= names.index(receiver) or (same and not receiver.endswith("mlp")):
            assert np.isnan(effect), labels
            continue
        caught: list[Tensor] = []

        def catch(x: Tensor, caught: list[Tensor] = caught, point: str = receiver) -> Tensor:
            caught.append(x.clone())
            return clean[point]

        edits: dict[str, Edit] = {
            name: lambda _, n=name: clean[n]
            for name in names
            if name.endswith((".z", ".mlp")) and not name.startswith("decoder")
        }
        edits |= {sender: single_edit(head, None, lambda x, p=sender: other[p]), receiver: catch}
        with blip.trace(exact, edit=edits):
            value(exact, base)
        with blip.trace(exact, edit={receiver: single_edit(to_head, None, lambda x, c=caught: c[0])}):
            expected = value(exact, base) - plain
        assert effect == pytest.approx(expected, abs=1e-9), labels
        seen.append(expected)
    assert len(seen) == paths and len({round(effect, 7) for effect in seen}) > paths // 2


def test_whole_points_and_messages(exact: Predictor, pairs: tuple[tuple, tuple]) -> None:
    options = {"senders": "text.0.self.z", "receivers": "text.1.self.q", "metric": odds}
    whole = blip.path_patch(exact, *pairs, by="layer", **options)
    assert whole.values.shape == (1, 1) and whole.coords["sender"] == ["text.0.self.z"]
    with pytest.raises(InputError, match="by is 'token'; of paths it can be head or layer"):
        blip.path_patch(exact, *pairs, by="token", **options)
    with pytest.raises(InputError, match="batch_size is 0"):
        blip.path_patch(exact, *pairs, batch_size=0, **options)
    none = blip.path_patch(exact, *pairs, senders="text.1.self.z", receivers="text.0.self.q", metric=odds)
    assert np.isnan(none.values).all()
    for module in exact.model.modules():
        assert not module._forward_hooks and not module._forward_pre_hooks
