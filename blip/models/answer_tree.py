"""A list of answers as a tree of tokens, and how parts of the tree lie in memory for the answer decoder.

Answers that begin alike share the tokens with which they begin, so that each different beginning is computed once. The
end token, after which nothing is predicted, is not in the tree. For the answers `no`, `left lung`, `left lower lobe`
and `right lung`, with the number of each node:

                       [DEC] 0
             ____________|______________
            |            |              |
         left 1         no 5         right 6        depth 1
         ___|___                        |
        |       |                       |
     lower 2  lung 4                 lung 7         depth 2
        |
     lobe 3                                         depth 3

Nodes are numbered depth first: what stands under a node follows it. The branches under `[DEC]` are laid out in rows of
up to 64 nodes, here of up to 5, and several rows are read in one pass as if they were texts. A node attends to the
nodes on its own path and to no other one. `[DEC]`, the same for all rows of a question, is in no row: it is read first,
and its keys come from a cache. In memory, the nodes of a row follow one another, and padding is left out:

    row 0:   1 left   2 lower   3 lobe   4 lung   5 no             attention of row 0 (x: attends)
    row 1:   6 right  7 lung    -        -        -                         [DEC]  1  2  3  4  5
                                                                   1 left     x    x
    memory:  1 2 3 4 5 6 7     (P = 7 of R*T = 10)                 2 lower    x    x  x
    parents: - 0 1 0 - - 5     (places in memory)                  3 lobe     x    x  x  x
                                                                   4 lung     x    x        x
                                                                   5 no       x                x

A token's position is the depth of its node, so that each node has the state that it has in its answer alone.

Shapes: A answers of the list, k of them chosen, n nodes of the list's tree, M nodes of the chosen answers, R rows,
T nodes of the longest row, P nodes in memory, L tokens of the longest answer, H heads, d head width.
"""

from collections.abc import Sequence
from copy import copy

import torch
from torch import Tensor
from torch.nn import functional as F

from blip.errors import InputError
from blip.network.packing import Cache, Keys, Rows

ROOM = 64  # nodes of a row; attention within a row costs their square, and shorter rows leave more padding


class AnswerTree:
    """The tokens of a list of answers as a tree under `[DEC]`: a node for each different beginning.

    It is on the CPU, where rows of nodes are planned; `on` returns a copy on a device.
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
        self.first_nodes = (self.depths == 1).nonzero().squeeze(1)  # the nodes under `[DEC]`
        self._copy: AnswerTree | None = None

    def on(self, device: torch.device) -> "AnswerTree":
        """The same tree on a device, kept for the next call; on the CPU it is this one."""
        if device.type == "cpu":
            return self
        if self._copy is None or self._copy.tokens.device != device:
            self._copy = copy(self)
            for name, value in vars(self).items():
                if isinstance(value, Tensor):
                    setattr(self._copy, name, value.to(device))
        return self._copy

    def __len__(self) -> int:
        return len(self.last)

    def nodes_of(self, chosen: Tensor) -> Tensor:
        """The nodes (M,) of the answers `chosen` (k,), depth first; the first one is `[DEC]`."""
        nodes = self.paths[self.last[chosen]].unique()
        return nodes[nodes >= 0]

    def rows_of(self, chosen: Tensor, room: int = ROOM) -> list[Tensor]:
        """The same without `[DEC]` in rows of up to `room` nodes; a longer branch is a row alone."""
        nodes = self.nodes_of(chosen)[1:]
        _, branches = self.paths[nodes, 1].unique_consecutive(return_counts=True)
        sizes = [0]
        for nodes_of_branch in branches.tolist():
            if sizes[-1] and sizes[-1] + nodes_of_branch > room:
                sizes.append(0)
            sizes[-1] += nodes_of_branch
        return list(nodes.split(sizes))


class TreeRows:
    """Rows of nodes as a `TokenLayout`: the drawing above. They are packed as texts of the same lengths are.

    Everything but `parents` is on the device of the texts, and moved there without waiting for it.
    """

    def __init__(self, tree: AnswerTree, rows: list[Tensor], device: torch.device):
        """`rows` of nodes, as `AnswerTree.rows_of` returns them, of any number of questions."""
        lengths = torch.tensor([len(row) for row in rows])
        plan = Rows(lengths, int(lengths.max()), torch.device("cpu"))
        padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-1)  # (R, T)
        nodes = padded.clamp(min=0)
        depths, paths = tree.depths[nodes], tree.paths[nodes]  # (R, T), (R, T, L+1)
        # a node attends to another one that stands on its own path, at that one's depth; padding to `[DEC]` alone
        passed = paths.gather(2, depths[:, None].expand(-1, plan.longest, -1))  # (R, T, T)
        mask = F.pad(passed == padded[:, None], (1, 0), value=True)[:, None]  # (R, 1, T, 1+T)
        parents = paths.gather(2, (depths - 1).clamp(min=0)[..., None])[..., 0]  # (R, T)
        # the nodes of a row ascend, so that a binary search finds the parents
        places = torch.searchsorted(padded.masked_fill(padded < 0, len(tree.tokens)), parents) + plan.first[:, None]
        self.parents = plan.pack(places.masked_fill(parents == 0, -1))  # (P,) place in memory of each node's parent
        self.texts = Rows(lengths, plan.longest, device)
        self.count, self.longest = self.texts.count, self.texts.longest
        self.real: Tensor | None = self.texts.real
        self.first, self.first_packing = self.texts.first, self.texts.first_packing
        self.nodes, self.depths, self.mask = (x.to(device, non_blocking=True) for x in (nodes, depths, mask))

    def pack(self, x: Tensor) -> Tensor:
        """(R, T, ...) -> (P, ...)."""
        return self.texts.pack(x)

    def unpack(self, x: Tensor) -> Tensor:
        """(P, ...) -> (R, T, ...), zeros at padding."""
        return self.texts.unpack(x)

    def positions(self, ids: Tensor, past: int = 0) -> Tensor:
        """The depth (R, T) of each node. `[DEC]`, which `past` counts, has position 0."""
        return self.depths

    def attention_mask(self, causal: bool) -> tuple[Tensor, bool]:
        """The mask of paths, whether the decoder is `causal` or not."""
        return self.mask, False


class RootCache:
    """A `KeyCache` of `[DEC]`, which precedes every row; it stays as it is while rows are read."""

    def __init__(self, cache: Cache, questions: Tensor):
        """`cache` of one row a question, in which `[DEC]` was read; `questions` (R,) to which the rows belong."""
        self.layers = {
            layer: (k.index_select(0, questions), v.index_select(0, questions))
            for layer, (k, v) in cache.layers.items()
        }

    @property
    def length(self) -> int:
        return self.layers[0][0].shape[2]

    def extend(self, layer: int, k: Tensor, v: Tensor) -> Keys:
        """Keys and values (R, H, T, d) of the nodes behind those of `[DEC]`: (R, H, 1+T, d) each. Keeps nothing."""
        root_k, root_v = self.layers[layer]
        return torch.cat([root_k, k], dim=2), torch.cat([root_v, v], dim=2)
