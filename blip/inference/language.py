"""BLIP-2 with a language model, its second stage, that takes images and strings; `blip.load` makes one.

Shapes: B images, T tokens of the longest text, Q queries, A answers to choose from.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from blip.checkpoints.format import CheckpointError
from blip.errors import InputError
from blip.inference.computation import without_gradients
from blip.inference.inputs import Images, Texts, as_list, batches_of, each_once, questions_about, seed_of_each
from blip.inference.loaded_model import ABILITIES
from blip.inference.predictor import Predictor
from blip.inference.results import Answer, Written, finite
from blip.models.decoding import Decoding, Generated, uniforms_of
from blip.models.language_tokens import LanguageTokens
from blip.tokenizer import Tokenizer

# what a question is put into, as published; texts that begin so already stay as they are
QUESTIONS = {"causal": "Question: {} Answer:", "seq2seq": "Question: {} Short answer:"}
PLACE, ASKED = "{}", "Question:"
# what the first stage does alone, and where such a checkpoint is from
OF_FIRST_STAGE = ("encode", "match")
FIRST_STAGE = "such as the run that this one started from, or hub:Salesforce/blip2-itm-vit-g"
ANSWERS = Decoding(beams=5, max_new_tokens=10, length_penalty=-1.0)  # as published


class LanguagePredictor(Predictor):
    """The second stage: captions, answers and other texts that a frozen language model writes about images.

    What is written does not begin with its prompt, unlike captions of BLIP.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Tokenizer | None,
        info: dict,
        *,
        tokens: LanguageTokens,
        **options: Any,
    ) -> None:
        """`tokenizer` is that of questions beside the queries, where the Q-Former reads them; else None. `tokens` turn
        texts into ids of the language model. `options` as of `LoadedModel`."""
        super().__init__(model, tokenizer, info, **options)  # type: ignore[arg-type]
        self.tokens = tokens

    def needs(self, ability: str, action: str = "") -> Any:
        """As of `LoadedModel`; CheckpointError says which checkpoint scores images and texts."""
        if ability in OF_FIRST_STAGE:
            action = f"{action or ABILITIES['match'][0]}; that takes one of the first stage, {FIRST_STAGE}"
            raise CheckpointError(f"a checkpoint of {self.info['task']} cannot {action}")
        return super().needs(ability, action)

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
        """`Decoding.num_return` texts for each image, which continue `prompt`; arguments as in `Predictor.write`."""
        self.needs("caption")
        prompt = self.prompt if prompt is None else prompt
        images, decoding = as_list(images), decoding or Decoding()
        seeds = None if seed is None else seed_of_each(seed, len(images))
        written: list[list[Written]] = []
        for batch in batches_of(images, batch_size):
            numbers = slice(len(written), len(written) + len(batch))
            uniforms = None if seeds is None else uniforms_of(seeds[numbers], decoding)
            queries = self.model.query_inputs(self.states(batch))
            generated = self._prompted(queries, [prompt] * len(batch), decoding, uniforms=uniforms)
            written += batches_of(self._written(generated), decoding.num_return)
        return written

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
        """A caption for each image, without `prompt`; arguments as in `write`."""
        decoding = decoding or Decoding(max_new_tokens=max_new_tokens)
        written = self.write(images, prompt, decoding, batch_size=batch_size, seed=seed)
        return [texts[0].text for texts in written]

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
            questions: as many, or several about one image; see `asked`.
            answers: a list to choose from; without one, and with `decoding`, the answer is written.
            k: not used: every answer of the list is scored whole.
            decoding: how answers are written; `ANSWERS` unless given.
            batch_size: questions at once.
        """
        self.needs("answer")
        images, questions = questions_about(images, questions)
        if answers is not None and not answers:
            raise InputError("the list of answers is empty")
        choices = list(self.info.get("answers", []) if answers is None else answers) if decoding is None else []
        given: list[Answer] = []
        for start in range(0, len(questions), batch_size):
            some = questions[start : start + batch_size]
            queries = self._queries_of(images[start : start + batch_size], some)
            prompts = [self.asked(question) for question in some]
            if choices:
                given += [self._chosen(queries[i : i + 1], prompts[i], choices) for i in range(len(some))]
            else:
                one = decoding or ANSWERS
                texts = self._written(self._prompted(queries, prompts, one))
                given += [Answer(text.text, math.exp(text.log_prob), []) for text in texts[:: one.num_return]]
        return given

    @property
    def prompt(self) -> str:
        """What captions continue; "" where the model was trained to answer questions."""
        stated: str = self.info.get("prompt", "")
        return "" if PLACE in stated else stated

    def asked(self, question: str) -> str:
        """A question as the language model reads it: inside the model's template, unless it begins as one already."""
        stated = self.info.get("prompt", "")
        usual = stated if PLACE in stated else QUESTIONS[self.info["language_model"]["kind"]]
        template: str = self.info.get("question_prompt") or usual
        return question if question.startswith(ASKED) else template.replace(PLACE, question)

    @without_gradients
    def log_probs(self, images: Images, texts: Texts, prompt: str | None = None, *, batch_size: int = 32) -> Tensor:
        """Log-probability (B,) of text i about image i behind `prompt`, the end included."""
        self.needs("caption")
        images, texts = as_list(images), as_list(texts)
        if len(images) != len(texts):
            raise InputError(f"{len(images)} images and {len(texts)} texts: give as many")
        prompt, parts = self.prompt if prompt is None else prompt, []
        for start in range(0, len(texts), batch_size):
            queries = self.model.query_inputs(self.states(images[start : start + batch_size]))
            parts.append(self._log_probs(queries, texts[start : start + batch_size], prompt))
        return torch.cat(parts) if parts else torch.zeros(0, device=self.device)

    def _queries_of(self, images: list, questions: list[str]) -> Tensor:
        """What the language model reads of images (B, Q, W); the Q-Former reads the questions too, where it can."""
        distinct, numbers = each_once(images)  # an image is encoded once
        states = self.states(distinct)
        if self.model.qformer.config.text:
            states = states[torch.tensor(numbers, device=self.device)]
            ids, lengths = self.ids(questions)
            return self.model.query_inputs(states, ids, lengths)
        return self.model.query_inputs(states)[torch.tensor(numbers, device=self.device)]

    def _prompted(
        self, queries: Tensor, prompts: list[str], decoding: Decoding, *, uniforms: Tensor | None = None
    ) -> Generated:
        batch = self.tokens.prompts(prompts)
        ids, mask = batch.ids.to(self.device), batch.mask.to(self.device)
        return self.model.write_about(queries, ids, mask, decoding=decoding, uniforms=uniforms)

    def _written(self, generated: Generated) -> list[Written]:
        """Generated ids as texts, up to the end token. CheckpointError as in `finite`."""
        finite(generated.log_probs)
        texts, end_id = self.tokens.decode(generated.ids), self.tokens.ids.end
        written = []
        for text, ids, log_probs in zip(texts, generated.ids.tolist(), generated.log_probs.tolist(), strict=True):
            end = ids.index(end_id) + 1 if end_id in ids else len(ids)
            tokens = self.tokens.tokenizer.convert_ids_to_tokens(ids[:end])
            written.append(Written(text, sum(log_probs[:end]), tokens, log_probs[:end]))
        return written

    def _chosen(self, queries: Tensor, prompt: str, choices: list[str]) -> Answer:
        """The likeliest of A answers to one question; their probabilities sum to one."""
        values = self._log_probs(queries.expand(len(choices), -1, -1), choices, prompt).softmax(dim=0)
        ranked = sorted(zip(choices, values.tolist(), strict=True), key=lambda one: -one[1])
        return Answer(*ranked[0], ranked)

    def _log_probs(self, queries: Tensor, texts: list[str], prompt: str) -> Tensor:
        batch = self.tokens.training(texts, [prompt] * len(texts))
        ids, mask, targets = (x.to(self.device) for x in (batch.ids, batch.mask, batch.targets))
        return finite(self.model.language_model.log_probs(queries, ids, mask, targets=targets).float().sum(dim=1))
