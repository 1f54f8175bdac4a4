"""Which answer of a list does a VQA model find likeliest? (Li et al. 2021, section 5; the published `rank_answer`.)

The k answers whose first token is likeliest are scored whole: the sum of the log-probabilities of their tokens, the end
token included. Their tokens form a tree, so that answers that begin alike share what they begin with: each different
beginning is computed once, and the end token, which predicts nothing, never enters. All k lie on the query axis, so the
question's keys are not repeated either.

Shapes: B questions, A answers of the list, k of them scored, M tokens of a tree, L tokens of an answer, V words.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from blip.med import TextDecoder
from blip.rows import Cache, ImageKeys


@dataclass
class Ranked:
    """The k best-beginning answers of each question, the likeliest first."""

    answers: Tensor  # (B, k) numbers in the list
    scores: Tensor  # (B, k) log-probability of each, label smoothing included where asked for
    probabilities: Tensor  # (B, k) soft-max of the scores over the k


class AnswerTree:
    """The tokens of a list of answers as a tree under `[DEC]`: a node for each different beginning."""

    def __init__(self, answers: Sequence[Sequence[int]], dec_id: int, end_id: int):
        """`answers`: tokens of each without special ones, at least one each."""
        if not answers:
            raise ValueError("the list of answers is empty")
        for number, tokens in enumerate(answers):
            if not tokens:
                raise ValueError(f"answer {number + 1} of the list has no token: leave it out")
        nodes: dict[tuple[int, ...], int] = {(): 0}  # beginning -> node, parents before children
        tokens, parents, depths = [dec_id], [-1], [0]
        longest = max(len(a) for a in answers)
        # the node that predicts each token of an answer, and that token; the end is predicted by the last node
        self.predictors = torch.zeros(len(answers), longest + 1, dtype=torch.long)
        self.targets = torch.full((len(answers), longest + 1), -1)
        for number, answer in enumerate(answers):
            for depth in range(len(answer) + 1):
                node = nodes[tuple(answer[:depth])]
                self.predictors[number, depth] = node
                self.targets[number, depth] = answer[depth] if depth < len(answer) else end_id
                begun = tuple(answer[: depth + 1])
                if depth < len(answer) and begun not in nodes:
                    nodes[begun] = len(tokens)
                    tokens.append(answer[depth])
                    parents.append(node)
                    depths.append(depth + 1)
        self.tokens, self.depths = torch.tensor(tokens), torch.tensor(depths)
        self.first = torch.tensor([a[0] for a in answers])
        self.ancestors = torch.eye(len(tokens), dtype=torch.bool)  # (nodes, nodes), itself included
        for node, parent in enumerate(parents):
            if parent >= 0:
                self.ancestors[node] |= self.ancestors[parent]

    def to(self, device: torch.device) -> "AnswerTree":
        """Moves the tree, in place."""
        for name, value in vars(self).items():
            setattr(self, name, value.to(device))
        return self

    def __len__(self) -> int:
        return len(self.first)


class TreeRows:
    """The nodes of one tree as a row of tokens, each of which sees its ancestors: the form of `rows.Rows`."""

    def __init__(self, ancestors: Tensor, depths: Tensor):
        self.ancestors, self.depths = ancestors, depths

    def pack(self, x: Tensor) -> Tensor:
        return x.flatten(0, 1)

    def unpack(self, x: Tensor) -> Tensor:
        return x.unsqueeze(0)

    def sees(self, causal: bool) -> tuple[Tensor, bool]:
        return self.ancestors[None, None], False

    def positions(self, ids: Tensor, past: int = 0) -> Tensor:
        return self.depths[None]


@torch.no_grad()
def rank_answers(
    decoder: TextDecoder, keys: ImageKeys, tree: AnswerTree, k: int = 128, label_smoothing: float = 0.1
) -> Ranked:
    """Ranks the answers of a list for each question of `keys`; k above the list's length means all of it.

    Published scores include the label smoothing of training; 0 gives plain log-probabilities.
    """
    if k < 1:
        raise ValueError(f"k is {k}; at least one answer has to be scored")
    count, device = keys.layers[0][0].shape[0], keys.layers[0][0].device
    tree.to(device)
    logits = decoder.step(tree.tokens[:1, None].expand(count, 1), keys, Cache())  # (B, V), after [DEC] alone
    first = logits.float().softmax(dim=1)[:, tree.first]  # (B, A)
    chosen = first.topk(min(k, len(tree)), dim=1).indices  # (B, k)
    scores = [
        _score(decoder, keys.select(torch.tensor([b], device=device)), tree, chosen[b], label_smoothing)
        for b in range(count)
    ]
    ordered, order = torch.stack(scores).sort(dim=1, descending=True, stable=True)
    return Ranked(chosen.gather(1, order), ordered, ordered.softmax(dim=1))


def _score(decoder: TextDecoder, keys: ImageKeys, tree: AnswerTree, chosen: Tensor, smoothing: float) -> Tensor:
    """The log-probabilities (k,) of the answers `chosen` (k,) to one question."""
    predictors, targets = tree.predictors[chosen], tree.targets[chosen]  # (k, L)
    real = targets >= 0
    nodes = predictors[real].unique()  # (M,), parents before children
    rows = TreeRows(tree.ancestors[nodes][:, nodes], tree.depths[nodes])
    states = decoder(tree.tokens[nodes][None], rows, keys)  # (M, D)
    logits = decoder.head(states).float()  # (M, V)
    places = torch.searchsorted(nodes, predictors[real])
    total = logits.logsumexp(dim=1)
    right = logits[places, targets[real]] - total[places]
    evenly = (logits.mean(dim=1) - total)[places]  # what smoothing mixes in: the mean log-probability of all words
    values = (1 - smoothing) * right + smoothing * evenly
    return torch.zeros(targets.shape, device=values.device).masked_scatter(real, values).sum(dim=1)
