"""What evaluation needs of a model that contrasts and matches, in one form for BLIP and for BLIP-2.

Shapes: B images, N image tokens, Q queries, R texts, T text tokens, D width, E embedding width, P tokens in memory,
V words.
"""

from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from blip.models.blip2 import Blip2Model
from blip.models.matching import match_logits
from blip.models.momentum import Matcher, unit_features
from blip.network.cross_attention import ProjectedKeys
from blip.network.packing import Rows, with_first
from blip.network.pictures import Pictures, States, encode, item_features
from blip.network.qformer import QueryStates

AnyMatcher = Matcher | Blip2Model


@dataclass
class SeenImages:
    """A batch of images, as contrast, matching and a decoder need them."""

    features: Tensor  # (B, E), or (B, Q, E), one of each query
    keys: ProjectedKeys
    read: QueryStates | None = None  # what the queries of BLIP-2 read from the images


class Scorer(Protocol):
    """A model that contrasts and matches."""

    @property
    def feature_shape(self) -> tuple[int, ...]:
        """(E,), or (Q, E): of the features of an image."""

    def image_features(self, pixels: Tensor | Pictures) -> Tensor:
        """pixels (B, 3, height, width) -> features of unit length (B, E), or (B, Q, E): see `momentum.cosines`."""

    def features_of(self, states: States) -> Tensor:
        """`image_features` from the states (B, N, D) of images."""

    def see(self, states: States) -> SeenImages:
        """States (B, N, D) of images, prepared for all that follows."""

    def image_keys(self, states: States) -> ProjectedKeys:
        """The keys alone, for `match_logits`."""

    def text_features(self, ids: Tensor, rows: Rows) -> Tensor:
        """ids (R, T), each `[CLS] ... [SEP]`, -> features of unit length (R, E)."""

    def match_logits(self, ids: Tensor, lengths: Tensor, keys: ProjectedKeys) -> Tensor:
        """Logits (R, 2) of texts ids (R, T), each `[CLS] ... [SEP]`, with the images of `keys`; class 1 = match."""

    def next_tokens(self, ids: Tensor, rows: Rows, images: SeenImages) -> Tensor:
        """Logits (P, V) of the token after each of texts ids (B, T), one an image; of models with a decoder."""


class ClsScorer:
    """Of BLIP: an image's feature is that of its CLS token, a pair's match logit that of `[ENC]`."""

    def __init__(self, model: Any):
        self.model = model

    @property
    def feature_shape(self) -> tuple[int, ...]:
        return (self.model.image_proj.out_features,)

    def image_features(self, pixels: Tensor | Pictures) -> Tensor:
        return self.features_of(encode(self.model.image_encoder, pixels, cls_only=True))

    def features_of(self, states: States) -> Tensor:
        return item_features(self.model.image_proj, states)

    def see(self, states: States) -> SeenImages:
        return SeenImages(self.features_of(states), self.image_keys(states))

    def image_keys(self, states: States) -> ProjectedKeys:
        return self.model.text_encoder.image_keys(states)

    def text_features(self, ids: Tensor, rows: Rows) -> Tensor:
        return unit_features(self.model.text_proj, self.model.text_encoder.text(ids, rows, first_only=True))

    def match_logits(self, ids: Tensor, lengths: Tensor, keys: ProjectedKeys) -> Tensor:
        ids = with_first(ids, self.model.specials.enc)
        return match_logits(self.model.text_encoder, self.model.itm_head, ids, lengths=lengths, keys=keys)

    def next_tokens(self, ids: Tensor, rows: Rows, images: SeenImages) -> Tensor:
        decoder = self.model.text_decoder
        return decoder.head(decoder(with_first(ids, self.model.specials.dec), rows, images.keys))


class QueryScorer:
    """Of BLIP-2: an image has a feature of each query, a pair's match logit is the mean over the queries."""

    def __init__(self, model: Blip2Model):
        self.model = model

    @property
    def feature_shape(self) -> tuple[int, ...]:
        return self.model.qformer.config.queries, self.model.image_proj.out_features

    def image_features(self, pixels: Tensor | Pictures) -> Tensor:
        return self.model.encode_image(pixels)

    def features_of(self, states: States) -> Tensor:
        return unit_features(self.model.image_proj, self.model.read_images(states).states)

    def see(self, states: States) -> SeenImages:
        keys = self.image_keys(states)
        read = self.model.qformer.look(keys)
        return SeenImages(unit_features(self.model.image_proj, read.states), keys, read)

    def image_keys(self, states: States) -> ProjectedKeys:
        return self.model.qformer.image_keys(states)

    def text_features(self, ids: Tensor, rows: Rows) -> Tensor:
        return unit_features(self.model.text_proj, self.model.qformer.text(ids, rows, first_only=True))

    def match_logits(self, ids: Tensor, lengths: Tensor, keys: ProjectedKeys) -> Tensor:
        return self.model.match_logits(ids, lengths, keys)

    def next_tokens(self, ids: Tensor, rows: Rows, images: SeenImages) -> Tensor:
        qformer, read = self.model.qformer, images.read
        assert read is not None
        return qformer.head(qformer.write(with_first(ids, self.model.specials.dec), rows, read.cache()))


def scorer_of(model: AnyMatcher) -> Scorer:
    """The scorer of a model that contrasts and matches."""
    return QueryScorer(model) if isinstance(model, Blip2Model) else ClsScorer(model)
