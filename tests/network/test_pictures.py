"""Items of several pictures: equal to each item alone, whatever stands in absent pictures; and embeddings of places."""

from collections.abc import Sequence

import pytest
import torch
from helpers.tiny import spread, tiny_qformer, tiny_text, tiny_vit
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from blip.errors import InputError
from blip.network.cross_attention import ProjectedKeys
from blip.network.med import TextDecoder, TextEncoder
from blip.network.packing import Rows
from blip.network.pictures import (
    Pictures,
    PictureStates,
    beside_one_another,
    encode,
    item_features,
    padded_pictures,
    present_of,
)
from blip.network.qformer import QFormer
from blip.network.vit import ViT

COUNTS = (2, 1, 3)
EXACT = {"rtol": 0, "atol": 1e-10}
KINDS = ["none", "place", "time"]


def tower(kind: str = "none", most: int = 4) -> ViT:
    torch.manual_seed(3)
    sizes = {} if kind == "none" else {"picture_embeddings": kind, "max_pictures": most}
    return spread(ViT(tiny_vit(**sizes)), std=0.3).double().eval()


def items(counts: Sequence[int] = COUNTS) -> list[Tensor]:
    torch.manual_seed(4)
    return [torch.randn(count, 3, 32, 32, dtype=torch.float64) for count in counts]


def batch(several: list[Tensor]) -> Pictures:
    """Several items as one batch, with pixels that no sum survives where a picture is absent."""
    made = beside_one_another(several)
    assert isinstance(made, Pictures) and made.present is not None
    made.tensor[~made.present] = float("nan")
    return made


def readers() -> tuple[TextEncoder, TextDecoder, QFormer]:
    torch.manual_seed(5)
    parts = TextEncoder(tiny_text()), TextDecoder(tiny_text()), QFormer(tiny_qformer())
    return tuple(spread(part, std=0.3).double().eval() for part in parts)  # type: ignore[return-value]


def read(keys_of: Sequence[ProjectedKeys], ids: Tensor) -> list[Tensor]:
    """What an encoder, a decoder and a Q-Former read from items, each with a text of its own (B, T)."""
    encoder, decoder, qformer = readers()
    rows = Rows(torch.full((len(ids),), ids.shape[1]), ids.shape[1], ids.device)
    encoded = rows.unpack(encoder.multimodal(ids, rows, keys_of[0]))
    decoded = rows.unpack(decoder.head(decoder(ids, rows, keys_of[1])))
    return [encoded, decoded, qformer.look(keys_of[2]).states, qformer.match(ids, rows, keys_of[2])]


@pytest.mark.parametrize("kind", KINDS)
def test_one_picture_is_the_same_in_either_form(kind: str) -> None:
    encoder, images = tower(kind), torch.cat(items((1, 1, 1)))
    plain = encode(encoder, images)
    assert isinstance(plain, Tensor) and torch.equal(plain, encoder(images))
    linear = torch.nn.Linear(24, 6).double()
    for several in (images[:, None], Pictures(images[:, None]), Pictures(images[:, None], torch.ones(3, 1).bool())):
        states = encode(encoder, several)
        assert isinstance(states, PictureStates)
        assert torch.equal(states.tensor[:, 0], plain)
        assert torch.equal(item_features(linear, states), item_features(linear, plain))
        for part in readers():
            found, expected = part.image_keys(states), part.image_keys(plain)
            assert all(torch.equal(a, b) for x, y in zip(found.layers, expected.layers, strict=True)
                       for a, b in zip(x, y, strict=True))  # fmt: skip
    assert torch.equal(beside_one_another(list(images)), images)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_with_absent_pictures_equals_each_item_alone(kind: str) -> None:
    encoder, several = tower(kind), items()
    torch.manual_seed(6)
    ids, linear = torch.randint(1, 48, (3, 4)), torch.nn.Linear(24, 6).double()
    states = encode(encoder, batch(several))
    together = read([part.image_keys(states) for part in readers()], ids)
    features = item_features(linear, states)
    short = encode(encoder, batch(several), cls_only=True)
    assert_close(item_features(linear, short), features)
    for i, item in enumerate(several):
        own = encode(encoder, item[None])
        assert_close(states[i : i + 1].tensor, own.tensor, **EXACT)
        assert states[i : i + 1].present is None
        plain = torch.cat([encoder(picture[None], False, place) for picture, place in zip(
            item, places_of(kind, len(item)), strict=True)])  # fmt: skip
        assert_close(own.tensor[0], plain, **EXACT)
        assert_close(features[i], F.normalize(linear(plain[:, 0]).mean(dim=0), dim=0).float())
        mean = torch.cat(list(plain))[None]  # tokens side by side: (1, F*N, D)
        alone = read([part.image_keys(mean) for part in readers()], ids[i : i + 1])
        for found, expected in zip(together, alone, strict=True):
            assert_close(found[i : i + 1], expected, **EXACT)


