"""A model that takes images and strings; `blip.load(path)` makes one (`restore.py`).

Shapes: B images, R texts, T tokens of the longest, N image tokens, E embedding width.
"""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from PIL import Image
from torch import Tensor

from blip.checkpoints.format import CheckpointError
from blip.data.images import open_image
from blip.data.transforms import eval_transform
from blip.errors import InputError
from blip.models.answer_tree import AnswerTree
from blip.models.caption import CaptionModel
from blip.models.decoding import Decoding, Generated
from blip.models.factory import Model
from blip.models.generation import generate
from blip.models.matching import match_logits
from blip.models.momentum import unit_features
from blip.models.nlvr import NlvrModel
from blip.models.pretrain import PretrainModel
from blip.models.ranking import distinct_answers, rank_answers
from blip.models.retrieval import RetrievalModel
from blip.models.vqa import VqaModel
from blip.network.med import DecoderStep
from blip.network.packing import Rows, with_first
from blip.tokenizer import Tokenizer, blip_cleaning

ImageInput = str | Path | Image.Image | Tensor  # a tensor is (3, S, S), as `Predictor.transform` gives it
Images = ImageInput | Sequence[ImageInput]
Texts = str | Sequence[str]


@dataclass
class Written:
    """A generated text with its log-probability, in all and of each token."""

    text: str
    log_prob: float
    tokens: list[str]
    token_log_probs: list[float]


@dataclass
class Answer:
    """An answer, how probable it is, and the candidates that were ranked, the likeliest first (none if generated)."""

    text: str
    probability: float
    candidates: list[tuple[str, float]]


Method = TypeVar("Method", bound=Callable[..., Any])


def _without_gradients(method: Method) -> Method:
    """Computes no gradients, unless `Predictor.grads` is set."""

    @functools.wraps(method)
    def run(self: "Predictor", *args: Any, **kwargs: Any) -> Any:
        with torch.set_grad_enabled(self.grads):
            return method(self, *args, **kwargs)

    return cast(Method, run)


