"""Which answer of a list does a VQA model find likeliest? (Li et al. 2021, section 5; the published `rank_answer`.)

The k answers whose first token is likeliest are scored whole: the sum of the log-probabilities of their tokens, the
end token included. Their tokens form a tree under `[DEC]`: answers that begin alike share what they begin with, so that
each different beginning is computed once, and the end token, which predicts nothing, never enters. Branches of the tree
do not see one another: they are laid out in rows of some 64 tokens, those of several questions in one pass.

Shapes: B questions, A answers of the list, k of them scored, n nodes of the list's tree, M tokens of one question's
tree, R rows, T tokens of the longest row, P tokens in memory, L tokens of the longest answer, V words.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from blip.errors import InputError
from blip.network.med import TextDecoder
from blip.network.packing import Cache, ImageKeys, Keys, Rows


class Encoder(Protocol):
    """What turns texts into tokens."""

    def encode(self, texts: list[str], max_tokens: int) -> list[list[int]]:
        """Texts -> `[CLS] ... [SEP]` of each."""


@dataclass
class Ranked:
    """The k best-beginning answers of each question, the likeliest first."""

    answers: Tensor  # (B, k) numbers in the list
    scores: Tensor  # (B, k) log-probability of each, label smoothing included where asked for
    probabilities: Tensor  # (B, k) soft-max of the scores over the k


def distinct_answers(tokenizer: Encoder, answers: Sequence[str], max_tokens: int) -> tuple[list[str], list[list[int]]]:
    """Answers and their tokens, without special ones: those of no token are left out, and of equal tokens the first
    spelling stands. `Yes` and `yes` are one answer to an uncased model, and would share its probability.
    """
    encoded = tokenizer.encode(list(answers), max_tokens) if answers else []
    found: dict[tuple[int, ...], str] = {}
    for answer, ids in zip(answers, encoded, strict=True):
        if len(ids) > 2:
            found.setdefault(tuple(ids[1:-1]), answer)
    return list(found.values()), [list(ids) for ids in found]


class AnswerTree:
    """The tokens of a list of answers as a tree under `[DEC]`: a node for each different beginning.

    Nodes are numbered depth first: `[DEC]` is 0, and what stands under a node follows it.
    """

    def __init__(self, answers: Sequence[Sequence[int]], dec_id: int, end_id: int):
        """`answers`: tokens of each without special ones, at least one each."""
        if not answers:
            raise InputError("the list of answers is empty")
        for number, tokens in enumerate(answers):
            if not tokens:
                raise InputError(f"answer {number + 1} of the list has no token: leave it out")
        beginnings = sorted({tuple(answer[:depth]) for answer in answers for depth in range(len(answer) + 1)})
        nodes = {beginning: node for node, beginning in enumerate(beginnings)}
        longest = max(len(beginning) for beginning in beginnings)
        paths = [[nodes[b[:depth]] for depth in range(len(b) + 1)] + [-1] * (longest - len(b)) for b in beginnings]
        self.end_id = end_id
        self.tokens = torch.tensor([b[-1] if b else dec_id for b in beginnings])  # (n,)
        self.depths = torch.tensor([len(b) for b in beginnings])  # (n,)
        self.paths = torch.tensor(paths)  # (n, L+1) the nodes from `[DEC]` to each, itself included; then -1
        self.last = torch.tensor([nodes[tuple(answer)] for answer in answers])  # (A,) where each answer ends
        self.first = torch.tensor([answer[0] for answer in answers])  # (A,) its first token

    def to(self, device: torch.device) -> "AnswerTree":
        """Moves the tree, in place."""
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(self, name, value.to(device))
        return self

    def __len__(self) -> int:
        return len(self.last)

    def nodes_of(self, chosen: Tensor) -> Tensor:
        """The nodes (M,) of the answers `chosen` (k,), depth first; the first one is `[DEC]`."""
        nodes = self.paths[self.last[chosen]].unique()
        return nodes[nodes >= 0]

    def rows_of(self, chosen: Tensor, room: int = 64) -> list[Tensor]:
        """The same without `[DEC]` in rows of up to `room` nodes, a longer branch alone; no row sees another."""
        nodes = self.nodes_of(chosen)[1:]
        _, branches = self.paths[nodes, 1].unique_consecutive(return_counts=True)
        sizes = [0]
        for nodes_of_branch in branches.tolist():
            if sizes[-1] and sizes[-1] + nodes_of_branch > room:
                sizes.append(0)
            sizes[-1] += nodes_of_branch
        return list(nodes.split(sizes))


class TreeRows(Rows):
    """Rows of nodes that see what leads to them, in the place of texts whose tokens see what stands before them.

    `[DEC]` is in none of them: its keys, the same for all rows of a question, come from a cache.
    """

    def __init__(self, tree: AnswerTree, rows: list[Tensor]):
        lengths = torch.tensor([len(row) for row in rows])
        super().__init__(lengths, int(lengths.max()), tree.tokens.device)
        padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-1)  # (R, T)
        self.nodes = padded.clamp(min=0)
        self.depths = tree.depths[self.nodes]
        paths = tree.paths[self.nodes]  # (R, T, L+1)
        # a node sees another one that stands on its own path, at that one's depth; padding sees `[DEC]` alone
        passed = paths.gather(2, self.depths[:, None].expand(-1, self.longest, -1))  # (R, T, T)
        self.visible = F.pad(passed == padded[:, None], (1, 0), value=True)[:, None]  # (R, 1, T, 1+T)
        parents = paths.gather(2, (self.depths - 1).clamp(min=0)[..., None])[..., 0]  # (R, T)
        # a row's nodes ascend, so that its parents can be looked up in it
        places = torch.searchsorted(padded.masked_fill(padded < 0, len(tree.tokens)), parents) + self.first[:, None]
        self.parents = self.pack(places.masked_fill(parents == 0, -1))  # (P,) where in memory each node's parent stands

    def sees(self, causal: bool) -> tuple[Tensor, bool]:
        return self.visible, False

    def positions(self, ids: Tensor, past: int = 0) -> Tensor:
        return self.depths


class Past(Cache):
    """What came before some rows, and stays as it is while they are read."""

    def __init__(self, cache: Cache, rows: Tensor):
        """The texts `rows` (R,) of a cache."""
        super().__init__()
        self.layers = dict(cache.layers)
        self.select(rows)

    def extend(self, layer: int, k: Tensor, v: Tensor) -> Keys:
        past_k, past_v = self.layers[layer]
        return torch.cat([past_k, k], dim=2), torch.cat([past_v, v], dim=2)


NODES_AT_ONCE = 2048  # bounds memory; far more than a matrix product needs to be quick
WORDS_AT_ONCE = 256  # nodes whose logits exist at a time: of BERT's words 31 MB, which stays in a cache


@torch.no_grad()
def rank_answers(
    decoder: TextDecoder, keys: ImageKeys, tree: AnswerTree, k: int = 128, label_smoothing: float = 0.1
) -> Ranked:
    """Ranks the answers of a list for each question of `keys`; k above the list's length means all of it.

    Published scores include the label smoothing of training; 0 gives plain log-probabilities.
    """
    if k < 1:
        raise InputError(f"k is {k}; at least one answer has to be scored")
    count, device = len(keys), keys.device
    tree.to(device)
    start = Cache()
    logits = decoder.step(tree.tokens[:1, None].expand(count, 1), keys, start)  # (B, V), after [DEC] alone
    chosen = logits.float().softmax(dim=1)[:, tree.first].topk(min(k, len(tree)), dim=1).indices  # (B, k)
    # log-probability of each node's token after its parent, and of the end after each node
    tokens, ends = torch.zeros(2, count, len(tree.tokens), device=device)  # (B, n) each
    rows = [(question, row) for question in range(count) for row in tree.rows_of(chosen[question])]
    for part in _parts(rows):
        owner = torch.tensor([question for question, _ in part], device=device)  # (R,)
        layout = TreeRows(tree, [row for _, row in part])
        ids = tree.tokens[layout.nodes]  # (R, T)
        seen = ImageKeys(keys.layers, extra=owner, mask=keys.mask)
        states = decoder(ids, layout, seen, cache=Past(start, owner))  # (P, D)
        places = layout.pack(owner[:, None].expand_as(ids)), layout.pack(layout.nodes)
        tokens[places], ends[places] = _log_probs(
            decoder, states, layout, layout.pack(ids), tree.end_id, label_smoothing
        )
    values, mean = _log_soft_max(logits)
    tokens[:, tree.depths == 1] = torch.lerp(values[:, tree.tokens[tree.depths == 1]], mean[:, None], label_smoothing)
    last = tree.last[chosen]  # (B, k)
    paths = tree.paths[last].flatten(1)  # (B, k*(L+1))
    passed = tokens.gather(1, paths.clamp(min=0)).masked_fill(paths < 0, 0).unflatten(1, (last.shape[1], -1))
    scores = passed.sum(dim=2) + ends.gather(1, last)
    ordered, order = scores.sort(dim=1, descending=True, stable=True)
    return Ranked(chosen.gather(1, order), ordered, ordered.softmax(dim=1))


def _parts(rows: list[tuple[int, Tensor]]) -> list[list[tuple[int, Tensor]]]:
    """Rows together as long as they are NODES_AT_ONCE nodes or fewer."""
    parts: list[list[tuple[int, Tensor]]] = [[]]
    nodes = 0
    for row in rows:
        nodes += len(row[1])
        if parts[-1] and nodes > NODES_AT_ONCE:
            parts.append([])
            nodes = len(row[1])
        parts[-1].append(row)
    return parts


def _log_probs(
    decoder: TextDecoder, states: Tensor, layout: TreeRows, ids: Tensor, end_id: int, smoothing: float
) -> tuple[Tensor, Tensor]:
    """Log-probabilities (P,) of each node's token after its parent, 0 after `[DEC]`, and (P,) of the end after each.

    states (P, D) and tokens (P,) of the nodes.
    """
    tokens, ends = torch.zeros(2, len(states), device=states.device)
    parents, order = layout.parents.sort(stable=True)  # whose logits are made when, and who asks for them
    for begin in range(0, len(states), WORDS_AT_ONCE):
        values, mean = _log_soft_max(decoder.head(states[begin : begin + WORDS_AT_ONCE]))
        ends[begin : begin + len(values)] = torch.lerp(values[:, end_id], mean, smoothing)
        first, last = torch.searchsorted(
            parents, torch.tensor([begin, begin + len(values)], device=ids.device)
        ).tolist()
        places, children = parents[first:last] - begin, order[first:last]
        tokens[children] = torch.lerp(values[places, ids[children]], mean[places], smoothing)
    return tokens, ends


def _log_soft_max(logits: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probabilities (p, V) of all words, and the mean of a row (p,), which label smoothing mixes in."""
    values = logits.float().log_softmax(dim=1)  # on a CPU, logsumexp takes twenty times as long
    return values, values.mean(dim=1)
