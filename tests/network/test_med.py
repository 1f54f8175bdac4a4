"""The text transformer: every shortcut equals the full computation it replaces."""

import pytest
import torch
from helpers.tiny import spread, tiny_text
from torch import Tensor
from torch.testing import assert_close

from blip.network.cross_attention import ImageStates, ProjectedKeys
from blip.network.embeddings import TiedLookUp
from blip.network.med import TextDecoder, TextEncoder
from blip.network.packing import Cache, Rows

CONFIG = tiny_text(width=24, layers=3, hidden=32, image_width=20)
WORDS, WIDTH, LAYERS, LONGEST = CONFIG.vocab_size, CONFIG.width, CONFIG.layers, 7
LENGTHS = torch.tensor([4, 7, 2, 5])


def tiny() -> tuple[TextEncoder, TextDecoder]:
    encoder = TextEncoder(CONFIG)
    decoder = TextDecoder(encoder.config, encoder)
    return spread(encoder, std=0.3), spread(decoder, std=0.3)


def texts() -> Tensor:
    ids = torch.randint(1, WORDS, (len(LENGTHS), LONGEST))
    return ids.masked_fill(torch.arange(LONGEST) >= LENGTHS[:, None], 0)


def rows(lengths: Tensor = LENGTHS, packed: bool = True, longest: int = LONGEST) -> Rows:
    return Rows(lengths, longest, torch.device("cpu"), packed=packed)


def real(x: Tensor, layout: Rows) -> Tensor:
    """States of real tokens alone, in memory order, from packed or padded states."""
    return layout.unpack(x)[torch.arange(layout.longest) < LENGTHS[:, None]]


def repeated(keys: ProjectedKeys, which: Tensor) -> ProjectedKeys:
    """The slow twin of sharing: every row its own copy of its image's keys."""
    return ProjectedKeys([(k[which], v[which]) for k, v in keys.layers])


def test_rows_pack_and_unpack() -> None:
    grid = torch.arange(28.0).view(4, 7, 1)
    layout = rows()
    packed = layout.pack(grid)
    expected = torch.cat([grid[r, :n] for r, n in enumerate(LENGTHS.tolist())])
    assert torch.equal(packed, expected)
    mask = torch.arange(7) < LENGTHS[:, None]
    assert torch.equal(layout.unpack(packed), grid * mask[..., None])
    assert torch.equal(packed[layout.first], grid[:, 0])
    loose = rows(packed=False)
    assert torch.equal(loose.unpack(loose.pack(grid)), grid)
    assert torch.equal(loose.pack(grid)[loose.first], grid[:, 0])


def test_rows_of_equal_length_need_no_mask() -> None:
    assert rows(torch.tensor([7, 7])).mask is None
    assert rows(torch.tensor([7, 6])).mask is not None


@pytest.mark.parametrize("packed", [True, False])
def test_next_tokens(packed: bool) -> None:
    ids, layout = texts(), rows(packed=packed)
    targets = layout.unpack(layout.next_tokens(ids)) if not packed else layout.next_tokens(ids)
    slow = [[ids[r, t + 1].item() for t in range(n - 1)] + [-100] for r, n in enumerate(LENGTHS.tolist())]
    if packed:
        assert targets.tolist() == [target for row in slow for target in row]
    else:
        assert targets.tolist() == [row + [-100] * (LONGEST - len(row)) for row in slow]


@pytest.mark.parametrize("kind", ["text", "multimodal", "decoder"])
def test_packed_equals_padded_equals_alone(kind: str) -> None:
    encoder, decoder = tiny()
    ids, keys = texts(), encoder.image_keys(torch.randn(4, 6, 20))

    def run(ids: Tensor, layout: Rows, keys: ProjectedKeys) -> Tensor:
        if kind == "text":
            return encoder.text(ids, layout)
        return encoder.multimodal(ids, layout, keys) if kind == "multimodal" else decoder(ids, layout, keys)

    packed, padded = rows(), rows(packed=False)
    x = real(run(ids, packed, keys), packed)
    assert len(x) == LENGTHS.sum()
    assert_close(x, real(run(ids, padded, keys), padded), rtol=1e-4, atol=1e-5)
    noise = ids.masked_fill(ids == 0, 17)  # what stands in the padding never matters
    assert_close(x, real(run(noise, padded, keys), padded), rtol=1e-4, atol=1e-5)
    alone = []
    for r, n in enumerate(LENGTHS.tolist()):
        one = ProjectedKeys([(k[r : r + 1], v[r : r + 1]) for k, v in keys.layers])
        alone.append(run(ids[r : r + 1, :n], rows(torch.tensor([n]), longest=n), one))
    assert_close(x, torch.cat(alone), rtol=1e-4, atol=1e-5)


