"""Analytic operation counts against torch's counter, and against the published algorithm's cost by hand."""

from collections.abc import Callable

import pytest
import torch
from helpers.tiny import keep_padding, tiny_model, tiny_text, tiny_vit
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

pytest.importorskip("transformers")

from benchmarks import flops
from benchmarks.peers_tasks import PublishedMatch, PublishedRank
from blip.evaluation import retrieval
from blip.inference.scoring import match_states
from blip.models.answer_tree import AnswerTree
from blip.models.decoding import Decoding
from blip.models.generation import generate
from blip.models.momentum import Entries, Queue, Twin, candidates
from blip.models.ranking import rank_answers
from blip.network.cross_attention import ImageKeys
from blip.network.embeddings import TextConfig
from blip.network.flops import (
    ImageTokens,
    Savings,
    head_forward,
    patches_forward,
    pretrain_parameters,
    pretrain_step,
    text_forward,
)
from blip.network.med import DecoderStep, TextTransformer
from blip.network.vit import ViTConfig

VIT, TEXT = tiny_vit(depth=3), tiny_text()
PUBLISHED = Savings(shared_keys=False, packed=False, one_token=False)
GIGA = 1e9


def fake_negatives(weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Each row's next one, so that the three ITM rows of a text have that text's lengths in sum."""
    return (torch.arange(len(weights)) + 1) % len(weights), torch.ones(len(weights), dtype=torch.bool)


@pytest.mark.parametrize(("lengths", "packed"), [([6, 6, 6], True), ([6, 3, 5], True), ([6, 3, 5], False)])
def test_counts_equal_torchs(lengths: list[int], packed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not packed:
        keep_padding(monkeypatch)
    model = tiny_model("pretrain", VIT, TEXT)
    twin, queue = Twin(model), Queue(10, 8)
    ids, images = torch.randint(1, 48, (3, max(lengths))), torch.randn(3, 3, 32, 32)
    pairs, texts = torch.arange(3), torch.tensor(lengths)
    with sdpa_kernel(SDPBackend.MATH):  # plain products, which the counter knows
        with FlopCounterMode(display=False) as counted_twin:
            image_m, text_m = twin(images, ids, texts)
        entries = Entries(image_m, text_m, pairs, pairs)
        others = candidates(entries, queue, equal_captions=False, equal_images=False)
        with FlopCounterMode(display=False) as counted_model:
            out = model(images, ids, texts, others, 0.4, draw=fake_negatives)
            (out.itc + out.itm + out.lm).backward()
    expected = pretrain_step(VIT, TEXT, lengths, embed_dim=8, queue=10, savings=Savings(packed=packed))
    assert counted_twin.get_total_flops() + counted_model.get_total_flops() == expected.total
    projections = 2 * 3 * 8 * (24 + 36)
    assert counted_twin.get_total_flops() == expected.image_twin + expected.text_twin + projections


@pytest.mark.parametrize(
    ("size", "share", "twins_share", "seen"),
    [
        (32, 0.5, 0.0, (17, 9, 17)),
        (32, 0.5, 0.5, (17, 9, 9)),
        (16, 0.0, 0.0, (5, 5, 5)),
        (16, 0.5, 0.0, (5, 3, 5)),
    ],
)
def test_counts_of_fewer_image_tokens(size: int, share: float, twins_share: float, seen: tuple) -> None:
    model = tiny_model("pretrain", VIT, TEXT)
    twin, queue = Twin(model), Queue(10, 8)
    model.image_encoder.patch_dropout.share, twin.image_encoder.patch_dropout.share = share, twins_share
    ids, images, pairs = torch.randint(1, 48, (3, 6)), torch.randn(3, 3, size, size), torch.arange(3)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        image_m, text_m = twin(images, ids, torch.tensor([6, 6, 6]))
        entries = Entries(image_m, text_m, pairs, pairs)
        others = candidates(entries, queue, equal_captions=False, equal_images=False)
        out = model(images, ids, torch.tensor([6, 6, 6]), others, 0.4, draw=fake_negatives)
        (out.itc + out.itm + out.lm).backward()
    expected = pretrain_step(VIT, TEXT, [6, 6, 6], embed_dim=8, queue=10, seen=ImageTokens(*seen))
    assert counter.get_total_flops() == expected.total


def counted(run: Callable[[], object]) -> int:
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
        run()
    return counter.get_total_flops()


def keys(module: TextTransformer, states: torch.Tensor, tokens: int | None) -> ImageKeys:
    """Keys of images, or with `tokens` their states."""
    return module.image_keys(states) if tokens is None else module.keys_or_states(states, tokens)


def test_counts_of_matching() -> None:
    """An image's texts of one length side by side, so that nothing unfolds; and the published pair."""
    model = tiny_model("retrieval", VIT, TEXT).eval()
    lengths, states = torch.tensor([5, 5, 5]), torch.randn(1, 17, 24)
    texts = retrieval.Texts(torch.randint(1, 48, (3, 5)), lengths, [[0]] * 3)

    def grouped() -> None:
        retrieval.match_texts(
            model, model.text_encoder.image_keys(states), texts, chosen=torch.arange(3), device=torch.device("cpu")
        )

    assert counted(grouped) == flops.match_grouped(VIT, TEXT, lengths.tolist(), images=1)
    peer = PublishedMatch(model.text_encoder, model.itm_head)
    ids = torch.randint(1, 48, (3, 7))
    theirs = counted(lambda: peer(ids, torch.ones_like(ids), states.expand(3, -1, -1)))
    assert theirs == 3 * flops.match_pair(VIT, TEXT, 7)


def test_counts_of_filtering() -> None:
    """Two texts an image, few enough to look at states: match logits and features."""
    model = tiny_model("retrieval", VIT, TEXT).eval()
    ids, lengths, states = torch.randint(1, 48, (6, 5)), [5] * 6, torch.randn(3, 17, 24)
    alone = 6 * text_forward(TEXT, 1, 5, longest=5, first_only=True)
    expected = alone + flops.match_grouped(VIT, TEXT, lengths, images=3, keys=False) + 2 * 8 * (3 * 24 + 6 * 36)
    assert counted(lambda: match_states(model, states, ids, lengths=torch.tensor(lengths), enc_id=49)) == expected


@pytest.mark.parametrize("tokens", [None, 1], ids=["keys", "states"])
def test_counts_of_writing(tokens: int | None) -> None:
    model = tiny_model("caption", VIT, TEXT).eval()
    states, first = torch.randn(2, 17, 24), torch.full((2, 1), 48)

    def write() -> None:
        decoder = model.text_decoder
        step = DecoderStep(decoder, keys(decoder, states, tokens))
        generate(step, first, Decoding(max_new_tokens=5, min_new_tokens=5), end_id=2, pad_id=0)

    assert counted(write) == flops.write(VIT, TEXT, rows=2, new=5, key_sets=0 if tokens else 2)


@pytest.mark.parametrize("tokens", [None, 1], ids=["keys", "states"])
def test_counts_of_ranking(tokens: int | None) -> None:
    model = tiny_model("vqa", VIT, TEXT).eval()
    ids, lengths, image_states = torch.randint(1, 48, (1, 5)), torch.tensor([5]), torch.randn(1, 17, 24)
    read = counted(lambda: model.question_states(keys(model.text_encoder, image_states, tokens), ids, lengths))
    assert read == flops.read_questions(VIT, TEXT, [5], keys=tokens is None)
    states, answers = torch.randn(1, 5, 36), [[7], [7, 8], [7, 9], [7, 9, 10]]
    tree = AnswerTree(answers, 48, 2)
    ranked = counted(lambda: rank_answers(model.text_decoder, model.answer_keys(states, lengths), tree))
    answer = model.text_decoder.config
    assert ranked == flops.rank_tree(answer, nodes=4, question=5, row=5)  # one row of 4 nodes, which see [DEC] too
    peer = PublishedRank(model)
    framed = torch.tensor([[48, 7, 2, 0], [48, 7, 8, 2]])
    theirs = counted(lambda: peer.rank(states, framed, k=2))
    assert theirs == flops.rank_padded(answer, k=2, longest=4, question=5)


@pytest.mark.parametrize(
    ("savings", "length", "total"),
    [
        (PUBLISHED, 30, 306.8),
        (Savings(packed=False, one_token=False), 30, 256.6),
        (Savings(one_token=False), 20, 223.3),
        (Savings(), 20, 217.4),
    ],
    ids=["published", "shared-keys", "packed", "one-token"],
)
def test_costs_of_vit_b(savings: Savings, length: int, total: float) -> None:
    """The design's table: GFLOP a sample at 224 px. It counts a gradient of the pixels, which nobody computes, and
    without padding it counts the word head for the 19 tokens that predict one, where we compute all 20."""
    cost = pretrain_step(ViTConfig(), TextConfig(), [length] * 8, savings=savings)
    per_sample = cost.total / 8 + patches_forward(ViTConfig())
    per_sample -= 3 * head_forward(TextConfig(), 1) * savings.packed
    assert per_sample / GIGA == pytest.approx(total, abs=0.051)


def test_costs_of_the_parts() -> None:
    cost = pretrain_step(ViTConfig(), TextConfig(), [30], savings=PUBLISHED)
    parts = [cost.image + patches_forward(ViTConfig()), cost.image_twin, cost.text + cost.text_twin]
    parts += [cost.keys, cost.match, cost.language]
    assert [part / GIGA for part in parts] == pytest.approx([105.4, 35.1, 20.5, 66.9, 55.8, 22.9], abs=0.051)


def test_parameter_counts() -> None:
    model = tiny_model("pretrain", VIT, TEXT)
    counts = pretrain_parameters(VIT, TEXT, embed_dim=8)
    assert counts.total == sum(p.numel() for p in model.parameters())
    assert counts.image_encoder == sum(p.numel() for p in model.image_encoder.parameters())
    assert counts.text_encoder == sum(p.numel() for p in model.text_encoder.parameters())
    twin = sum(p.numel() for p in Twin(model).parameters())
    match_head_and_temperature = 36 * 2 + 2 + 1
    assert twin == counts.total - counts.decoder - match_head_and_temperature
