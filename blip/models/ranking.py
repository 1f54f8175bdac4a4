"""The likeliest answer of a list to a question (Li et al. 2021, section 5; the published `rank_answer`).

The k answers whose first token is likeliest are scored whole: the sum of the log-probabilities of their tokens, the
end token included. Answers that begin alike share what they begin with: `answer_tree.py` has a drawing of the tree of
their tokens. The rows of several questions are read in one pass.

Shapes: B questions, A answers of the list, k of them scored, n nodes of the list's tree, R rows of nodes, T nodes of
the longest row, P nodes in memory, p of them at a time, L tokens of the longest answer, D width, V words.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from blip.errors import InputError
from blip.hardware.profile import profile_of
from blip.models.answer_tree import AnswerTree, RootCache, TreeRows
from blip.network.cross_attention import ProjectedKeys
from blip.network.med import TextDecoder
from blip.network.packing import Cache


class Encoder(Protocol):
    """A tokenizer, of which this much is needed."""

    def encode(self, texts: list[str], max_tokens: int) -> list[list[int]]:
        """Texts -> `[CLS] ... [SEP]` of each."""


@dataclass
class Ranked:
    """The k answers of each question whose first token is likeliest, the likeliest answer first."""

    answers: Tensor  # (B, k) numbers in the list
    scores: Tensor  # (B, k) log-probability of each, label smoothing included where asked for
    probabilities: Tensor  # (B, k) soft-max of the scores over the k


def distinct_answers(tokenizer: Encoder, answers: Sequence[str], max_tokens: int) -> tuple[list[str], list[list[int]]]:
    """Answers and their tokens, without special tokens. Answers without a token are left out.

    Of several answers with equal tokens the first one stays: `Yes` and `yes` are one answer to an uncased model, and
    would share its probability.
    """
    encoded = tokenizer.encode(list(answers), max_tokens) if answers else []
    spelling: dict[tuple[int, ...], str] = {}  # of the tokens of each answer
    for answer, ids in zip(answers, encoded, strict=True):
        if len(ids) > 2:
            spelling.setdefault(tuple(ids[1:-1]), answer)
    return list(spelling.values()), [list(tokens) for tokens in spelling]


@torch.no_grad()
def rank_answers(
    decoder: TextDecoder, keys: ProjectedKeys, tree: AnswerTree, *, k: int = 128, label_smoothing: float = 0.1
) -> Ranked:
    """Ranks the answers of a list for each question.

    A GPU is waited for once, to learn the chosen answers: the rows of their nodes are laid out on the CPU.

    Args:
        decoder: of answers, see `VqaModel`.
        keys: of the questions' states, see `VqaModel.question_keys`.
        tree: the list of answers.
        k: answers to score; above the list's length it means all of the list.
        label_smoothing: mixed into the scores. Published scores include that of training; 0 gives log-probabilities.

    Raises:
        InputError: k is below 1.
    """
    if k < 1:
        raise InputError(f"k is {k}; at least one answer has to be scored")
    count, device, profile = len(keys), keys.device, profile_of(keys.device)
    on_device = tree.on(device)
    start = Cache()
    logits = decoder.step(on_device.tokens[:1, None].expand(count, 1), keys, start)  # (B, V), after [DEC] alone
    chosen = logits.float().softmax(dim=1)[:, on_device.first].topk(min(k, len(tree)), dim=1).indices  # (B, k)
    # log-probability of each node's token after its parent, and of the end after each node
    tokens, ends = torch.zeros(2, count, len(tree.tokens), device=device)  # (B, n) each
    rows = [(question, row) for question, answers in enumerate(chosen.cpu()) for row in tree.rows_of(answers)]
    for part in _parts(rows, profile.nodes_at_once):
        owner = torch.tensor([question for question, _ in part])  # (R,)
        nodes = TreeRows(tree, [row for _, row in part], device)
        ids = on_device.tokens[nodes.nodes]  # (R, T)
        there = owner.to(device, non_blocking=True)
        states = decoder(ids, nodes, keys.with_extra(there), cache=RootCache(start, there))  # (P, D)
        places = nodes.pack(there[:, None].expand_as(ids)), nodes.pack(nodes.nodes)
        tokens[places], ends[places] = _log_probs(
            decoder, states, nodes.parents, ids=nodes.pack(ids), end_id=tree.end_id, smoothing=label_smoothing
        )
    values, mean = _log_soft_max(logits)
    first = on_device.first_nodes
    tokens[:, first] = torch.lerp(values[:, on_device.tokens[first]], mean[:, None], label_smoothing)
    last = on_device.last[chosen]  # (B, k)
    paths = on_device.paths[last].flatten(1)  # (B, k*(L+1))
    passed = tokens.gather(1, paths.clamp(min=0)).masked_fill(paths < 0, 0).unflatten(1, (last.shape[1], -1))
    scores = passed.sum(dim=2) + ends.gather(1, last)
    ordered, order = scores.sort(dim=1, descending=True, stable=True)
    return Ranked(chosen.gather(1, order), ordered, ordered.softmax(dim=1))


def _parts(rows: list[tuple[int, Tensor]], most: int) -> list[list[tuple[int, Tensor]]]:
    """Rows, with the question of each, in parts of up to `most` nodes; a longer row is a part alone."""
    parts: list[list[tuple[int, Tensor]]] = [[]]
    nodes = 0
    for row in rows:
        nodes += len(row[1])
        if parts[-1] and nodes > most:
            parts.append([])
            nodes = len(row[1])
        parts[-1].append(row)
    return parts


def _log_probs(
    decoder: TextDecoder, states: Tensor, parents: Tensor, *, ids: Tensor, end_id: int, smoothing: float
) -> tuple[Tensor, Tensor]:
    """Log-probabilities (P,) of each node's token after its parent, 0 after `[DEC]`, and (P,) of the end after each.

    states (P, D), parents' places in memory (P,), on the CPU, and tokens (P,) of the nodes.
    """
    tokens, ends = torch.zeros(2, len(states), device=states.device)
    size = profile_of(states.device).logits_at_once
    parents, order = parents.sort(stable=True)  # logits exist for a few nodes at a time: their children stand together
    bounds = torch.searchsorted(parents, torch.arange(0, len(states) + size, size)).tolist()
    parents, order = (x.to(states.device, non_blocking=True) for x in (parents, order))
    for number, begin in enumerate(range(0, len(states), size)):
        values, mean = _log_soft_max(decoder.head(states[begin : begin + size]))
        ends[begin : begin + len(values)] = torch.lerp(values[:, end_id], mean, smoothing)
        family = slice(bounds[number], bounds[number + 1])
        places, children = parents[family] - begin, order[family]
        tokens[children] = torch.lerp(values[places, ids[children]], mean[places], smoothing)
    return tokens, ends


def _log_soft_max(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (p, V) -> log-probabilities (p, V) and the mean of each row (p,), which label smoothing mixes in."""
    values = logits.float().log_softmax(dim=1)  # on a CPU, logsumexp takes twenty times as long
    return values, values.mean(dim=1)
