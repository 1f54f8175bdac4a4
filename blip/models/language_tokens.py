"""Texts to the ids of a language model and back: where padding, prompts and the end token stand in a batch.

The tokenizer is one of transformers and is passed in. `CausalTokens` belongs to a model that continues its input,
`Seq2SeqTokens` to one that reads an input and writes another text.

Shapes: B texts, T tokens of the longest, U tokens of the longest target.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from blip.errors import InputError
from blip.models.losses import IGNORED

MAX_PROMPT = 512  # tokens of a prompt to continue; those of training share `max_tokens` with their text


@dataclass
class TextBatch:
    """Texts as a language model reads them.

    Of a causal model `targets` stand where the tokens stand: U is T, and a target is the token of its own place, which
    the place before it predicts. Of an encoder-decoder they are the tokens of another text.
    """

    ids: Tensor  # (B, T)
    mask: Tensor  # (B, T) True at a token, False at padding
    targets: Tensor  # (B, U) `losses.IGNORED` where a token does not count


@dataclass(frozen=True)
class LanguageIds:
    """Ids of special tokens: what precedes the first word, what ends a text, and what fills up a batch.

    `pad` may equal `end`: padding is masked by its place, not by its id.
    """

    start: int
    end: int
    pad: int


class LanguageTokens:
    """What both kinds have in common.

    Args:
        tokenizer: of transformers.
        max_tokens: tokens of a text at most, those of its prompt, the first and the end token included.
    """

    def __init__(self, tokenizer: Any, max_tokens: int = 32):
        if max_tokens < 2:
            raise InputError(f"max_text_tokens is {max_tokens}, it must be 2 or more")
        self.tokenizer, self.max_tokens = tokenizer, max_tokens
        self.ids: LanguageIds

    def training(self, texts: Sequence[str], prompts: Sequence[str] | None = None) -> TextBatch:
        """Texts to learn, each behind its prompt; the tokens of prompts are no targets.

        Raises:
            InputError: a prompt leaves no place for its text.
        """
        raise NotImplementedError

    def prompts(self, texts: Sequence[str]) -> TextBatch:
        """Prompts to continue.

        Raises:
            InputError: a prompt has more than `MAX_PROMPT` tokens.
        """
        raise NotImplementedError

    def decode(self, ids: Tensor) -> list[str]:
        """Generated ids (B, T) to texts, without the end token and what follows."""
        texts = []
        for row in ids.tolist():
            row = row[: row.index(self.ids.end)] if self.ids.end in row else row
            texts.append(self.tokenizer.decode(row, skip_special_tokens=True).strip())
        return texts

    def _encode(self, text: str) -> list[int]:
        return list(self.tokenizer(text)["input_ids"])

    def _check(self, prompt: str, tokens: int) -> None:
        if tokens > MAX_PROMPT:
            raise InputError(f"the prompt {_shortened(prompt)} has {tokens} tokens, at most {MAX_PROMPT} are read")


class CausalTokens(LanguageTokens):
    """Texts of a model that continues its input: `[first token] prompt text end`.

    A text is cut to `max_tokens` before its end token is put behind it, so that every text teaches the model to stop.
    The published code cuts afterwards: long texts lose their end, and a model that reads many of them never stops.

    Args:
        end: the text whose one token ends a caption; None: the tokenizer's end of text. Published OPT: a line break.
        end_may_be_cut: the published order.
    """

    def __init__(self, tokenizer: Any, max_tokens: int = 32, *, end: str | None = None, end_may_be_cut: bool = False):
        super().__init__(tokenizer, max_tokens)
        self.end, self.end_may_be_cut = end, end_may_be_cut
        end_id = tokenizer.eos_token_id
        if end is not None:
            found = tokenizer(end, add_special_tokens=False)["input_ids"]
            if len(found) != 1:
                raise InputError(
                    f"the end of captions, {end!r}, has {len(found)} tokens in this tokenizer, it must be 1"
                )
            end_id = found[0]
        if end_id is None:
            raise InputError("this tokenizer has no token that ends a text: set end_text to a text of one token")
        start = first_known(tokenizer.bos_token_id, tokenizer.eos_token_id, end_id)
        self.ids = LanguageIds(start, end_id, first_known(tokenizer.pad_token_id, tokenizer.unk_token_id, start))

    def training(self, texts: Sequence[str], prompts: Sequence[str] | None = None) -> TextBatch:
        """Padded on the right. With a prompt, its tokens and the first token are no targets."""
        rows, learned_from = [], []
        for text, prompt in zip(texts, prompts or [""] * len(texts), strict=True):
            before = self._encode(prompt) if prompt else []
            ids = self._ended(text, f"{prompt} " if prompt else "")
            first = _common(before, ids)
            if first >= self.max_tokens - 1:
                raise InputError(
                    f"the prompt {_shortened(prompt)} has {len(before)} tokens and leaves no place for a text: "
                    f"shorten it or raise max_text_tokens, now {self.max_tokens}"
                )
            rows.append(ids)
            learned_from.append(first)
        padded_ids, mask = padded(rows, self.ids.pad)
        counts = mask & (torch.arange(mask.shape[1]) >= torch.tensor(learned_from)[:, None])
        return TextBatch(padded_ids, mask, padded_ids.masked_fill(~counts, IGNORED))

    def _ended(self, text: str, prompt: str) -> list[int]:
        """The ids of a text behind its prompt, with their end; line breaks inside a text would end it."""
        if not self.end_may_be_cut:
            text = " ".join(text.split())
            return [*self._encode((prompt + text).rstrip())[: self.max_tokens - 1], self.ids.end]
        if self.end is None:
            return [*self._encode(prompt + text), self.ids.end][: self.max_tokens]
        return self._encode(prompt + text + self.end)[: self.max_tokens]

    def prompts(self, texts: Sequence[str]) -> TextBatch:
        """Padded on the left, so that what is written follows directly."""
        rows = [self._encode(text.rstrip()) for text in texts]
        for text, row in zip(texts, rows, strict=True):
            self._check(text, len(row))
        ids, mask = padded(rows, self.ids.pad, left=True)
        return TextBatch(ids, mask, torch.full_like(ids, IGNORED))


class Seq2SeqTokens(LanguageTokens):
    """Texts of an encoder-decoder: the prompt is read, the text is written; each ends with the tokenizer's end token.

    The tokenizer cuts a text to `max_tokens` and puts the end behind it.

    Args:
        start_id: what the decoder reads first; `decoder_start_token_id` of the model's configuration.
    """

    def __init__(self, tokenizer: Any, max_tokens: int = 32, *, start_id: int):
        super().__init__(tokenizer, max_tokens)
        if tokenizer.eos_token_id is None or tokenizer.pad_token_id is None:
            raise InputError("the tokenizer of an encoder-decoder needs an end token and a padding token")
        self.ids = LanguageIds(start_id, tokenizer.eos_token_id, tokenizer.pad_token_id)

    def training(self, texts: Sequence[str], prompts: Sequence[str] | None = None) -> TextBatch:
        """Prompts are the input, texts the targets; both padded on the right."""
        ids, mask = self._cut(prompts or [""] * len(texts))
        targets, counts = self._cut(texts)
        return TextBatch(ids, mask, targets.masked_fill(~counts, IGNORED))

    def prompts(self, texts: Sequence[str]) -> TextBatch:
        """Padded on the right: an encoder reads its whole input."""
        rows = [self._encode(text) for text in texts]
        for text, row in zip(texts, rows, strict=True):
            self._check(text, len(row))
        ids, mask = padded(rows, self.ids.pad)
        return TextBatch(ids, mask, torch.full_like(ids, IGNORED))

    def _cut(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        encoded = self.tokenizer(list(texts), truncation=True, max_length=self.max_tokens)["input_ids"]
        return padded(encoded, self.ids.pad)


def padded(rows: Sequence[Sequence[int]], pad_id: int, *, left: bool = False) -> tuple[Tensor, Tensor]:
    """Rows of ids to (B, T) and where they are tokens, (B, T); padded on the right, or on the `left`."""
    longest = max((len(row) for row in rows), default=0)
    ids = torch.full((len(rows), longest), pad_id)
    mask = torch.zeros(len(rows), longest, dtype=torch.bool)
    for i, row in enumerate(rows):
        place = slice(longest - len(row), longest) if left else slice(0, len(row))
        ids[i, place] = torch.tensor(list(row), dtype=torch.long)
        mask[i, place] = True
    return ids, mask


def first_known(*ids: int | None) -> int:
    """The first id that there is."""
    return next(one for one in ids if one is not None)


def _common(first: Sequence[int], second: Sequence[int]) -> int:
    """The tokens that both begin with; the last of a prompt may be another one where its text follows."""
    count = 0
    while count < min(len(first), len(second)) and first[count] == second[count]:
        count += 1
    return count


def _shortened(text: str, most: int = 60) -> str:
    return repr(text if len(text) <= most else text[: most - 3] + "...")
