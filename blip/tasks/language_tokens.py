"""The texts of a language model on their way through a run: samples of ids, batches of ids, masks and targets.

A run has one tokenizer, with which it pads, counts and decodes; here that of the language model takes its place.

Shapes: B texts, T tokens of the longest.
"""

import os
from bisect import bisect
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from blip.config import ConfigError
from blip.models.language_tokens import MAX_PROMPT, LanguageTokens, Seq2SeqTokens, TextBatch
from blip.models.losses import IGNORED
from blip.tokenizer import blip_cleaning


class LanguageTokenizer:
    """The tokenizer of a language model, as a run needs one."""

    def __init__(self, tokens: LanguageTokens):
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # its threads would not survive in loader workers
        self.tokens, self.pad_id = tokens, tokens.ids.pad
        self.size = len(tokens.tokenizer)

    def count(self, texts: Sequence[str]) -> list[int]:
        """The number of tokens of each text with its end, if nothing were cut."""
        return [len(self.tokens.tokenizer(text)["input_ids"]) + 1 for text in texts]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of generated ids, without what follows their end."""
        return self.tokens.decode(torch.tensor([list(ids)], dtype=torch.long))[0]

    def written(self, text: str) -> str:
        """The text that the model writes when it generates the tokens of `text`."""
        ids = self.tokens.tokenizer(text)["input_ids"]
        return str(self.tokens.tokenizer.decode(ids, skip_special_tokens=True)).strip()

    def save(self, path: Path) -> None:
        """Writes the JSON form of the `tokenizers` library."""
        backend = getattr(self.tokens.tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise ConfigError("the tokenizer of this language model has no tokenizer.json: save it as a fast one first")
        path.parent.mkdir(parents=True, exist_ok=True)
        backend.save(str(path))


class LanguageEncoder:
    """A caption to the numbers of a sample: how many of its tokens are no targets, then its tokens.

    `text_batch` reads them. `prompt`: what precedes the caption; `text_cleaning` as in `CaptionEncoder`.
    """

    def __init__(self, tokens: LanguageTokens, prompt: str = "", *, text_cleaning: str = "none"):
        self.tokens, self.prompt, self.clean = tokens, prompt.strip(), text_cleaning == "blip"

    def __call__(self, caption: str) -> list[int]:
        return self.of(self.prompt, blip_cleaning(caption) if self.clean else caption)

    def is_cut(self, prompt: str, text: str) -> bool:
        """Whether the end of a text behind a prompt is left out."""
        whole = text if isinstance(self.tokens, Seq2SeqTokens) or not prompt else f"{prompt} {text}"
        ends = 0 if isinstance(self.tokens, Seq2SeqTokens) else 1  # of T5 it is among the tokens
        return len(self.tokens.tokenizer(whole)["input_ids"]) + ends > self.tokens.max_tokens

    def of(self, prompt: str, text: str) -> list[int]:
        """The numbers of a text behind a prompt; an encoder-decoder reads its prompts apart."""
        if isinstance(self.tokens, Seq2SeqTokens):
            targets = self.tokens.training([text]).targets[0]
            return [0, *targets.tolist()]
        batch = self.tokens.training([text], [prompt])
        learned = int((batch.targets[0] != IGNORED).long().argmax())
        return [learned, *batch.ids[0].tolist()]


class QuestionPrompts:
    """Questions inside their prompt, as a language model reads them: no longer than it may be, so that the answer that
    is learned behind it stays whole.

    A question that is too long loses its end; what the prompt has behind it stays. An encoder-decoder reads its
    questions apart from answers, up to `MAX_PROMPT` tokens.

    Args:
        template: with one `{}`, where the question stands.
        max_tokens: of a prompt, those of its question included.
    """

    def __init__(self, tokens: LanguageTokens, template: str, max_tokens: int):
        """Raises ConfigError where the template alone is too long."""
        self.tokens, self.template = tokens, template
        self.max_tokens = MAX_PROMPT if isinstance(tokens, Seq2SeqTokens) else max_tokens
        if (own := self._length("")) >= self.max_tokens:
            raise ConfigError(
                f"question_prompt has {own} tokens and leaves no place for a question: set max_text_tokens above "
                f"{own}, now {self.max_tokens}"
            )

    def __call__(self, question: str) -> str:
        return self.template.format(self.fitting(question))

    def is_cut(self, question: str) -> bool:
        """Whether the end of a question is left out."""
        return self._length(question) > self.max_tokens

    def fitting(self, question: str) -> str:
        """The question, or its first words where all of them are too many; letters, where the first word alone is."""
        if not self.is_cut(question):
            return question
        words = question.split()
        counts = range(1, len(words))
        if fit := bisect(counts, self.max_tokens, key=lambda count: self._length(" ".join(words[:count]))):
            return " ".join(words[:fit])
        return question[: bisect(range(1, len(question)), self.max_tokens, key=lambda n: self._length(question[:n]))]

    def _length(self, question: str) -> int:
        return len(self.tokens.tokenizer(self.template.format(question).strip())["input_ids"])


def text_batch(tokens: LanguageTokens, numbers: Tensor, lengths: Tensor, prompts: Sequence[str]) -> TextBatch:
    """What the language model learns of a batch.

    Args:
        numbers: (B, 1+T) of `LanguageEncoder`, padded.
        lengths: (B,), on the CPU.
        prompts: of an encoder-decoder: one for all, or one each.
    """
    ids, device = numbers[:, 1:], numbers.device
    place = torch.arange(ids.shape[1], device=device)
    mask = place < (lengths.to(device) - 1)[:, None]
    targets = ids.masked_fill(~(mask & (place >= numbers[:, :1])), IGNORED)
    if not isinstance(tokens, Seq2SeqTokens):
        return TextBatch(ids, mask, targets)
    read = tokens.prompts(list(prompts))
    count = len(ids) // len(prompts)
    return TextBatch(read.ids.to(device).repeat(count, 1), read.mask.to(device).repeat(count, 1), targets)
