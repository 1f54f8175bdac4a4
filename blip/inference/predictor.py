"""A model that takes images and strings; `blip.load` makes one.

Shapes: B images, R texts, T tokens of the longest, N image tokens, E embedding width.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from blip.errors import InputError
from blip.inference.choices import AnswerChoices
from blip.inference.computation import gradients_on_request, without_gradients
from blip.inference.dialogue import rank
from blip.inference.inputs import (
    Images,
    OneImage,
    Texts,
    as_list,
    batches_of,
    each_once,
    questions_about,
    seed_of_each,
)
from blip.inference.loaded_model import LoadedModel
from blip.inference.results import Answer, Written, written_texts
from blip.models.decoding import Decoding, Generated, uniforms_of
from blip.models.generation import generate
from blip.models.momentum import cosines
from blip.models.scorers import scorer_of
from blip.network.cross_attention import ProjectedKeys
from blip.network.med import DecoderStep
from blip.network.packing import Rows
from blip.network.pictures import Pictures, encode


class Predictor(LoadedModel):
    """A model in evaluation mode with its tokenizer and image transform.

    An image is a path, a PIL image, an array of numpy or the bytes of a file; several are a list, see `as_list`. An
    item of several pictures is a `Study`, or a list in the list. Texts are strings or lists. `[CLS]`, `[ENC]` and
    `[DEC]` are added here. The model processes batches of `batch_size`. A method that the checkpoint's task does not
    support raises `CheckpointError`.
    """

    _last_choices: AnswerChoices | None = None

    # ---- features and matching

    @gradients_on_request
    def encode_image(self, images: Images, batch_size: int = 32) -> Tensor:
        """Projected features of unit length (B, E); of BLIP-2 one for each query, (B, Q, E)."""
        scorer = scorer_of(self.needs("encode"))
        parts = [scorer.image_features(self.pixels(batch)) for batch in batches_of(as_list(images), batch_size)]
        return torch.cat(parts) if parts else torch.zeros(0, *scorer.feature_shape, device=self.device)

    @gradients_on_request
    def encode_text(self, texts: Texts, batch_size: int = 32) -> Tensor:
        """Projected features of unit length (R, E)."""
        scorer, parts = scorer_of(self.needs("encode")), []
        for batch in batches_of(as_list(texts), batch_size):
            ids, lengths = self.ids(batch)
            parts.append(scorer.text_features(ids, Rows(lengths, ids.shape[1], self.device)))
        return torch.cat(parts) if parts else torch.zeros(0, scorer.feature_shape[-1], device=self.device)

    def itc_score(self, images: Images, texts: Texts) -> Tensor:
        """Cosine of every image to every text (B, R), of BLIP-2 that of the nearest query; not divided by the
        temperature."""
        return cosines(self.encode_image(images), self.encode_text(texts))

    @gradients_on_request
    def match_logits(self, images: Images, texts: Texts, batch_size: int = 32) -> Tensor:
        """Logits (B, 2) of image i with text i; class 1 = match.

        One image goes with all texts, one text with all images. The texts of one image lie side by side on the query
        axis: it is encoded once.
        """
        model = self.needs("match")
        scorer, images, texts = scorer_of(model), as_list(images), as_list(texts)
        if len(texts) == 1:
            texts = texts * len(images)
        if len(images) not in (1, len(texts)):
            raise InputError(f"{len(images)} images and {len(texts)} texts: give as many, or one of either")
        parts, keys = [], None
        for start in range(0, len(texts), batch_size):
            if keys is None or len(images) > 1:
                keys = scorer.image_keys(self.states(images[start : start + batch_size]))
            parts.append(scorer.match_logits(*self.ids(texts[start : start + batch_size]), keys).float())
        return torch.cat(parts) if parts else torch.zeros(0, 2, device=self.device)

    @gradients_on_request
    def match_all(
        self, images: Images, text_features: Tensor, texts: Texts, *, batch_size: int = 32
    ) -> tuple[Tensor, Tensor]:
        """Every image with every text: cosines and match probabilities, each (B, R); an image is encoded once.

        `text_features` are those of the texts (`encode_text`), which several calls share.
        """
        model = self.needs("match")
        scorer = scorer_of(model)
        encoded = [self.ids(batch) for batch in batches_of(as_list(texts), batch_size)]
        similarities, probabilities = [], []
        for batch in batches_of(as_list(images), batch_size):
            states = self.states(batch)
            similarities.append(cosines(scorer.features_of(states), text_features))
            for image in states.split(1):
                keys = scorer.image_keys(image)  # the texts of one image lie side by side
                logits = [scorer.match_logits(ids, lengths, keys) for ids, lengths in encoded]
                probabilities.append(torch.cat(logits).float().softmax(dim=1)[:, 1])
        return torch.cat(similarities), torch.stack(probabilities)

    def match_probability(self, images: Images, texts: Texts, batch_size: int = 32) -> Tensor:
        """Probability (B,) that image and text belong together; pairs as in `match_logits`."""
        return self.match_logits(images, texts, batch_size).softmax(dim=1)[:, 1]

    # ---- writing and answering

    def caption(
        self,
        images: Images,
        prompt: str | None = None,
        max_new_tokens: int = 30,
        *,
        decoding: Decoding | None = None,
        batch_size: int = 32,
        seed: int | Sequence[int] | None = None,
    ) -> list[str]:
        """A caption for each image; `prompt` begins it and is part of it. Arguments as in `write`."""
        if max_new_tokens == 0:
            return [prompt or ""] * len(as_list(images))
        decoding = decoding or Decoding(max_new_tokens=max_new_tokens)
        written = self.write(images, prompt, decoding, batch_size=batch_size, seed=seed)
        return [texts[0].text for texts in written]

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
        """`Decoding.num_return` captions for each image, with log-probabilities.

        Args:
            images: paths, PIL images or a list of them.
            prompt: the beginning of every caption; the one that the model was fine-tuned with unless given.
            decoding: greedy unless given; or beams or sampling, and their options.
            batch_size: images at once.
            seed: of sampling: captions follow from it and the image's place in the list, whatever the batches; or one
                seed for each image. Without it, torch's global generator draws.
        """
        self.needs("caption")
        decoding = decoding or Decoding()
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
            ids = torch.tensor([first] * len(batch), device=self.device)
            numbers = slice(len(written), len(written) + len(batch))
            uniforms = None if seeds is None else uniforms_of(seeds[numbers], decoding)
            generated = self._continued(self.pixels(batch), ids, decoding, uniforms=uniforms)
            texts = written_texts(self.tokenizer, first, generated)
            written += batches_of(texts, decoding.num_return)
        return written

    def _continued(
        self, pixels: Tensor | Pictures, ids: Tensor, decoding: Decoding, *, uniforms: Tensor | None
    ) -> Generated:
        """Captions of images (B, 3, S, S) that continue `ids` (B, T)."""
        decoder, states = self.model.text_decoder, encode(self.model.image_encoder, pixels)
        tokens = decoding.texts * (ids.shape[1] + decoding.max_new_tokens)  # of an image, at most
        step = DecoderStep(decoder, decoder.keys_or_states(states, tokens))
        end, pad = self.tokenizer.sep_id, self.tokenizer.pad_id
        return generate(step, ids, decoding, end_id=end, pad_id=pad, uniforms=uniforms)

    @without_gradients
    def answer(
        self,
        images: Images,
        questions: Texts,
        answers: Sequence[str] | None = None,
        *,
        k: int = 128,
        decoding: Decoding | None = None,
        batch_size: int = 16,
    ) -> list[Answer]:
        """The answer to question i about image i; one image goes with all questions.

        Args:
            images: paths, PIL images or a list of them.
            questions: as many, or several about one image.
            answers: the list to choose from; the one that the model was fine-tuned with unless given.
            k: answers that are scored whole: those with the likeliest first tokens.
            decoding: generates the answer instead of choosing one. Without any list, three beams generate it.
            batch_size: questions at once.
        """
        model = self.needs("answer")
        images, questions = questions_about(images, questions)
        if answers is not None and not answers:
            raise InputError("the list of answers is empty")
        choices = self._choices(answers) if decoding is None else None
        given: list[Answer] = []
        for start in range(0, len(questions), batch_size):
            ids, lengths = self.ids(questions[start : start + batch_size])
            distinct, numbers = each_once(images[start : start + batch_size])  # an image is encoded once
            states = self.states(distinct)[torch.tensor(numbers, device=self.device)]
            keys = model.keys_of_questions(states, ids, lengths)
            if choices is None:
                given += self._generated_answers(keys, len(ids), decoding or Decoding(beams=3, max_new_tokens=10))
            else:
                given += choices.rank(model.text_decoder, keys, k)
        return given

    def _generated_answers(self, keys: ProjectedKeys, questions: int, decoding: Decoding) -> list[Answer]:
        generated = self.model.answer(keys, decoding, self.tokenizer.sep_id)
        texts = written_texts(self.tokenizer, [], generated)
        best = texts[:: len(texts) // questions]  # the first text of each question
        return [Answer(text.text, math.exp(text.log_prob), []) for text in best]

    def _choices(self, answers: Sequence[str] | None) -> AnswerChoices | None:
        """The answers to choose from, None where there is no list; what was prepared for the last list is kept."""
        choices = list(self.info.get("answers", []) if answers is None else answers)
        if not choices:
            return None
        if self._last_choices is None or self._last_choices.given != choices:
            max_tokens = int(self.info.get("max_answer_tokens") or self.positions)
            self._last_choices = AnswerChoices(choices, self.tokenizer, max_tokens)
        return self._last_choices

    @without_gradients
    def rank_answers(
        self,
        image: OneImage,
        caption: str,
        *,
        history: Sequence[tuple[str, str]] = (),
        question: str,
        answers: Sequence[str],
    ) -> Answer:
        """The best answer to a question in a dialogue about an image, with all candidates, the best one first.

        Args:
            image: a path, a PIL image or an array; or a `blip.Study` of several.
            caption: of the image.
            history: the questions before, each with its answer, the oldest first.
            question: the question to answer.
            answers: what to choose from. A probability is that of the answer being right, whatever the others are.
        """
        return rank(self, image, caption, history=history, question=question, answers=answers)

    @gradients_on_request
    def judge(self, left: Images, right: Images, statements: Texts, *, batch_size: int = 32) -> Tensor:
        """Probability (B,) that statement i is true of image i on the left and image i on the right (NLVR2)."""
        model = self.needs("judge")
        left, right, statements = as_list(left), as_list(right), as_list(statements)
        if not len(left) == len(right) == len(statements):
            raise InputError(f"{len(left)} and {len(right)} images and {len(statements)} statements: give as many")
        parts = []
        for start in range(0, len(statements), batch_size):
            end = start + batch_size
            first, second = self.pixels(left[start:end]), self.pixels(right[start:end])
            if not isinstance(first, Tensor) or not isinstance(second, Tensor):
                raise InputError("a statement is about one image on the left and one on the right, not about several")
            pixels = torch.stack([first, second], dim=1)
            parts.append(model(pixels, *self.ids(statements[start:end])).float().softmax(dim=1)[:, 1])
        return torch.cat(parts) if parts else torch.zeros(0, device=self.device)
