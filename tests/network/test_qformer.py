"""The Q-Former: each way through it equals one plain pass over a row, with an explicit mask and nothing shared."""

import pytest
import torch
from helpers.tiny import spread
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from blip.errors import InputError
from blip.network.packing import Rows
from blip.network.qformer import QFormer, QFormerConfig, QFormerStep, layers_of

WORDS, WIDTH, QUERIES, HEADS, IMAGE = 40, 24, 3, 3, 20
LENGTHS = torch.tensor([4, 7, 2, 5])
LONGEST, IMAGES = 7, 2


def config(**changes: object) -> QFormerConfig:
    sizes = {"vocab_size": WORDS, "width": WIDTH, "layers": 4, "heads": HEADS, "hidden": 32, "max_positions": 12}
    return QFormerConfig(**{**sizes, "image_width": IMAGE, "dropout": 0.0, "queries": QUERIES, **changes})  # type: ignore[arg-type]


def build(**changes: object) -> QFormer:
    torch.manual_seed(3)
    return spread(QFormer(config(**changes)), std=0.3).eval()  # type: ignore[return-value]


def texts() -> Tensor:
    torch.manual_seed(4)
    ids = torch.randint(1, WORDS, (len(LENGTHS), LONGEST))
    return ids.masked_fill(torch.arange(LONGEST) >= LENGTHS[:, None], 0)


def images(count: int = IMAGES) -> Tensor:
    torch.manual_seed(5)
    return torch.randn(count, 6, IMAGE)


def rows(lengths: Tensor = LENGTHS) -> Rows:
    return Rows(lengths, int(lengths.max()), torch.device("cpu"))


def real(x: Tensor, layout: Rows) -> list[Tensor]:
    """States of each text, without padding, from those in memory."""
    return [text[:n] for text, n in zip(layout.unpack(x), LENGTHS.tolist(), strict=True)]


def attention(module: nn.Module, x: Tensor, seen: Tensor, mask: Tensor) -> Tensor:
    """norm(x + out(attention(x, seen))) of one row, head by head."""
    q, k, v = module.q(x), module.k(seen), module.v(seen)
    size, heads = WIDTH // HEADS, []
    for h in range(HEADS):
        part = slice(h * size, (h + 1) * size)
        scores = q[:, part] @ k[:, part].T / size**0.5
        heads.append(scores.masked_fill(~mask, -1e9).softmax(dim=1) @ v[:, part])
    return module.norm(x + module.out(torch.cat(heads, dim=1)))


def feed_forward(module: nn.Module, x: Tensor) -> Tensor:
    return module.norm(x + module.down(F.gelu(module.up(x))))


def slow(qformer: QFormer, ids: Tensor | None, image: Tensor | None, *, causal: bool = False) -> tuple[Tensor, Tensor]:
    """One row through all layers: states of the queries, which are there with an image (N, e), and of the text (T,).

    With `causal`, queries attend to queries and a token to the queries and to the text up to itself.
    """
    queries, length = (0 if image is None else QUERIES), (0 if ids is None else len(ids))
    parts = [] if image is None else [qformer.queries[0]]
    if ids is not None:
        parts.append(qformer.embeddings.words.weight[ids] + qformer.embeddings.positions.weight[:length])
    x = qformer.embeddings.norm(torch.cat(parts))
    mask = torch.ones(queries + length, queries + length, dtype=torch.bool)
    if causal:
        mask = mask.tril()
        mask[:queries, :queries] = True
    for layer in layers_of(qformer):
        x = attention(layer.self_attention, x, x, mask)
        q, text = x[:queries], x[queries:]
        if layer.cross_attention is not None and image is not None:
            q = attention(layer.cross_attention, q, image, torch.ones(queries, len(image), dtype=torch.bool))
        x = torch.cat([feed_forward(layer.query_feed_forward, q), feed_forward(layer.feed_forward, text)])
    return x[:queries], x[queries:]


def assert_same_gradients(qformer: QFormer, fast: Tensor, expected: Tensor, states: Tensor) -> None:
    """Of a weighted sum, for every parameter and the states of the images."""
    weight = torch.randn_like(expected)
    inputs = {**dict(qformer.named_parameters()), "states": states}
    found, wanted = (
        torch.autograd.grad((x * weight).sum(), list(inputs.values()), allow_unused=True, retain_graph=True)
        for x in (fast, expected)
    )
    used = 0
    for name, one, other in zip(inputs, found, wanted, strict=True):
        assert (one is None or not one.any()) == (other is None or not other.any()), name
        if one is not None and other is not None and ".k.bias" not in name:  # whose gradient is zero
            assert (one - other).norm() <= 1e-4 * other.norm() + 1e-5, name
            used += bool(other.any())
    assert used > 20


