"""`blip score-maps`: are maps faithful to the model, and do they lie on the boxes? One table, with controls.

Every method is scored with maps of its own, with those that it makes for another record's text, and with those of a
model with random weights. Random maps, a spot in the middle and the boxes themselves are scored beside them.

    hit         the peak lies in a box, or within half a patch of one: the pointing game
    energy      the share of the map's positive values inside the boxes
    iou         of the boxes and the pixels with the largest values, as many as the boxes have
    deletion    area under the curve when the marked patches are covered first; low is good
    insertion   the same when they are uncovered first; high is good
    rank        rank correlation with the map of the model, after all weights were drawn anew: near 0 is good

Means have 95 % intervals, over images. Shapes: R pairs, h*w patches, S the side of an image in pixels.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F

from blip.console.bars import Bars
from blip.errors import InputError
from blip.evaluation.bootstrap import Interval, bootstrap
from blip.inference.inputs import batches_of
from blip.inference.predictor import Predictor
from blip.interpret import map_controls, map_curves
from blip.interpret.explain import explain_pairs
from blip.interpret.map_boxes import Boxed, box_scores, mask_of
from blip.interpret.maps import METHODS
from blip.interpret.objectives import explained
from blip.interpret.points import queries_of
from blip.interpret.query_maps import MAPS_OF_QUERIES

SCORES = {"boxes": ("hit", "energy", "iou"), "curves": ("deletion", "insertion"), "sanity": ("rank",)}
OWN, OTHER_TEXT, UNTRAINED = "own", "other text", "random model"
SANITY_RECORDS = 50  # the first ones: each step of the cascade explains all of them


@dataclass(frozen=True)
class Scoring:
    """How maps are made and scored: options of `explain_pairs` and of `curves`, and `scores`, groups of `SCORES`."""

    task: str = ""
    layer: int | None = None
    rows: str = "words"
    scores: tuple[str, ...] = tuple(SCORES)
    fill: str = "blur"
    steps: int = 12
    batch_size: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        if unknown := [one for one in self.scores if one not in SCORES]:
            raise InputError(f"score is {unknown[0]!r}; it can be {', '.join(SCORES)}")
        if self.fill not in map_curves.FILLS:
            raise InputError(f"fill is {self.fill!r}; it can be {', '.join(map_curves.FILLS)}")


@dataclass
class Scored:
    """One line of the table: maps of a method, or a control."""

    method: str
    maps: str  # OWN, OTHER_TEXT, UNTRAINED, or empty for maps of no method
    scores: dict[str, Interval] = field(default_factory=dict)
    curves: dict[str, list[float]] = field(default_factory=dict)  # mean deletion and insertion curve
    cascade: dict[str, Interval] = field(default_factory=dict)  # rank correlation, by the part made random last


def methods_of(m: Predictor) -> list[str]:
    """The methods of maps that a model has."""
    return list(METHODS if queries_of(m.model) is None else MAPS_OF_QUERIES)


# ---- the table -------------------------------------------------------------------------------------------------------


class MapScorer:
    """Scores maps of some records by one model."""

    def __init__(self, m: Predictor, records: Sequence[Boxed], how: Scoring) -> None:
        self.m, self.records, self.how = m, records, how
        self.objective = explained(m, how.task)
        if self.objective.of_image:
            raise InputError("maps of the image alone explain no text: task can be match, caption or answer")
        config = m.model.image_encoder.config
        self.side = config.image_size
        self.grid = (self.side // config.patch, self.side // config.patch)
        self.groups = [record.name for record in records]

    def maps(self, m: Predictor, method: str, records: Sequence[Boxed], texts: Sequence[str]) -> Tensor:
        """The maps of sentences (R, h, w) by a method."""
        found = explain_pairs(
            m,
            [record.image for record in records],
            texts,
            task=self.objective.name,
            method=method,
            layer=None if method == "relevance" else self.how.layer,
            rows="words" if method == "relevance" else self.how.rows,
            answers=[record.answer for record in records] if self.objective.has_answers else "",
            batch_size=self.how.batch_size,
        )
        return torch.stack([one.sentence.cpu() for one in found])

    def line(self, method: str, origin: str, maps: Tensor) -> Scored:
        """A line of the table, of maps (R, h, w)."""
        line, values = Scored(method, origin), dict[str, list[float]]()
        maps = maps.nan_to_num()
        if "boxes" in self.how.scores:
            each = [box_scores(record, one, self.side) for record, one in zip(self.records, maps, strict=True)]
            values |= {name: [one[name] for one in each] for name in SCORES["boxes"]}
        if "curves" in self.how.scores:
            for name, curve in zip(SCORES["curves"], self.curves(maps), strict=True):
                values[name] = map_curves.area(curve).tolist()
                line.curves[name] = curve.mean(dim=0).tolist()
        line.scores = {name: bootstrap(one, self.groups) for name, one in values.items()}
        return line

    def curves(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """Deletion and insertion curves (R, K+1)."""
        parts = []
        for numbers in batches_of(list(range(len(maps))), self.how.batch_size):
            batch = [self.records[i] for i in numbers]
            probability = map_curves.probability_of(
                self.m, self.objective, [one.text for one in batch], [one.answer for one in batch]
            )
            pixels = self.m.pixels([one.image for one in batch])
            assert isinstance(pixels, Tensor)  # a record has one picture
            some = maps[numbers].to(pixels.device)
            how = self.how
            parts.append(map_curves.curves(probability, pixels, some, fill=how.fill, steps=how.steps, seed=how.seed))
        deletion, insertion = zip(*parts, strict=True)
        return torch.cat(deletion), torch.cat(insertion)

    def cascade(self, method: str, maps: Tensor) -> dict[str, Interval]:
        """Rank correlations of maps with those of ever more random models, by the part made random last."""
        records = self.records[:SANITY_RECORDS]
        texts, found = [record.text for record in records], {}
        for part, other in map_controls.randomised(self.m, self.objective, self.how.seed):
            pairs = zip(maps, self.maps(other, method, records, texts), strict=False)
            values = [map_controls.rank_correlation(a, b) for a, b in pairs]
            found[part] = bootstrap(values, self.groups[: len(values)], shares=False)
        return found

    def lines_of(self, method: str) -> list[Scored]:
        """A method with its own maps, those of other texts and those of random weights."""
        texts = [record.text for record in self.records]
        own = self.maps(self.m, method, self.records, texts)
        line = self.line(method, OWN, own)
        if "sanity" in self.how.scores:
            line.cascade = self.cascade(method, own)
            line.scores["rank"] = list(line.cascade.values())[-1]
        lines = [line]
        if set(self.how.scores) & {"boxes", "curves"}:
            other = self.maps(self.m, method, self.records, map_controls.other_texts(texts))
            random = map_controls.untrained(self.m, self.objective, self.how.seed)
            lines.append(self.line(method, OTHER_TEXT, other))
            lines.append(self.line(method, UNTRAINED, self.maps(random, method, self.records, texts)))
        return lines

    def controls(self) -> list[Scored]:
        """Maps that no method made."""
        if not set(self.how.scores) & {"boxes", "curves"}:
            return []
        count = len(self.records)
        lines = [self.line("random maps", "", map_controls.random_maps(count, self.grid, self.how.seed))]
        lines.append(self.line("the middle", "", map_controls.centre_maps(count, self.grid)))
        if all(record.boxes for record in self.records):
            masks = torch.stack([mask_of(r.boxes, r.image, self.side) for r in self.records])
            boxes = F.adaptive_avg_pool2d(masks[:, None].float(), self.grid)[:, 0]  # the share of a patch in the boxes
            lines.append(self.line("the boxes", "", boxes))
        return lines

    def table(self, methods: Sequence[str]) -> list[Scored]:
        """Every method with its controls, then the maps of no method."""
        lines = [line for method in Bars().over(methods, "methods", len(methods)) for line in self.lines_of(method)]
        return lines + self.controls()
