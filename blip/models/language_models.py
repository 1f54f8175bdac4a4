"""Frozen language models of transformers behind one interface: queries of an image and ids of a text in, losses and
steps of generation out.

`CausalLanguageModel` reads queries and text as one sequence (OPT, GPT-2, Llama ...), `Seq2SeqLanguageModel` reads
queries and prompt in its encoder and writes with its decoder (T5 ...). The module is passed in and never loaded here;
any that takes `inputs_embeds` will do.

Shapes: B images with a text each, Q queries of an image, T tokens of a text, U targets of a text, W width of the
embeddings, V words.
"""

from typing import Any

import torch
from torch import Tensor, nn

from blip.errors import InputError
from blip.models import losses
from blip.models.decoding import Step
from blip.models.language_steps import (
    SHARED,
    CausalStep,
    Seq2SeqStep,
    SharedPrefixStep,
    takes,
    use_shared_attention,
)
from blip.models.language_tokens import CausalTokens, LanguageIds, LanguageTokens, Seq2SeqTokens

SHARED_PREFIX = ("opt", "gpt2", "llama")  # `model_type` of those whose texts share the keys of their image
LINE_ENDS_TEXT = ("opt",)  # those that were trained to end a caption by a line break


class LanguageModel(nn.Module):
    """What both kinds have in common. The module is frozen: no parameter of it needs a gradient.

    It stays in evaluation mode while the model around it trains, unless `dropout` is set: the published code leaves the
    dropout of the frozen model active.
    """

    def __init__(self, module: Any, ids: LanguageIds, *, dropout: bool = False):
        super().__init__()
        self.module = module.requires_grad_(False)
        self.ids, self.dropout = ids, dropout
        self.train(self.training)

    @property
    def width(self) -> int:
        """W, the width of what stands for a token in the model's input."""
        return self.module.get_input_embeddings().weight.shape[1]

    @property
    def kind(self) -> str:
        """What the module is called in its configuration."""
        return str(self.module.config.model_type)

    def train(self, mode: bool = True) -> "LanguageModel":
        super().train(mode and self.dropout)
        return self

    def embed(self, ids: Tensor) -> Tensor:
        """ids (B, T) -> (B, T, W)."""
        return self.module.get_input_embeddings()(ids)

    def inputs(self, queries: Tensor, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Queries (B, Q, W) before a text: embeddings (B, Q+T, W) and where they count, (B, Q+T) boolean."""
        self.check_length(queries.shape[1] + ids.shape[1])
        words = self.embed(ids)
        seen = torch.cat([mask.new_ones(queries.shape[:2]), mask], dim=1)
        return torch.cat([queries.to(words.dtype), words], dim=1), seen

    def check_length(self, tokens: int) -> None:
        """InputError where the model has fewer positions than queries and text have tokens."""
        limit = getattr(self.module.config, "max_position_embeddings", None)
        if limit is not None and tokens > limit:
            raise InputError(
                f"queries, prompt and text have {tokens} tokens, the language model has {limit} positions: shorten the "
                "prompt or write fewer tokens"
            )

    def loss(self, queries: Tensor, ids: Tensor, mask: Tensor, *, targets: Tensor) -> Tensor:
        """The mean of the cross-entropy over the targets that count; arguments as in `predictions`."""
        logits = self.predictions(queries, ids, mask, targets=targets)
        return losses.language_model(logits.flatten(0, 1), targets.flatten(), 0.0)

    def log_probs(self, queries: Tensor, ids: Tensor, mask: Tensor, *, targets: Tensor) -> Tensor:
        """The log-probability of each target (B, U), 0 where it does not count; arguments as in `predictions`."""
        logits = self.predictions(queries, ids, mask, targets=targets)
        each = losses.language_model_each(logits.flatten(0, 1), targets.flatten(), 0.0)
        return -each.view(targets.shape)

    def predictions(self, queries: Tensor, ids: Tensor, mask: Tensor, *, targets: Tensor) -> Tensor:
        """Logits (B, U, V) by which each target is predicted.

        Args:
            queries: (B, Q, W), of the images.
            ids: (B, T), with `mask` (B, T), True at a token.
            targets: (B, U), see `language_tokens.TextBatch`.
        """
        raise NotImplementedError

    def step(self, queries: Tensor, ids: Tensor, mask: Tensor, *, room: int) -> Step:
        """Steps that continue prompts `ids` (B, T) with `mask`; `room`: tokens that will be written about an image."""
        raise NotImplementedError

    def written_before(self, ids: Tensor, mask: Tensor) -> Tensor:
        """The tokens (B, T') that penalties of repetition count as written."""
        return self.first(len(ids), ids.device)

    def first(self, count: int, device: torch.device) -> Tensor:
        """The first token alone, (count, 1)."""
        return torch.full((count, 1), self.ids.start, device=device)


class CausalLanguageModel(LanguageModel):
    """Continues queries and prompt."""

    def __init__(self, module: Any, ids: LanguageIds, *, dropout: bool = False):
        super().__init__(module, ids, dropout=dropout)
        usual = getattr(module.config, "_attn_implementation", None) == "sdpa"
        if usual and self.kind in SHARED_PREFIX:
            use_shared_attention(module)

    @property
    def shares_prefix(self) -> bool:
        """Whether texts about an image share its keys, see `SharedPrefixStep`."""
        return getattr(self.module.config, "_attn_implementation", None) == SHARED

    def predictions(self, queries: Tensor, ids: Tensor, mask: Tensor, *, targets: Tensor) -> Tensor:
        """See `LanguageModel`; the last query predicts the first token."""
        embeddings, seen = self.inputs(queries, ids, mask)
        first, last = queries.shape[1] - 1, embeddings.shape[1] - 1
        keep = torch.arange(first, last, device=ids.device)
        if takes(self.module, "logits_to_keep"):  # no logits of queries, which are many words wide
            out = self.module(
                inputs_embeds=embeddings, attention_mask=seen.long(), logits_to_keep=keep, use_cache=False
            )
            return out.logits
        return self.module(inputs_embeds=embeddings, attention_mask=seen.long(), use_cache=False).logits[:, first:last]

    def step(self, queries: Tensor, ids: Tensor, mask: Tensor, *, room: int) -> Step:
        """See `LanguageModel`."""
        prefix, seen = padding_first(*self.inputs(queries, ids, mask))
        if self.shares_prefix:
            return SharedPrefixStep(self.module, prefix, seen, room=room)
        return CausalStep(self.module, prefix, seen)

    def written_before(self, ids: Tensor, mask: Tensor) -> Tensor:
        """The prompt; in place of its padding its first token, so that no other token is penalised."""
        if not ids.shape[1]:
            return self.first(len(ids), ids.device)
        first = ids.gather(1, mask.long().argmax(dim=1, keepdim=True))
        return ids.where(mask, first)


def padding_first(embeddings: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    """Puts what does not count, (B, N) False in `seen`, before all else, so that every row ends with a real token.

    The padding of prompts stands between queries and prompt; an empty prompt is padding alone.
    """
    order = seen.long().argsort(dim=1, stable=True)
    return embeddings.gather(1, order[..., None].expand_as(embeddings)), seen.gather(1, order)


class Seq2SeqLanguageModel(LanguageModel):
    """Reads queries and prompt, writes a text of its own."""

    def predictions(self, queries: Tensor, ids: Tensor, mask: Tensor, *, targets: Tensor) -> Tensor:
        """See `LanguageModel`; the decoder reads its first token and the targets before each."""
        embeddings, seen = self.inputs(queries, ids, mask)
        read = torch.cat([self.first(len(ids), ids.device), targets[:, :-1]], dim=1)
        read = read.masked_fill(read == losses.IGNORED, self.ids.pad)
        out = self.module(inputs_embeds=embeddings, attention_mask=seen.long(), decoder_input_ids=read, use_cache=False)
        return out.logits

    def step(self, queries: Tensor, ids: Tensor, mask: Tensor, *, room: int) -> Step:
        """See `LanguageModel`."""
        return Seq2SeqStep(self.module, *self.inputs(queries, ids, mask))


def language_model(
    module: Any,
    tokenizer: Any,
    max_tokens: int = 32,
    *,
    end: str | None = None,
    end_may_be_cut: bool = False,
    dropout: bool = False,
) -> tuple[LanguageModel, LanguageTokens]:
    """The adapter of a module of transformers, and its tokenizer's.

    Args:
        end: the text of one token that ends a caption; None: what the family of the module was trained with.
        end_may_be_cut: cut long texts after their end was put behind them, as published, see `CausalTokens`.
        dropout: see `LanguageModel`.

    Raises:
        InputError: the module is neither causal nor an encoder-decoder with embeddings as input.
    """
    if not takes(module, "inputs_embeds"):
        raise InputError(f"{type(module).__name__} takes no inputs_embeds: queries cannot stand before a text")
    config = module.config
    if getattr(config, "is_encoder_decoder", False):
        start = config.decoder_start_token_id
        start = tokenizer.pad_token_id if start is None else start
        seq2seq = Seq2SeqTokens(tokenizer, max_tokens, start_id=start)
        return Seq2SeqLanguageModel(module, seq2seq.ids, dropout=dropout), seq2seq
    if end is None and config.model_type in LINE_ENDS_TEXT:
        end = "\n"
    causal = CausalTokens(tokenizer, max_tokens, end=end, end_may_be_cut=end_may_be_cut)
    return CausalLanguageModel(module, causal.ids, dropout=dropout), causal