@pytest.mark.usefixtures("packed")
class TestWays:
    """Each way, texts packed and padded."""

    def test_look(self) -> None:
        qformer, states = build(), images().requires_grad_()
        found = qformer.look(qformer.image_keys(states)).states
        expected = torch.stack([slow(qformer, torch.tensor([1]), image, causal=True)[0] for image in states])
        assert_close(found, expected, rtol=1e-4, atol=1e-5)
        assert_same_gradients(qformer, found, expected, states)

    @pytest.mark.parametrize("first_only", [True, False])
    def test_text(self, first_only: bool) -> None:
        qformer, ids, layout, states = build(), texts(), rows(), images().requires_grad_()
        found = qformer.text(ids, layout, first_only=first_only)
        expected = [slow(qformer, row[:n], None)[1] for row, n in zip(ids, LENGTHS.tolist(), strict=True)]
        found = found if first_only else torch.cat(real(found, layout))
        wanted = torch.cat([x[:1] if first_only else x for x in expected])
        assert_close(found, wanted, rtol=1e-4, atol=1e-5)
        assert_same_gradients(qformer, found, wanted, states)

    @pytest.mark.parametrize("extra", [None, [1, 0], [1, 0, 0, 1]])
    def test_match(self, extra: list[int] | None) -> None:
        """Two texts of an image side by side; or rows that name their image; gradients of it from all of them."""
        qformer, ids, states = build(), texts(), images().requires_grad_()
        keys = qformer.image_keys(states)
        which = [0, 0, 1, 1] if extra is None else [0, 1][: 4 - len(extra)] + extra
        found = qformer.match(ids, rows(), keys if extra is None else keys.with_extra(torch.tensor(extra)))
        cut = zip(ids, LENGTHS.tolist(), which, strict=True)
        expected = torch.stack([slow(qformer, row[:n], states[image])[0] for row, n, image in cut])
        assert_close(found, expected, rtol=1e-4, atol=1e-5)
        assert_same_gradients(qformer, found, expected, states)

    def test_write(self) -> None:
        qformer, ids, layout, states = build(), texts(), rows(), images(4).requires_grad_()
        read = qformer.look(qformer.image_keys(states))
        found = torch.cat(real(qformer.write(ids, layout, read.cache()), layout))
        cut = zip(ids, LENGTHS.tolist(), states, strict=True)
        expected = torch.cat([slow(qformer, row[:n], image, causal=True)[1] for row, n, image in cut])
        assert_close(found, expected, rtol=1e-4, atol=1e-5)
        assert_same_gradients(qformer, found, expected, states)


def test_writing_leaves_what_was_read_as_it_is() -> None:
    qformer, ids = build(), texts()
    read = qformer.look(qformer.image_keys(images(4)))
    first = qformer.write(ids, rows(), read.cache())
    assert read.cache().length == QUERIES
    assert torch.equal(first, qformer.write(ids, rows(), read.cache()))


@torch.no_grad()
def test_steps_equal_one_pass() -> None:
    """A prompt of three tokens, then one by one; texts dropped and taken twice on the way."""
    qformer, ids = build(), texts()[1:2].repeat(3, 1)
    ids[1:] = torch.randint(1, WORDS, (2, LONGEST))
    step = QFormerStep(qformer, qformer.look(qformer.image_keys(images(3))))
    logits = [step(ids[:, :3])]
    chosen = torch.tensor([2, 0, 0])
    step.select(chosen)
    logits += [step(ids[chosen, place, None]) for place in range(3, LONGEST)]
    for count, found in enumerate(logits, 3):
        for row, origin in enumerate(range(3) if count == 3 else chosen.tolist()):
            states = slow(qformer, ids[origin, :count], images(3)[origin], causal=True)[1]
            assert_close(found[row], qformer.head(states[-1]), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_states_in_place_of_keys() -> None:
    """Few queries attend to the states of an image, which is quicker than its keys."""
    qformer = build()
    keys = qformer.keys_or_states(images(), QUERIES)
    assert not hasattr(keys, "layers")
    assert_close(qformer.look(keys).states, qformer.look(qformer.image_keys(images())).states, rtol=1e-4, atol=1e-5)


def test_without_text() -> None:
    """What a language model is shown needs none of the text network, and the rest has the same names."""
    qformer, alone = build(), build(text=False)
    names = {n for n in qformer.state_dict() if not n.startswith(("head.", "embeddings.words", "embeddings.pos"))}
    names = {n for n in names if ".feed_forward." not in n}
    assert set(alone.state_dict()) == names and "embeddings.norm.weight" in names
    alone.load_state_dict(qformer.state_dict(), strict=False)
    keys = qformer.image_keys(images())
    assert torch.equal(alone.look(keys).states, qformer.look(keys).states)
    with pytest.raises(InputError, match="without `text`"):
        alone.text(texts(), rows())


def test_queries_start_with_the_feed_forward_networks_of_texts() -> None:
    for layer in layers_of(QFormer(config())):
        assert torch.equal(layer.query_feed_forward.up.weight, layer.feed_forward.up.weight)


@pytest.mark.parametrize(("every", "crossing"), [(1, [0, 1, 2, 3]), (2, [0, 2]), (3, [0, 3])])
def test_layers_that_attend_to_images(every: int, crossing: list[int]) -> None:
    qformer = QFormer(config(cross_every=every))
    assert [i for i, layer in enumerate(layers_of(qformer)) if layer.cross_attention is not None] == crossing
    assert len(qformer.image_keys(images()).layers) == len(crossing)
    qformer.look(qformer.image_keys(images()))


def test_dropout_differs_between_rows() -> None:
    qformer = build(dropout=0.5).train()
    x = qformer._queries(2)
    assert not torch.equal(x[:QUERIES], x[QUERIES:])
