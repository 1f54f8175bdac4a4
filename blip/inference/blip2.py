"""BLIP-2 that takes images and strings, of either stage; `blip.load` makes one. Start with `predictor.py`.

Shapes: B images, R texts, T tokens of the longest, N image tokens, Q queries, E embedding width.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from blip.checkpoints.format import CheckpointError
from blip.errors import InputError
from blip.inference.computation import gradients_on_request, without_gradients
from blip.inference.inputs import Images, Texts, as_list, batches_of, seed_of_each
from blip.inference.predictor import Predictor
from blip.inference.results import Written, written_texts
from blip.models.decoding import Decoding, uniforms_of
from blip.models.momentum import cosines, unit_features


class Blip2Predictor(Predictor):
    """The first stage: features of an image for each query, matching and captions."""

    @property
    def can_write(self) -> bool:
        """Whether the checkpoint has the head that writes: files of transformers lack it."""
        return not self.info.get("lacks")

    def needs(self, ability: str, action: str = "") -> Any:
        """As of `LoadedModel`; CheckpointError for captions where the head that writes them is absent, too."""
        model = super().needs(ability, action)
        if ability == "caption" and not self.can_write:
            raise CheckpointError(
                "this checkpoint cannot write captions: it comes from transformers, whose classes do not hold the "
                "word head of the first stage; a file of LAVIS does"
            )
        return model

    # ---- features and matching

    @gradients_on_request
    def encode_image(self, images: Images, batch_size: int = 32) -> Tensor:
        """Projected features of unit length, one for each query (B, Q, E)."""
        model, parts = self.needs("encode"), []
        for batch in batches_of(as_list(images), batch_size):
            parts.append(model.encode_image(self.pixels(batch)))
        shape = (0, model.qformer.config.queries, model.image_proj.out_features)
        return torch.cat(parts) if parts else torch.zeros(shape, device=self.device)

    @gradients_on_request
    def encode_text(self, texts: Texts, batch_size: int = 32) -> Tensor:
        """Projected features of unit length (R, E)."""
        model, parts = self.needs("encode"), []
        for batch in batches_of(as_list(texts), batch_size):
            parts.append(model.encode_text(*self.ids(batch)))
        return torch.cat(parts) if parts else torch.zeros(0, model.text_proj.out_features, device=self.device)

    def itc_score(self, images: Images, texts: Texts) -> Tensor:
        """Cosine of every image to every text (B, R), that of the nearest query, not divided by the temperature."""
        return cosines(self.encode_image(images), self.encode_text(texts))

    @gradients_on_request
    def match_logits(self, images: Images, texts: Texts, batch_size: int = 32) -> Tensor:
        """Logits (B, 2) of image i with text i, the mean over the queries; class 1 = match. Pairs as in BLIP's."""
        model = self.needs("match")
        images, texts = as_list(images), as_list(texts)
        if len(texts) == 1:
            texts = texts * len(images)
        if len(images) not in (1, len(texts)):
            raise InputError(f"{len(images)} images and {len(texts)} texts: give as many, or one of either")
        parts, keys = [], None
        for start in range(0, len(texts), batch_size):
            if keys is None or len(images) > 1:
                states = model.image_encoder(self.pixels(images[start : start + batch_size]))
                keys = model.qformer.image_keys(states)
            parts.append(model.match_logits(*self.ids(texts[start : start + batch_size]), keys).float())
        return torch.cat(parts) if parts else torch.zeros(0, 2, device=self.device)

    @gradients_on_request
    def match_all(
        self, images: Images, text_features: Tensor, texts: Texts, *, batch_size: int = 32
    ) -> tuple[Tensor, Tensor]:
        """Every image with every text: cosines and match probabilities, each (B, R); an image is encoded once."""
        model = self.needs("match")
        encoded = [self.ids(batch) for batch in batches_of(as_list(texts), batch_size)]
        similarities, probabilities = [], []
        for batch in batches_of(as_list(images), batch_size):
            states = model.image_encoder(self.pixels(batch))
            read = model.read_images(states)
            similarities.append(cosines(unit_features(model.image_proj, read.states), text_features))
            for image in states.split(1):
                keys = model.qformer.image_keys(image)  # the texts of one image lie side by side
                logits = [model.match_logits(ids, lengths, keys) for ids, lengths in encoded]
                probabilities.append(torch.cat(logits).float().softmax(dim=1)[:, 1])
        return torch.cat(similarities), torch.stack(probabilities)

    # ---- writing

    @without_gradients
    def write(
        self,
        images: Images,
        prompt: str | None = None,
        decoding: Decoding | None = None,
        *,
        batch_size: int = 32,
        seed: int | Sequence[int] | None = None,
    ) -> list[list[Written]]:
        """`Decoding.num_return` captions for each image; arguments as in `Predictor.write`."""
        model, decoding = self.needs("caption"), decoding or Decoding()
        prompt = self.info.get("prompt", "") if prompt is None else prompt
        first = self.tokenizer.encode([prompt], self.positions)[0][:-1]  # without [SEP]
        first[0] = self.tokenizer.dec_id
        if len(first) + decoding.max_new_tokens > self.positions:
            raise InputError(
                f"the prompt has {len(first)} tokens and max_new_tokens is {decoding.max_new_tokens}; "
                f"the model has {self.positions} positions"
            )
        written: list[list[Written]] = []
        images = as_list(images)
        seeds = None if seed is None else seed_of_each(seed, len(images))
        for batch in batches_of(images, batch_size):
            numbers = slice(len(written), len(written) + len(batch))
            generated = model.write(
                self.pixels(batch),
                torch.tensor([first] * len(batch), device=self.device),
                decoding,
                end_id=self.tokenizer.sep_id,
                uniforms=None if seeds is None else uniforms_of(seeds[numbers], decoding),
            )
            written += batches_of(written_texts(self.tokenizer, first, generated), decoding.num_return)
        return written