class Predictor:
    """A model in evaluation mode with its tokenizer and image transform.

    Images are paths, PIL images or lists of them; texts are strings or lists. `[CLS]`, `[ENC]` and `[DEC]` are put
    here. Work goes through the model in batches of `batch_size`.
    """

    grads = False  # scores and features can be differentiated where this is set; `internals.trace` does

    def __init__(self, model: Model, tokenizer: Tokenizer, info: dict, device: str | torch.device = "cpu"):
        self.device = torch.device(device)
        self.model = model.to(self.device).eval()
        self.tokenizer, self.info = tokenizer, info
        self._last_tree: tuple[list[str], list[str], AnswerTree] | None = None
        self.transform = eval_transform(model.image_encoder.config.image_size)
        text = model.text_decoder if isinstance(model, CaptionModel) else model.text_encoder
        self.positions = text.config.max_positions
        self.max_text_tokens = int(info.get("max_text_tokens") or self.positions)

    @_without_gradients
    def encode_image(self, images: Images, batch_size: int = 32) -> Tensor:
        """Projected features of unit length (B, E)."""
        model, parts = self.needs("image_proj", "encode for retrieval", PretrainModel, RetrievalModel), []
        for batch in _batches(listed(images), batch_size):
            states = model.image_encoder(self.pixels(batch), cls_only=True)
            parts.append(unit_features(model.image_proj, states[:, 0]))
        return torch.cat(parts) if parts else self._empty(model.image_proj.out_features)

    @_without_gradients
    def encode_text(self, texts: Texts, batch_size: int = 32) -> Tensor:
        """Projected features of unit length (R, E)."""
        model, parts = self.needs("text_proj", "encode for retrieval", PretrainModel, RetrievalModel), []
        for batch in _batches(listed(texts), batch_size):
            ids, lengths = self.ids(batch)
            rows = Rows(lengths, ids.shape[1], self.device)
            parts.append(unit_features(model.text_proj, model.text_encoder.text(ids, rows, first_only=True)))
        return torch.cat(parts) if parts else self._empty(model.text_proj.out_features)

    def itc_score(self, images: Images, texts: Texts) -> Tensor:
        """Cosine of every image to every text (B, R), not divided by the temperature."""
        return self.encode_image(images) @ self.encode_text(texts).T

    @_without_gradients
    def match_logits(self, images: Images, texts: Texts, batch_size: int = 32) -> Tensor:
        """Logits (B, 2) of image i with text i; class 1 = match.

        One image goes with all texts, one text with all images. The texts of one image lie side by side on the query
        axis: it is encoded once.
        """
        model = self.needs("itm_head", "match images and texts", PretrainModel, RetrievalModel)
        images, texts = listed(images), listed(texts)
        if len(texts) == 1:
            texts = texts * len(images)
        if len(images) not in (1, len(texts)):
            raise InputError(f"{len(images)} images and {len(texts)} texts: give as many, or one of either")
        parts, keys = [], None
        for start in range(0, len(texts), batch_size):
            ids, lengths = self.ids(texts[start : start + batch_size])
            if keys is None or len(images) > 1:
                states = model.image_encoder(self.pixels(images[start : start + batch_size]))
                keys = model.text_encoder.image_keys(states)
            ids = with_first(ids, self.tokenizer.enc_id)
            logits = match_logits(model.text_encoder, model.itm_head, ids, lengths=lengths, keys=keys)
            parts.append(logits.float())
        return torch.cat(parts) if parts else self._empty(2)

    @_without_gradients
    def match_all(
        self, images: Images, text_features: Tensor, texts: Texts, batch_size: int = 32
    ) -> tuple[Tensor, Tensor]:
        """Every image with every text: cosines and match probabilities, each (B, R); an image is encoded once.

        `text_features` are those of the texts (`encode_text`), which several calls share.
        """
        model = self.needs("itm_head", "match images and texts", PretrainModel, RetrievalModel)
        texts = listed(texts)
        encoded = [self.ids(texts[start : start + batch_size]) for start in range(0, len(texts), batch_size)]
        cosines, probabilities = [], []
        for batch in _batches(listed(images), batch_size):
            states = model.image_encoder(self.pixels(batch))
            cosines.append(unit_features(model.image_proj, states[:, 0]) @ text_features.T)
            for image in states.split(1):
                keys = model.text_encoder.image_keys(image)  # the texts of one image lie side by side
                logits = []
                for ids, lengths in encoded:
                    ids = with_first(ids, self.tokenizer.enc_id)
                    logits.append(match_logits(model.text_encoder, model.itm_head, ids, lengths=lengths, keys=keys))
                probabilities.append(torch.cat(logits).float().softmax(dim=1)[:, 1])
        return torch.cat(cosines), torch.stack(probabilities)

    def match_probability(self, images: Images, texts: Texts, batch_size: int = 32) -> Tensor:
        """Probability (B,) that image and text belong together; pairs as in `match_logits`."""
        return self.match_logits(images, texts, batch_size).softmax(dim=1)[:, 1]

    def caption(
        self,
        images: Images,
        prompt: str | None = None,
        max_new_tokens: int = 30,
        batch_size: int = 32,
        how: Decoding | None = None,
        seed: int | None = None,
    ) -> list[str]:
        """A caption for each image; `prompt` begins it and is part of the answer. Arguments as in `write`."""
        if max_new_tokens == 0:
            return [prompt or ""] * len(listed(images))
        how = how or Decoding(max_new_tokens=max_new_tokens)
        return [text.text for texts in self.write(images, prompt, how, batch_size, seed) for text in texts[:1]]

    @torch.no_grad()
    def write(
        self,
        images: Images,
        prompt: str | None = None,
        how: Decoding | None = None,
        batch_size: int = 32,
        seed: int | None = None,
    ) -> list[list[Written]]:
        """`how.num_return` captions for each image, with log-probabilities.

        Args:
            images: paths, PIL images or a list of them.
            prompt: what every caption begins with; the one that the model was fine-tuned with unless given.
            how: greedy, beams or sampling, and their options.
            seed: of sampling: the same batches give the same captions.
        """
        model, how = self.needs("text_decoder", "write captions", PretrainModel, CaptionModel), how or Decoding()
        positions = self.positions
        prompt = self.info.get("prompt", "") if prompt is None else prompt
        first = self.tokenizer.encode([prompt], positions)[0][:-1]  # without [SEP]
        first[0] = self.tokenizer.dec_id
        if len(first) + how.max_new_tokens > positions:
            raise InputError(
                f"the prompt has {len(first)} tokens and max_new_tokens is {how.max_new_tokens}; "
                f"the model has {positions} positions"
            )
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        written: list[list[Written]] = []
        for batch in _batches(listed(images), batch_size):
            keys = model.text_decoder.image_keys(model.image_encoder(self.pixels(batch)))
            step = DecoderStep(model.text_decoder, keys)
            ids = torch.tensor([first] * len(batch), device=self.device)
            end, pad = self.tokenizer.sep_id, self.tokenizer.pad_id
            out = generate(step, ids, how, end_id=end, pad_id=pad, generator=generator)
            texts = self._texts(first, out)
            written += [texts[i : i + how.num_return] for i in range(0, len(texts), how.num_return)]
        return written

    @torch.no_grad()
    def answer(
        self,
        images: Images,
        questions: Texts,
        answers: Sequence[str] | None = None,
        k: int = 128,
        how: Decoding | None = None,
        batch_size: int = 16,
    ) -> list[Answer]:
        """The answer to question i about image i; one image goes with all questions.

        The likeliest of `answers`, or of the list that the model was fine-tuned with, is taken; with `how`, or where
        there is no list, the answer is written freely.
        """
        model = self.needs("text_decoder", "answer questions", VqaModel)
        images, questions = listed(images), listed(questions)
        if len(images) == 1:
            images = images * len(questions)
        if len(images) != len(questions):
            raise InputError(f"{len(images)} images and {len(questions)} questions: give as many, or one image")
        choices = list(answers if answers is not None else self.info.get("answers", []))
        if answers is not None and not choices:
            raise InputError("the list of answers is empty")
        choices, tree = self._tree(choices) if choices and how is None else (choices, None)
        found: list[Answer] = []
        for start in range(0, len(questions), batch_size):
            ids, lengths = self.ids(questions[start : start + batch_size])
            shown, which = _each_once(images[start : start + batch_size])  # an image is encoded once for its questions
            states = model.image_encoder(self.pixels(shown))[torch.tensor(which, device=self.device)]
            keys = model.keys_of_questions(states, ids, lengths)
            if tree is not None:
                ranked = rank_answers(model.text_decoder, keys, tree, k=k)
                for row, sure in zip(ranked.answers.tolist(), ranked.probabilities.tolist(), strict=True):
                    candidates = [(choices[i], p) for i, p in zip(row, sure, strict=True)]
                    found.append(Answer(*candidates[0], candidates))
            else:
                out = model.answer(keys, how or Decoding(beams=3, max_new_tokens=10), self.tokenizer.sep_id)
                texts = self._texts([], out)
                step = len(texts) // len(ids)
                found += [Answer(text.text, math.exp(text.log_prob), []) for text in texts[::step]]
        return found

    def _tree(self, choices: list[str]) -> tuple[list[str], AnswerTree]:
        """Different answers and the tree of their tokens; that of the last list is kept."""
        if self._last_tree is None or self._last_tree[0] != choices:
            longest = int(self.info.get("max_answer_tokens") or self.positions)
            texts, tokens = distinct_answers(self.tokenizer, choices, longest)
            if wordless := [i for i, count in enumerate(self.tokenizer.count(choices), start=1) if count < 3]:
                raise InputError(f"answer {wordless[0]} of the list has no token: leave it out")
            tree = AnswerTree(tokens, self.tokenizer.dec_id, self.tokenizer.sep_id)
            self._last_tree = (choices, texts, tree)
        return self._last_tree[1:]

    @_without_gradients
    def judge(self, left: Images, right: Images, statements: Texts, batch_size: int = 32) -> Tensor:
        """Probability (B,) that statement i is true of image i on the left and image i on the right (NLVR2)."""
        model = self.needs("cls_head", "judge statements about two images", NlvrModel)
        left, right, statements = listed(left), listed(right), listed(statements)
        if not len(left) == len(right) == len(statements):
            raise InputError(f"{len(left)} and {len(right)} images and {len(statements)} statements: give as many")
        parts = []
        for start in range(0, len(statements), batch_size):
            end = start + batch_size
            pixels = torch.stack([self.pixels(left[start:end]), self.pixels(right[start:end])], dim=1)
            parts.append(model(pixels, *self.ids(statements[start:end])).float().softmax(dim=1)[:, 1])
        return torch.cat(parts) if parts else torch.zeros(0, device=self.device)

    def _texts(self, prompt: list[int], out: Generated) -> list[Written]:
        written = []
        for ids, log_probs in zip(out.ids.tolist(), out.log_probs.tolist(), strict=True):
            end = ids.index(self.tokenizer.sep_id) + 1 if self.tokenizer.sep_id in ids else len(ids)
            tokens = [self.tokenizer.token(i) for i in ids[:end]]
            text = self.tokenizer.decode(prompt + ids)
            written.append(Written(text, sum(log_probs[:end]), tokens, log_probs[:end]))
        return written

    def needs(self, part: str, what: str, *kinds: type) -> Any:
        """The model, if it is of one of these kinds."""
        if isinstance(self.model, kinds):
            return self.model
        lacks = "" if hasattr(self.model, part) else f": it has no {part.replace('_', ' ')}"
        raise CheckpointError(f"a checkpoint of {self.info['task']} cannot {what}{lacks}")

    def pixels(self, images: Sequence[ImageInput]) -> Tensor:
        """Images -> (B, 3, S, S), normalised, on the device."""
        ready = [image if isinstance(image, Tensor) else self.transform(open_image(image)) for image in images]
        return torch.stack(ready).to(self.device)

    def cleaned(self, text: str) -> str:
        """A text as the model was trained to read it."""
        return blip_cleaning(text) if self.info.get("text_cleaning") == "blip" else text

    def ids(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Texts -> ids (R, T), `[CLS] ... [SEP]` and padding, on the device; lengths (R,), on the CPU."""
        encoded = self.tokenizer.encode([self.cleaned(text) for text in texts], self.max_text_tokens)
        lengths = torch.tensor([len(ids) for ids in encoded])
        ids = torch.full((len(encoded), int(lengths.max())), self.tokenizer.pad_id)
        for row, tokens in zip(ids, encoded, strict=True):
            row[: len(tokens)] = torch.tensor(tokens)
        return ids.to(self.device), lengths

    def _empty(self, width: int) -> Tensor:
        return torch.zeros(0, width, device=self.device)


def _each_once(images: list) -> tuple[list, list[int]]:
    """The different objects of a list, and for each place of the list which of them stands there."""
    first: dict[int, int] = {}
    which = [first.setdefault(id(image), len(first)) for image in images]
    return [images[which.index(number)] for number in range(len(first))], which


def listed(items: Images | Texts) -> list:
    return [items] if isinstance(items, str | Path | Image.Image) else list(items)


def _batches(items: list, size: int) -> Iterator[list]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