def test_texts_side_by_side_equal_repeated_keys() -> None:
    encoder, _ = tiny()
    ids, keys = texts(), encoder.image_keys(torch.randn(2, 6, 20))
    side_by_side = encoder.multimodal(ids, rows(), keys)
    slow = encoder.multimodal(ids, rows(), repeated(keys, torch.tensor([0, 0, 1, 1])))
    assert_close(side_by_side, slow, rtol=1e-4, atol=1e-5)
    wrong = encoder.multimodal(ids, rows(), repeated(keys, torch.tensor([0, 1, 0, 1])))
    assert not torch.allclose(side_by_side, wrong, atol=1e-2)


@pytest.mark.parametrize("first_only", [True, False])
def test_extra_rows_equal_repeated_keys(first_only: bool) -> None:
    encoder, _ = tiny()
    ids, states = texts(), torch.randn(2, 6, 20, requires_grad=True)
    extra = torch.tensor([1, 0])
    keys = encoder.image_keys(states)
    fast = encoder.multimodal(ids, rows(), keys.with_extra(extra), first_only=first_only)
    slow = encoder.multimodal(ids, rows(), repeated(keys, torch.tensor([0, 1, 1, 0])), first_only=first_only)
    assert_close(fast, slow, rtol=1e-4, atol=1e-5)
    weight = torch.randn_like(fast)
    (expected,) = torch.autograd.grad((slow * weight).sum(), states, retain_graph=True)
    (gradient,) = torch.autograd.grad((fast * weight).sum(), states)
    assert_close(gradient, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("with_image", [True, False])
def test_first_only_equals_full(packed: bool, with_image: bool) -> None:
    encoder, _ = tiny()
    ids, layout, keys = texts(), rows(packed=packed), encoder.image_keys(torch.randn(4, 6, 20))
    if with_image:
        full, first = encoder.multimodal(ids, layout, keys), encoder.multimodal(ids, layout, keys, first_only=True)
    else:
        full, first = encoder.text(ids, layout), encoder.text(ids, layout, first_only=True)
    assert first.shape == (4, WIDTH)
    assert_close(first, layout.unpack(full)[:, 0], rtol=1e-4, atol=1e-5)


def test_words_looked_up_before_equal_ids() -> None:
    encoder, _ = tiny()
    ids = texts()
    words = encoder.embeddings.words(ids.flatten())
    places = torch.arange(ids.numel()).view_as(ids)
    assert_close(encoder.text(places, rows(), words=words), encoder.text(ids, rows()))


@pytest.mark.parametrize("uses_head", [True, False])
def test_tied_look_up_has_the_gradient_of_a_look_up_and_a_head(uses_head: bool) -> None:
    matrix, ids = torch.randn(WORDS, WIDTH, requires_grad=True), torch.tensor([3, 7, 3, 0, 3])
    weight, states = torch.randn(5, WIDTH), torch.randn(4, WIDTH)

    def gradient(words: Tensor, head: Tensor) -> Tensor:
        loss = (words * weight).sum() + uses_head * ((states @ head.T) ** 2).sum()
        return torch.autograd.grad(loss, matrix)[0]

    words, head = TiedLookUp.apply(matrix, ids)
    assert torch.equal(words, matrix[ids]) and torch.equal(head, matrix)
    assert_close(gradient(words, head), gradient(matrix[ids], matrix))


def test_decoder_shares_all_but_self_attention() -> None:
    encoder, decoder = tiny()
    for own, shared in zip(decoder.layers, encoder.layers, strict=True):
        assert own.cross_attention is shared.cross_attention
        assert own.feed_forward is shared.feed_forward
        assert own.self_attention is not shared.self_attention
    assert decoder.embeddings is encoder.embeddings
    assert decoder.head.words is encoder.embeddings.words
    both = {id(p) for p in encoder.parameters()} & {id(p) for p in decoder.parameters()}
    own = {name for name, p in decoder.named_parameters() if id(p) not in both}
    assert {name.split(".")[2] for name in own if name.startswith("layers.")} == {"self_attention"}
    assert len(own) == LAYERS * 10 + 5  # q, k, v, out, norm; the head's transform, norm and bias


def test_causal_states_do_not_see_the_future() -> None:
    encoder, decoder = tiny()
    ids, keys = torch.randint(1, WORDS, (2, 6)), encoder.image_keys(torch.randn(2, 5, 20))
    layout = rows(torch.tensor([6, 6]), longest=6)
    before = layout.unpack(decoder(ids, layout, keys))
    ids[:, 4] = ids[:, 4] % (WORDS - 1) + 1
    after = layout.unpack(decoder(ids, layout, keys))
    assert_close(after[:, :4], before[:, :4])
    assert not torch.allclose(after[:, 4:], before[:, 4:])


@pytest.mark.parametrize("prompt", [1, 3])
@pytest.mark.parametrize("per_image", [1, 2])
@torch.no_grad()
def test_cached_steps_equal_the_full_pass(prompt: int, per_image: int) -> None:
    encoder, decoder = tiny()
    count = 2 * per_image
    ids, keys = torch.randint(1, WORDS, (count, 6)), encoder.image_keys(torch.randn(2, 5, 20))
    layout = rows(torch.full((count,), 6), longest=6)
    full = layout.unpack(decoder.head(decoder(ids, layout, keys)))  # (R, T, V)
    cache = Cache()
    assert cache.length == 0
    assert_close(decoder.step(ids[:, :prompt], keys, cache), full[:, prompt - 1], rtol=1e-4, atol=1e-5)
    for t in range(prompt, 6):
        assert cache.length == t
        assert_close(decoder.step(ids[:, t : t + 1], keys, cache), full[:, t], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_cache_follows_reordered_beams() -> None:
    encoder, decoder = tiny()
    ids, keys = torch.randint(1, WORDS, (2, 4)), encoder.image_keys(torch.randn(1, 5, 20))
    cache = Cache()
    decoder.step(ids[:, :3], keys, cache)
    chosen = torch.tensor([1, 1])
    cache.select(chosen)
    layout = rows(torch.tensor([4, 4]), longest=4)
    continued = torch.cat([ids[chosen, :3], ids[:, 3:]], dim=1)
    full = layout.unpack(decoder.head(decoder(continued, layout, keys)))[:, -1]
    assert_close(decoder.step(ids[:, 3:], keys, cache), full, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("per_image", [1, 3])
@torch.no_grad()
def test_states_in_the_place_of_keys(per_image: int, masked: bool) -> None:
    """Few tokens look at states, with the projections on their own side: the same as looking at keys."""
    encoder, decoder = tiny()
    encoder.eval(), decoder.eval()
    layout = rows(torch.tensor([3, 2, 3, 1, 3, 2][: 2 * per_image]), longest=3)
    ids, states = torch.randint(1, WORDS, (2 * per_image, 3)), torch.randn(2, 5, 20)
    mask = torch.tensor([[True] * 5, [True, True, False, False, False]]) if masked else None
    few, many = decoder.keys_or_states(states, 2, mask), decoder.keys_or_states(states, 1000, mask)
    assert isinstance(few, ImageStates)
    assert isinstance(many, ProjectedKeys) and len(few) == len(many) == 2
    assert_close(decoder(ids, layout, few), decoder(ids, layout, many), rtol=1e-4, atol=1e-5)
    one = torch.tensor([1])
    single = rows(torch.tensor([3]), longest=3)
    assert_close(
        decoder(ids[:1], single, few.select(one)), decoder(ids[:1], single, many.select(one)), rtol=1e-4, atol=1e-5
    )
    if not masked:
        seen = encoder.multimodal(ids, layout, encoder.keys_or_states(states, tokens=2), first_only=True)
        assert_close(
            seen, encoder.multimodal(ids, layout, encoder.image_keys(states), first_only=True), rtol=1e-4, atol=1e-5
        )


def test_keys_are_made_where_something_reads_them() -> None:
    """In training, where a hook watches, and where an adapter wraps the projection."""
    encoder, _ = tiny()
    states = torch.randn(2, 5, 20)
    assert isinstance(encoder.train().keys_or_states(states, tokens=2), ProjectedKeys)
    assert isinstance(encoder.eval().keys_or_states(states, tokens=2), ImageStates)
    cross = encoder.layers[1].cross_attention
    handle = cross.attention.k.register_forward_hook(lambda *_: None)
    assert isinstance(encoder.keys_or_states(states, tokens=2), ProjectedKeys)
    handle.remove()
    cross.k = torch.nn.Sequential(cross.k)
    assert isinstance(encoder.keys_or_states(states, tokens=2), ProjectedKeys)
