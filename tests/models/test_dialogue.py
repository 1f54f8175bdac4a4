"""The model of dialogues against its formulas written out, one answer after the other."""

import math
from dataclasses import replace

import pytest
import torch
from helpers.tiny import specials_of, spread, tiny_text, tiny_vit
from torch import Tensor
from torch.nn import functional as F

from blip.errors import InputError
from blip.hardware.profile import PROFILES
from blip.models import dialogue
from blip.models.dialogue import DialogueModel, Round, answer_logits
from blip.network.pictures import beside_one_another

WIDTH = 36


def made() -> DialogueModel:
    text = tiny_text(image_width=WIDTH, max_positions=40)
    return spread(DialogueModel(tiny_vit(width=WIDTH, heads=3), text, specials_of(text)), std=0.2).double().eval()


# ---- written out -----------------------------------------------------------------------------------------------------


def linear(state: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]


def norm(state: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    centred = x - x.mean(dim=-1, keepdim=True)
    scale = (centred**2).mean(dim=-1, keepdim=True).add(1e-12).sqrt()
    return centred / scale * state[f"{name}.weight"] + state[f"{name}.bias"]


def attention(state: dict[str, Tensor], name: str, x: Tensor, others: Tensor) -> Tensor:
    """One text x (T, D) that attends to states (N, D), head by head."""
    q, k, v = (linear(state, f"{name}.{part}", y) for part, y in (("q", x), ("k", others), ("v", others)))
    heads = []
    for one in (slice(12 * i, 12 * i + 12) for i in range(3)):
        heads.append(((q[:, one] @ k[:, one].T) / math.sqrt(12)).softmax(dim=1) @ v[:, one])
    return norm(state, f"{name}.norm", x + linear(state, f"{name}.out", torch.cat(heads, dim=1)))


def read(state: dict[str, Tensor], ids: list[int], others: Tensor | None) -> Tensor:
    """One text -> its states (T, D); `others` (N, D) is what it attends to."""
    name = "text_encoder.embeddings"
    x = norm(state, f"{name}.norm", state[f"{name}.words.weight"][ids] + state[f"{name}.positions.weight"][: len(ids)])
    for layer in ("text_encoder.layers.0", "text_encoder.layers.1"):
        x = attention(state, f"{layer}.self_attention", x, x)
        x = x if others is None else attention(state, f"{layer}.cross_attention", x, others)
        inner = F.gelu(linear(state, f"{layer}.feed_forward.up", x))
        x = norm(state, f"{layer}.feed_forward.norm", x + linear(state, f"{layer}.feed_forward.down", inner))
    return x


def plain_logits(model: DialogueModel, image: Tensor, caption: list[int], text: list[int]) -> Tensor:
    """The two logits of one image (3, h, w), or of F pictures (F, 3, h, w), a caption and a text."""
    state = model.state_dict()
    pictures = model.image_encoder(image if image.dim() == 4 else image[None])  # (F, N, D)
    states = torch.cat([*pictures, read(state, caption, None)])
    return linear(state, "itm_head", read(state, text, states)[0])


# ---- equal -----------------------------------------------------------------------------------------------------------


def some_rounds(enc: int) -> list[Round]:
    draw = torch.Generator().manual_seed(1)

    def tokens(count: int) -> list[int]:
        return torch.randint(3, 40, (count,), generator=draw).tolist()

    counts = [1 + i % 5 for i in range(100)]
    first = Round([enc, *tokens(6)], [[*tokens(count), 2] for count in counts])
    second = Round([enc, *tokens(17)], [[*tokens(count), 2] for count in counts[:30]])
    second.answers[7] = list(second.answers[20])  # a candidate that occurs twice
    return [first, second]


@torch.no_grad()
@pytest.mark.parametrize("at_once", [2048, 50], ids=["in one pass", "in parts"])
def test_all_answers_at_once_equal_one_by_one(at_once: int, packed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dialogue, "profile_of", lambda _: replace(PROFILES["cpu"], tokens_at_once=at_once))
    model = made()
    rounds, caption = some_rounds(model.specials.enc), [1, 9, 8, 7, 2]
    image = torch.randn(3, 32, 32, dtype=torch.float64)
    length = torch.tensor([len(caption)])
    keys = model.keys(model.image_encoder(image[None]), model.caption_states(torch.tensor([caption]), length), length)
    found = answer_logits(model, keys, rounds)
    expected = [torch.stack([plain_logits(model, image, caption, text) for text in one.texts]) for one in rounds]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-10)
    assert torch.equal(found[1][7], found[1][20])
    assert expected[0].std() > 0.01  # answers differ at all


@torch.no_grad()
@pytest.mark.parametrize("counts", [(1, 1), (1, 3), (3, 3)], ids=["one picture", "one and three", "three"])
def test_a_batch_equals_pair_by_pair(packed: bool, counts: tuple[int, int]) -> None:
    """Captions of different lengths and items of several pictures: padding and absent pictures are masked."""
    model = made()
    several = [torch.randn(count, 3, 32, 32, dtype=torch.float64) for count in counts]
    images = [one[0] if len(one) == 1 else one for one in several]
    captions, lengths = torch.tensor([[1, 9, 8, 2, 0, 0], [1, 5, 6, 7, 8, 2]]), torch.tensor([4, 6])
    enc = model.specials.enc
    ids = torch.tensor([[enc, 4, 5, 2, 0], [enc, 4, 5, 6, 2], [enc, 9, 2, 0, 0], [enc, 9, 8, 2, 0]])
    texts = torch.tensor([4, 5, 3, 4])
    found = model(beside_one_another(images), captions, lengths, ids=ids, lengths=texts)
    for row, logits in enumerate(found):
        place = row // 2
        caption = captions[place, : lengths[place]].tolist()
        alone = plain_logits(model, images[place], caption, ids[row, : texts[row]].tolist())
        torch.testing.assert_close(logits, alone, rtol=0, atol=1e-10)


def test_captions_and_images_of_other_widths_are_refused() -> None:
    text = tiny_text()
    with pytest.raises(InputError, match="their states are 24 and 36 wide: take an image encoder as wide"):
        DialogueModel(tiny_vit(), text, specials_of(text))