def places_of(kind: str, count: int) -> list[Tensor | None]:
    """The places of the pictures of one item."""
    if kind == "none":
        return [None] * count
    places = torch.arange(count)[:, None]
    return list(places.flip(0) if kind == "time" else places)


@pytest.mark.parametrize("kind", KINDS)
def test_the_order_of_pictures_matters_with_embeddings_alone(kind: str) -> None:
    """For texts and queries; the mean of projections, which contrast compares, has no order in any case."""
    encoder, (item,) = tower(kind), items((3,))
    ids, linear = torch.tensor([[1, 7, 9, 11]]), torch.nn.Linear(24, 6).double()
    found = []
    for pictures in (item, item[[2, 0, 1]]):
        states = encode(encoder, pictures[None])
        found.append([*read([part.image_keys(states) for part in readers()], ids), item_features(linear, states)])
    for one, other in zip(*found, strict=True):
        if one.dtype == torch.float32 or kind == "none":
            assert_close(one, other, rtol=0, atol=1e-6 if one.dtype == torch.float32 else 1e-10)
        else:
            assert not torch.allclose(one, other, atol=1e-3)


def test_which_place_a_picture_has() -> None:
    """Pictures are alike: what differs is the embedding alone."""
    pictures = torch.zeros(3, 3, 3, 32, 32, dtype=torch.float64)
    for kind, expected in {"place": [[0, 1], [0], [0, 1, 2]], "time": [[1, 0], [0], [2, 1, 0]]}.items():
        encoder = tower(kind)
        states = encode(encoder, Pictures(pictures, present_of(torch.tensor(COUNTS), 3))).tensor
        bare = states[1, 0] - encoder.picture_embeddings.vectors[0]  # type: ignore[union-attr]
        for row, places in zip(states, expected, strict=True):
            for picture, place in zip(row, places, strict=False):
                assert_close(picture - encoder.picture_embeddings.vectors[place], bare)  # type: ignore[union-attr]
        assert torch.equal(states[1, 1:], torch.zeros_like(states[1, 1:]))  # absent


def test_embeddings_are_zero_at_the_start_and_learn() -> None:
    torch.manual_seed(0)
    plain, encoder = ViT(tiny_vit()), ViT(tiny_vit(picture_embeddings="time", max_pictures=4))
    table = encoder.picture_embeddings.table  # type: ignore[union-attr]
    assert not table.any() and encoder.load_state_dict(plain.state_dict(), strict=False).missing_keys == [
        "picture_embeddings.table"
    ]
    pictures = torch.randn(2, 3, 3, 32, 32)
    assert torch.equal(encode(encoder, pictures).tensor, encode(plain, pictures).tensor)
    states = encode(encoder, Pictures(pictures, present_of(torch.tensor([3, 2]), 3)))
    (states.tensor[..., 0] * torch.tensor([1.0, 2, 4])[None, :, None]).sum().backward()
    tokens = states.tensor.shape[2]  # the last picture has place 0; the second item has two
    assert_close(table.grad[:, 0], 24**0.5 * tokens * torch.tensor([4.0 + 2, 2 + 1, 1, 0]))


def test_more_pictures_than_embeddings() -> None:
    with pytest.raises(InputError, match=r"an item has 3 pictures, .* tell 2 apart"):
        encode(tower("place", most=2), torch.zeros(1, 3, 3, 32, 32, dtype=torch.float64))
    for sizes in ({"picture_embeddings": "place"}, {"max_pictures": 3}):
        with pytest.raises(InputError, match="max_pictures"):
            ViT(tiny_vit(**sizes))


def test_items_are_chosen_as_from_a_tensor() -> None:
    made = batch(items())
    for some in (slice(0, 2), torch.tensor([1, 0]), torch.tensor([1]), slice(1, 1)):
        chosen = made[some]
        assert chosen.counts.tolist() == torch.tensor(COUNTS)[some].tolist() and len(chosen) == len(chosen.counts)
        assert chosen.shape[1] == max([1, *chosen.counts.tolist()])
    assert made[:2].present is not None and made[2:].present is None
    states = encode(tower(), made)
    assert [part.counts.tolist() for part in states.split(2)] == [[2, 1], [3]]
    assert torch.equal(made.real(), torch.cat(items()))
    again = made.with_real(made.real() * 2)
    assert torch.equal(again.real(), 2 * made.real()) and not again.tensor[1, 1:].any()
    assert padded_pictures(states, 5).shape[:2] == (3, 5) and not padded_pictures(states, 5)[:, 3:].any()
    assert torch.equal(padded_pictures(states.tensor[:, 0], 2)[:, 0], states.tensor[:, 0])


def test_patches_left_out_of_each_picture() -> None:
    """Every real picture keeps as many tokens, drawn anew; the mask has the width that is left."""
    encoder = tower().train()
    encoder.patch_dropout.share = 0.5
    states = encode(encoder, batch(items()))
    tokens, mask = states.side_by_side()
    assert states.tensor.shape[2] == 9 and tokens.shape == (3, 27, 24)
    assert mask is not None and mask.sum(dim=1).tolist() == [18, 9, 27]
