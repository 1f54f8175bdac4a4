"""Contributions to the scores of BLIP-2's first stage, whose scores read queries, or a text behind them.

A match logit is the mean over the queries of what the match head makes of each; a cosine that of the query nearest to
the text, which is frozen at the one observed; a word's logit that of the token before it, which attends to the keys and
values of the queries. Parts of queries are called `qformer.queries.*`, those of texts `qformer.text.*`.

Shapes: R pairs of image and text, Q queries, T tokens, S scores, D width, E width of features.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from blip.errors import InputError
from blip.inference.inputs import OneImage
from blip.inference.predictor import Predictor
from blip.inference.scoring import check_texts
from blip.interpret.features.by_token import Taken
from blip.interpret.features.residual import (
    Attentions,
    Reads,
    Walk,
    first_tokens,
    linear,
    through_layer,
    through_word_head,
    through_words,
)
from blip.interpret.features.scored_tokens import Words, scored_tokens
from blip.interpret.recording import Trace
from blip.interpret.trace import trace
from blip.network.packing import Rows, with_first
from blip.network.qformer import QFormer, layers_of

POINTS = ("qformer.*.in", "qformer.*.out", "qformer.*.self.z", "qformer.*.mlp", "qformer.*.query_mlp")
CROSS = "qformer.*.cross.z"


def of_queries(
    m: Predictor, images: list[OneImage], texts: list[str], *, metric: str, words: Words = ("", "")
) -> Taken:
    """The parts of a score, by component; see `contributions`.

    Raises:
        InputError: there is no such score of BLIP-2, or the word of a logit is in no text.
        CheckpointError: the checkpoint has no such score.
    """
    if metric == "match":
        return _of_match(m, images, texts)
    if metric == "cosine":
        return _of_cosine(m, images, texts)
    if metric == "caption":
        return _of_caption(m, images, texts, words)
    raise InputError(f"metric is {metric!r}; of BLIP-2 contributions are to match, cosine and caption")


def _of_match(m: Predictor, images: list[OneImage], texts: list[str]) -> Taken:
    model = m.needs("match")
    check_texts(m, texts)
    with trace(m, [*POINTS, CROSS]) as t:
        m.match_logits(images, texts, len(texts))
    count = model.qformer.config.queries
    every = torch.arange(count, device=m.device)
    reads = Reads(torch.arange(len(texts), device=m.device).repeat_interleave(count), every.repeat(len(texts)))
    weight, bias = model.itm_head.weight.double(), model.itm_head.bias.double()
    walk = Walk(((weight[1] - weight[0]) / count).expand(len(texts) * count, -1), reads)
    walk.parts["itm_head.bias"] = ((bias[1] - bias[0]) / count).expand(len(texts) * count)
    _through_queries(walk, t, model.qformer)
    walk.parts = {name: values.unflatten(0, (-1, count)).sum(dim=1) for name, values in walk.parts.items()}
    return Taken([walk], _numbers(texts), m.ids(texts)[0])


def _of_cosine(m: Predictor, images: list[OneImage], texts: list[str]) -> Taken:
    """As of BLIP, the cosine is linear in the text's feature and in the query's: either side's parts count half."""
    model, last = m.needs("encode"), f"qformer.{len(layers_of(m.model.qformer)) - 1}.out"
    check_texts(m, texts)
    with trace(m, [*POINTS, CROSS]) as look:
        m.encode_image(images, len(images))
    with trace(m, POINTS) as text:
        m.encode_text(texts, len(texts))
    reads = first_tokens(len(texts), m.device)
    said = linear(model.text_proj, reads.states(text[last]))  # (R, E)
    every = linear(model.image_proj, look[last].double())  # (R, Q, E)
    nearest = (every @ said[..., None]).squeeze(-1).div(every.norm(dim=-1)).argmax(dim=1)
    seen = every[reads.texts, nearest]
    halved = 0.5 / (seen.norm(dim=1, keepdim=True) * said.norm(dim=1, keepdim=True))
    of_text, of_image = Walk(seen * halved, reads), Walk(said * halved, Reads(reads.texts, nearest))
    of_text.through_linear("text_proj.bias", model.text_proj)
    _through_text(of_text, text, model.qformer, m.ids(texts)[0])
    of_image.through_linear("image_proj.bias", model.image_proj)
    _through_queries(of_image, look, model.qformer)
    return Taken([of_image, of_text], _numbers(texts), m.ids(texts)[0])


def _of_caption(m: Predictor, images: list[OneImage], texts: list[str], words: Words) -> Taken:
    model = m.needs("caption")
    check_texts(m, texts, longest=m.positions)
    ids, lengths = m.ids(texts, m.positions)
    written, rows = with_first(ids, m.tokenizer.dec_id), Rows(lengths, ids.shape[1], m.device)
    with m.computing():
        read = model.read_images(m.states(images))
        with trace(m, POINTS) as t:
            model.qformer.write(written, rows, read.cache())
    scored = scored_tokens(m, model.qformer.head, ids, lengths=lengths, words=words)
    walk = Walk(scored.direction, scored.reads)
    walk.parts["qformer.head.bias"] = scored.constant
    states = scored.reads.states(t[f"qformer.{len(layers_of(model.qformer)) - 1}.out"])
    through_word_head(walk, model.qformer.head, states, name="qformer.head.bias")
    _through_text(walk, t, model.qformer, written)
    return Taken([walk], scored.labels, written)


def _through_queries(walk: Walk, t: Trace, qformer: QFormer) -> None:
    """From the states of queries after the last layer to the queries that were learned."""
    for number, layer in reversed(list(enumerate(layers_of(qformer)))):
        attentions: Attentions = [("self", layer.self_attention)]
        if layer.cross_attention is not None:
            attentions.append(("cross", layer.cross_attention))
        through_layer(
            walk, t, attentions, layer.query_feed_forward, point=f"qformer.{number}", mlp="query_mlp",
            name=f"qformer.queries.{number}",
        )  # fmt: skip
    learned = qformer.queries[0, walk.reads.tokens].double()
    walk.through_norm("qformer.queries.embedding.bias", qformer.embeddings.norm, learned)
    walk.add("qformer.queries.embedding", learned)


def _through_text(walk: Walk, t: Trace, qformer: QFormer, ids: Tensor) -> None:
    """From the states of texts after the last layer to the embeddings of ids (R, T)."""
    for number, layer in reversed(list(enumerate(layers_of(qformer)))):
        through_layer(
            walk, t, [("self", layer.self_attention)], layer.feed_forward, point=f"qformer.{number}",
            name=f"qformer.text.{number}",
        )  # fmt: skip
    through_words(walk, qformer.text_embeddings, stack="qformer.text", ids=ids)


def _numbers(texts: Sequence[str]) -> list[str]:
    return [str(number) for number in range(len(texts))]
