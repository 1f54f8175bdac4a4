"""What is asked of a map: objective, method, rows and layers, where the combination is possible."""

from collections.abc import Sequence
from dataclasses import dataclass

from blip.errors import InputError
from blip.inference.predictor import Predictor
from blip.interpret.maps import METHODS
from blip.interpret.objectives import Objective
from blip.interpret.query_maps import MAPS_OF_QUERIES, chosen_layers
from blip.interpret.recording import TraceError


@dataclass(frozen=True)
class Request:
    """How every pair is explained: `attention` is where a map is read, such as `text.6.cross`."""

    objective: Objective
    method: str
    rows: str
    layer: int
    layers: Sequence[int] = ()  # of the Q-Former, whose maps are added up

    @property
    def attention(self) -> str:
        return f"{self.objective.stack}.{self.layer}.cross"

    @property
    def reads_all_layers(self) -> bool:
        """Whether the map is that of all layers that attend to the image, not of one."""
        return self.method == "relevance" or self.objective.of_image or len(self.layers) > 1

    @property
    def points(self) -> list[str]:
        """The points that a trace has to record for the method."""
        if self.objective.of_queries:
            crossing = [f"{self.objective.stack}.{layer}.cross.*" for layer in self.layers]
            return [*crossing, "image.*.attn.*"] if self.method == "rollout" else crossing
        if self.objective.of_image:
            return ["image.*.attn.*"]
        if self.method in ("relevance", "rollout"):
            return ["image.*.attn.*", f"{self.objective.stack}.*"]
        return [f"{self.attention}.*"]


def request_of(m: Predictor, objective: Objective, *, method: str, layer: int | None, rows: str) -> Request:
    """The request with its layer, where the combination of arguments is possible."""
    usual = "gradcam" if objective.of_queries else "relevance"
    method = method or ("rollout" if objective.of_image else usual)
    if objective.of_image:
        if method != "rollout":
            raise InputError(f"a map of the image alone, without a text, is made by rollout, not by {method}")
        return Request(objective, method, rows, 0)
    if objective.of_queries:
        return _request_of_queries(m, objective, method=method, layer=layer, rows=rows)
    if method not in METHODS:
        raise InputError(f"method is {method!r}; it can be {', '.join(METHODS)}")
    if rows not in ("words", "enc"):
        raise InputError(f"rows is {rows!r}; it can be words or enc")
    if rows == "enc" and not objective.has_enc:
        raise TraceError("a caption is written by a decoder, which has no [ENC] row: rows=words")
    count = objective.layers(m)
    without_words = count - 1 if objective.reads_enc and rows == "words" else None  # a layer that runs for [ENC] alone
    if layer is None:
        layer = max(0, min(count // 2, count - 2 if without_words is not None else count - 1))
    if not 0 <= layer < count:
        raise InputError(f"there is no layer {layer}: this model has layers 0 to {count - 1}")
    if layer == without_words and method != "relevance":
        raise TraceError(
            f"layer {layer} is the last one: the match logit reads its [ENC] row alone, so the gradient of its word "
            f"rows is zero and they are not computed; take a layer below, or rows=enc"
        )
    return Request(objective, method, rows, layer)


def _request_of_queries(m: Predictor, objective: Objective, *, method: str, layer: int | None, rows: str) -> Request:
    """The request of a map of BLIP-2; matching has no words of its own, and shows the queries."""
    if method not in MAPS_OF_QUERIES:
        raise InputError(f"method is {method!r}; of BLIP-2 it can be {', '.join(MAPS_OF_QUERIES)}")
    if rows not in ("words", "queries"):
        raise InputError(f"rows is {rows!r}; of BLIP-2 it can be words or queries")
    layers = chosen_layers(m.model, layer)
    return Request(objective, method, rows if objective.per_token else "queries", layers[0], layers)
