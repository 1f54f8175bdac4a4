"""Ranking answers as a token tree equals scoring each answer alone, padded or not, with the question repeated."""

from dataclasses import replace

import pytest
import torch
from helpers.tiny import spread, tiny_text
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from blip.hardware.profile import PROFILES
from blip.models.answer_tree import AnswerTree, TreeRows
from blip.models.ranking import rank_answers
from blip.network.cross_attention import ProjectedKeys
from blip.network.med import TextDecoder
from blip.network.packing import Rows

DEC, END, WORDS = 48, 2, 50
CPU = torch.device("cpu")
ANSWERS = [
    [5],
    [5, 6],
    [5, 6, 7],
    [5, 8],
    [9, 6],
    [9],
    [10, 11, 12, 13, 14],
    [10, 11, 3],
    [15],
    [16, 5],
    [17, 6, 7],
    [5],
]
QUESTION_LENGTHS = torch.tensor([4, 7, 5])


def build() -> TextDecoder:
    """Weights large enough for answers to differ."""
    return spread(TextDecoder(tiny_text(vocab_size=WORDS, layers=3, image_width=20)).eval(), std=0.3)


def questions() -> Tensor:
    return torch.randn(3, 7, 20)


def question_keys(decoder: TextDecoder, states: Tensor) -> ProjectedKeys:
    return decoder.image_keys(states, torch.arange(7) < QUESTION_LENGTHS[:, None])


@torch.no_grad()
def alone(decoder: TextDecoder, states: Tensor, answer: list[int], smoothing: float) -> float:
    """The score of one answer to one question without padding."""
    ids, keys = torch.tensor([[DEC, *answer]]), decoder.image_keys(states[None])
    states = decoder(ids, Rows(torch.tensor([ids.shape[1]]), ids.shape[1], CPU), keys)
    target = torch.tensor([*answer, END])
    return -F.cross_entropy(decoder.head(states), target, reduction="sum", label_smoothing=smoothing).item()


@torch.no_grad()
def repeated(decoder: TextDecoder, states: Tensor, answers: list[list[int]], smoothing: float) -> Tensor:
    """Scores (n,) of padded answers to one question whose states are repeated for each of them."""
    lengths = torch.tensor([len(a) + 1 for a in answers])
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor([DEC, *a, END]) for a in answers], batch_first=True)
    rows = Rows(lengths, ids.shape[1] - 1, CPU, packed=False)
    logits = rows.unpack(
        decoder.head(decoder(ids[:, :-1], rows, decoder.image_keys(states.expand(len(answers), -1, -1))))
    )
    targets = ids[:, 1:].masked_fill(torch.arange(ids.shape[1] - 1) >= lengths[:, None], -100)
    return -F.cross_entropy(logits.transpose(1, 2), targets, reduction="none", label_smoothing=smoothing).sum(dim=1)


def first_probabilities(decoder: TextDecoder, states: Tensor) -> Tensor:
    with torch.no_grad():
        last = decoder(torch.tensor([[DEC]]), Rows(torch.tensor([1]), 1, CPU), decoder.image_keys(states[None]))
        return decoder.head(last)[0].softmax(dim=0)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("k", [1, 4, 8, 12, 1000])
def test_the_tree_equals_answers_alone_and_repeated_states(k: int, smoothing: float) -> None:
    decoder, states = build(), questions()
    keys, tree = question_keys(decoder, states), AnswerTree(ANSWERS, DEC, END)
    ranked = rank_answers(decoder, keys, tree, k=k, label_smoothing=smoothing)
    assert ranked.answers.shape == (3, min(k, len(ANSWERS)))
    for question, length in enumerate(QUESTION_LENGTHS.tolist()):
        own, chosen = states[question, :length], ranked.answers[question].tolist()
        assert len(set(chosen)) == len(chosen)
        expected = [alone(decoder, own, ANSWERS[a], smoothing) for a in chosen]
        assert_close(ranked.scores[question], torch.tensor(expected), rtol=0, atol=1e-5)
        slow = repeated(decoder, own, [ANSWERS[a] for a in chosen], smoothing)
        assert_close(ranked.scores[question], slow, rtol=0, atol=1e-5)
        assert_close(ranked.probabilities[question], slow.softmax(dim=0), rtol=0, atol=1e-5)
        assert (ranked.scores[question].diff() <= 0).all()
        likely = first_probabilities(decoder, own)[[a[0] for a in ANSWERS]]
        least = min(likely[a] for a in chosen)
        assert all(likely[a] <= least + 1e-6 for a in range(len(ANSWERS)) if a not in chosen)


