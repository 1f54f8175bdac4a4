"""How a text reads an image through the queries of BLIP-2: words attend to queries, and queries to patches.

Only a Q-Former that reads the text shows it: that of the first stage. In the second stage the text is read by a
language model, which sees the queries as words of its own.

Shapes: R texts, T tokens, Q queries, H heads, C classes of words, 1+N keys of an image.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from blip.inference.predictor import Predictor
from blip.interpret.causes.labelled import Labelled
from blip.interpret.objectives import Objective
from blip.interpret.query_maps import crossing_layers
from blip.interpret.recording import Trace


class QueryFlow:
    """Attention from classes of words to queries and through them to patches, summed over a data set.

    Args:
        layers: the layers of the Q-Former.
        crossing: those whose queries attend to the image.
        queries: Q.
        names: of the classes.
        beside: queries and text attend to one another in one pass, as in a match; else the text comes in a pass of its
            own, behind the queries.
    """

    def __init__(
        self, layers: int, crossing: Sequence[int], queries: int, *, names: Sequence[str], beside: bool
    ) -> None:
        self.crossing, self.queries, self.names, self.beside = list(crossing), queries, list(names), beside
        self.layers = list(range(layers))
        self.points = [f"qformer.{layer}.self.pattern" for layer in self.layers]
        self.count = torch.zeros(len(names), dtype=torch.float64)
        self.to_queries = torch.zeros(len(names), layers, queries, dtype=torch.float64)
        self.to_patches: Tensor | None = None  # (C, N)
        self.grid = (0, 0)
        self._read: set[int] = set()  # layers in which the text has rows

    def add(self, t: Trace, classes: Tensor) -> None:
        """Adds a batch, of texts whose tokens have `classes` (R, T, C)."""
        of_class = classes.double()
        looked = torch.stack([t.pattern(f"qformer.{n}.cross").double().mean(dim=1) for n in self.crossing]).mean(dim=0)
        shares = []
        for layer in self.layers:
            pattern = t.all(f"qformer.{layer}.self.pattern")[-1].double().mean(dim=1)  # the last pass reads the text
            tokens = of_class.shape[1]
            if pattern.shape[1] != tokens + self.queries * self.beside:
                continue  # the last layer of a match: only queries have rows there
            to_queries = pattern[:, -tokens:, : self.queries].cpu()  # (R, T, Q)
            self.to_queries[:, layer] += torch.einsum("rtc,rtq->cq", of_class, to_queries)
            self._read.add(layer)
            shares.append(to_queries)
        through = torch.stack(shares).mean(dim=0) @ looked[..., 1:].cpu()  # (R, T, N)
        patches = torch.einsum("rtc,rtn->cn", of_class, through)
        self.to_patches = patches if self.to_patches is None else self.to_patches + patches
        self.count += of_class.sum(dim=(0, 1))
        self.grid = t.grid or self.grid

    def words(self) -> Labelled:
        """(class, layer, query): the share of a class's self-attention that goes to each query, mean over heads.

        What is missing to 1 goes to other words.
        """
        layers = sorted(self._read)
        values = (self.to_queries / self.count.clamp(min=1)[:, None, None])[:, layers].numpy()
        coords = {
            "class": self.names,
            "layer": [f"qformer.{layer}.self" for layer in layers],
            "query": [str(number + 1) for number in range(self.queries)],
        }
        return Labelled(values, ("class", "layer", "query"), coords, "attention to queries", "share")

    def patches(self) -> Labelled:
        """(class, y, x): the product of attention to queries and of their attention to patches, mean over layers."""
        assert self.to_patches is not None
        height, width = self.grid
        values = np.asarray(self.to_patches / self.count.clamp(min=1)[:, None]).reshape(-1, height, width)
        coords = {"class": self.names, "y": [str(y) for y in range(height)], "x": [str(x) for x in range(width)]}
        return Labelled(values, ("class", "y", "x"), coords, "attention through queries", "share")


def flow_through(m: Predictor, objective: Objective, names: Sequence[str]) -> QueryFlow | None:
    """The sums for a model whose Q-Former reads the text; None for others."""
    config = getattr(getattr(m.model, "qformer", None), "config", None)
    if not objective.of_queries or config is None or not config.text or "language_model" in m.info:
        return None
    beside = not objective.writes_texts
    return QueryFlow(config.layers, crossing_layers(m.model), config.queries, names=names, beside=beside)