@pytest.mark.parametrize("together", [1, 3, 100])
def test_parts_change_nothing(together: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nodes, and logits, may be computed in any number of parts; so may questions."""
    decoder, states = build(), questions()
    keys, tree = question_keys(decoder, states), AnswerTree(ANSWERS, DEC, END)
    whole = rank_answers(decoder, keys, tree)
    parted = replace(PROFILES["cpu"], nodes_at_once=together, logits_at_once=together)
    monkeypatch.setitem(PROFILES, "cpu", parted)
    parts = rank_answers(decoder, keys, tree)
    assert torch.equal(parts.answers, whole.answers)
    assert_close(parts.scores, whole.scores, rtol=0, atol=1e-5)
    for question in range(3):
        one = rank_answers(decoder, keys.select(torch.tensor([question])), tree)
        assert torch.equal(one.answers[0], whole.answers[question])
        assert_close(one.scores[0], whole.scores[question], rtol=0, atol=1e-5)


@pytest.mark.parametrize("room", [1, 2, 6, 100])
def test_rows_hold_whole_branches(room: int) -> None:
    tree = AnswerTree(ANSWERS, DEC, END)
    chosen = torch.tensor([6, 2, 4, 3])
    rows = tree.rows_of(chosen, room)
    spelled = {tuple(tree.tokens[tree.paths[node][1 : tree.depths[node] + 1]].tolist()) for row in rows for node in row}
    assert spelled == {tuple(ANSWERS[a][:n]) for a in chosen for n in range(1, len(ANSWERS[a]) + 1)}
    firsts = [{tree.tokens[tree.paths[node, 1]].item() for node in row} for row in rows]
    assert sum(map(len, firsts)) == 3, "a branch is in one row"
    assert all(len(row) <= room or len(first) == 1 for row, first in zip(rows, firsts, strict=True))
    assert sum(map(len, rows)) == 11  # 3 beginnings of 5.., 5 of 10.., 2 of 9.., and 5 8


def test_equal_beginnings_are_one_node() -> None:
    tree = AnswerTree(ANSWERS, DEC, END)
    beginnings = {tuple(a[:n]) for a in ANSWERS for n in range(len(a) + 1)}
    assert len(tree.tokens) == len(beginnings)
    assert len(tree) == len(ANSWERS)
    assert tree.last[0] == tree.last[11], "an answer may be in the list twice"


def test_the_drawing_of_the_tree_is_true() -> None:
    """The example in the docstring of `answer_tree`, with the words numbered in the order of the alphabet."""
    left, lobe, lower, lung, no, right = 11, 13, 12, 14, 15, 16
    tree = AnswerTree([[no], [left, lung], [left, lower, lobe], [right, lung]], DEC, END)
    assert tree.tokens.tolist() == [DEC, left, lower, lobe, lung, no, right, lung]
    assert tree.depths.tolist() == [0, 1, 2, 3, 2, 1, 1, 2]
    rows = tree.rows_of(torch.arange(4), room=5)
    assert [row.tolist() for row in rows] == [[1, 2, 3, 4, 5], [6, 7]]
    layout = TreeRows(tree, rows, CPU)
    assert layout.pack(layout.nodes).tolist() == [1, 2, 3, 4, 5, 6, 7]
    assert layout.parents.tolist() == [-1, 0, 1, 0, -1, -1, 5]
    mask, _ = layout.attention_mask(causal=True)
    drawn = ["xx....", "xxx...", "xxxx..", "xx..x.", "x....x"]
    assert ["".join("x" if seen else "." for seen in row) for row in mask[0, 0].tolist()] == drawn
    assert mask[1, 0].int().tolist()[:2] == [[1, 1, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0]]


BAD = {
    "empty list": ([], "the list of answers is empty"),
    "no tokens": ([[5], [], [6]], "answer 2 of the list has no token: leave it out"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_lists_are_named(case: str) -> None:
    answers, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        AnswerTree(answers, DEC, END)


@pytest.mark.parametrize("k", [0, -1])
def test_k_is_at_least_one(k: int) -> None:
    decoder = build()
    with pytest.raises(ValueError, match=f"k is {k}; at least one answer"):
        rank_answers(decoder, question_keys(decoder, questions()), AnswerTree(ANSWERS, DEC, END), k=k)
