"""Direct logit attribution: a score as an exact sum over embeddings, heads, feed-forward networks and biases.

A score reads one state: a match logit that of `[ENC]`, the logit of a word that of the token before it, a cosine those
of `[CLS]` in image and text. That state is a sum, which `residual.py` takes apart. Frozen at the values observed are
the scale of every layer norm, the gate of the word head's GELU and the lengths of the two features of a cosine. This is
what a component writes into that state; what it reads has causes of its own in earlier layers, which patching finds.

Shapes: R pairs of image and text, S scores, T tokens, C components, K keys.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from blip.errors import InputError
from blip.inference.inputs import Images, OneImage, as_list
from blip.inference.predictor import Predictor
from blip.inference.scoring import answer_log_probs, caption_log_probs, check_texts
from blip.interpret.causes.labelled import Labelled
from blip.interpret.causes.metrics import OneText
from blip.interpret.causes.patching import check_mode
from blip.interpret.features.by_token import Taken, by_token
from blip.interpret.features.query_contributions import of_queries
from blip.interpret.features.residual import (
    Walk,
    first_tokens,
    image_output,
    linear,
    through_image,
    through_text,
    through_word_head,
)
from blip.interpret.features.scored_tokens import scored_tokens
from blip.interpret.points import queries_of
from blip.interpret.trace import trace
from blip.network.packing import with_first

METRICS = ("match", "cosine", "caption", "answer")
COLUMNS = ("component", "word", "patch")


def contributions(
    m: Predictor,
    images: Images,
    texts: OneText | Sequence[OneText],
    *,
    metric: str = "match",
    by: str = "component",
    word: str = "",
    against: str = "",
) -> Labelled:
    """What each component adds to the score of image i with text i; a row of the result sums to that score.

    Args:
        m: what `blip.load` returns, of BLIP or the first stage of BLIP-2; its passes are computed in fp32.
        images: one image a pair.
        texts: one text a pair; for `answer`, (question, answer).
        metric: `match`, the logit of a match minus that of none; `cosine` of the two features; `caption` or `answer`,
            the logit of each token that is written, read at the token before it.
        by: columns: `component`, such as `decoder.2.cross.head.1`; `word`, from which token of the text; `patch`, from
            which token of the image (in `answer`: of the question, to which that decoder attends). What comes from no
            token is in the columns `mlp`, `bias`, and `image` or `text`.
        word: of captions and answers: this word's logit, where the text has it or `against`, once a pair.
        against: minus the logit of this word.

    Raises:
        InputError: an unknown metric or column, a word that no text has, or a model that cannot be taken apart so.
        CheckpointError: the checkpoint's task has no such score.

    Example:
        >>> m = blip.load("checkpoint")
        >>> table = blip.contributions(m, "chest.png", "small left effusion", metric="caption")
        >>> print(table.select(score="0.1 small").top(3))
    """
    pictures = as_list(images)
    read: list[Any] = [texts] if isinstance(texts, str | tuple) else list(texts)
    _check(m, pictures, read, metric=metric, by=by, words=(word, against))
    by_source = by != "component"
    with torch.no_grad(), m.in_precision("fp32"):
        if queries_of(m.model) is not None:
            taken = of_queries(m, pictures, read, metric=metric, words=(word, against))
        elif metric == "match":
            taken = _of_match(m, pictures, read, by_source=by_source)
        elif metric == "cosine":
            taken = _of_cosine(m, pictures, read, by_source=by_source)
        else:
            taken = _of_words(m, pictures, read, metric, by_source=by_source, words=(word, against))
    columns = taken.parts() if by == "component" else by_token(m, taken, by)
    values = torch.stack(list(columns.values()), dim=1).cpu().numpy()
    labels = {"score": taken.labels, by: list(columns)}
    return Labelled(np.asarray(values), ("score", by), labels, f"{metric} contribution", "logit" * (metric != "cosine"))


def _check(m: Predictor, images: list, texts: list, *, metric: str, by: str, words: tuple[str, str]) -> None:
    """InputError for what cannot be taken apart, before any work."""
    if metric not in METRICS:
        raise InputError(f"metric is {metric!r}; contributions are to {', '.join(METRICS)}")
    if by not in COLUMNS:
        raise InputError(f"by is {by!r}; it can be {', '.join(COLUMNS)}")
    check_mode(m)
    if "language_model" in m.info:
        raise InputError(
            "a second stage of BLIP-2 has no contributions: a language model writes its words, whose layers have no "
            "points; take blip.patch_sweep of the Q-Former, or a first stage"
        )
    if queries_of(m.model) is not None and by != "component":
        raise InputError(f"by is {by!r}; of BLIP-2 it can be component: texts and patches pass through its queries")
    if not texts or len(images) != len(texts):
        raise InputError(f"{len(images)} images and {len(texts)} texts: give as many, and one or more")
    if (metric == "answer") != any(isinstance(text, tuple) for text in texts):
        raise InputError(
            f"a text is a pair (question, answer) for the metric answer, else a string; not so for {metric}"
        )
    if any(words) and metric not in ("caption", "answer"):
        raise InputError(f"word and against are for caption and answer; the metric is {metric}")
    if words[1] and not words[0]:
        raise InputError("against is the other word of a comparison: give word as well")


# ---- the scores ------------------------------------------------------------------------------------------------------


def _of_match(m: Predictor, images: list[OneImage], texts: list[str], *, by_source: bool) -> Taken:
    model = m.needs("match")
    check_texts(m, texts)
    with trace(m, _points("text", by_source)) as t:
        m.match_logits(images, texts, len(texts))
    ids = with_first(m.ids(texts)[0], m.tokenizer.enc_id)
    reads = first_tokens(len(texts), m.device)
    weight, bias = model.itm_head.weight.double(), model.itm_head.bias.double()
    walk = Walk((weight[1] - weight[0]).expand(len(texts), -1), reads, by_source)
    walk.parts["itm_head.bias"] = (bias[1] - bias[0]).expand(len(texts))
    through_text(walk, t, model.text_encoder, stack="text", ids=ids, images=True)
    return Taken([walk], _numbers(texts), ids, grid=t.grid)


def _of_cosine(m: Predictor, images: list[OneImage], texts: list[str], *, by_source: bool) -> Taken:
    """The cosine is linear in the text's feature and in the image's: either side's parts sum to it, and count half."""
    model = m.needs("encode")
    check_texts(m, texts)
    pixels = m.pixels(images)
    if not isinstance(pixels, Tensor) or pixels.dim() != 4:
        raise InputError("a cosine of several pictures is of their mean: contributions are to that of one picture")
    points = [*_points("text", by_source, images=False), *_points("image", by_source)]
    with trace(m, points) as t:
        m.encode_image(list(pixels), len(images))
        m.encode_text(texts, len(texts))
    ids, reads = m.ids(texts)[0], first_tokens(len(texts), m.device)
    last = f"{len(model.image_encoder.blocks) - 1}.out"
    seen = linear(model.image_proj, image_output(model.image_encoder, reads.states(t[f"image.{last}"])))  # (R, E)
    last = f"{len(model.text_encoder.layers) - 1}.out"
    said = linear(model.text_proj, reads.states(t[f"text.{last}"]))
    halved = 0.5 / (seen.norm(dim=1, keepdim=True) * said.norm(dim=1, keepdim=True))
    of_text, of_image = Walk(seen * halved, reads, by_source), Walk(said * halved, reads, by_source)
    of_text.through_linear("text_proj.bias", model.text_proj)
    through_text(of_text, t, model.text_encoder, stack="text", ids=ids, images=False)
    of_image.through_linear("image_proj.bias", model.image_proj)
    through_image(of_image, t, model.image_encoder)
    return Taken([of_image, of_text], _numbers(texts), ids, grid=t.grid)


def _of_words(
    m: Predictor, images: list[OneImage], texts: list[Any], metric: str, *, by_source: bool, words: tuple[str, str]
) -> Taken:
    """The logits of the tokens of captions, or of answers to questions."""
    model = m.needs(metric)
    decoder = model.text_decoder
    with trace(m, [*_points("decoder", by_source), f"decoder.{len(decoder.layers) - 1}.out"]) as t:
        if metric == "caption":
            check_texts(m, texts, longest=m.positions)
            ids, lengths = m.ids(texts, m.positions)
            caption_log_probs(m, images, texts)
        else:
            questions, answers = map(list, zip(*texts, strict=True))
            ids, lengths = m.ids(answers)
            answer_log_probs(m, images, questions, answers=answers)
    scored = scored_tokens(m, decoder.head, ids, lengths=lengths, words=words)
    walk = Walk(scored.direction, scored.reads, by_source)
    walk.parts["decoder.head.bias"] = scored.constant
    states = scored.reads.states(t[f"decoder.{len(decoder.layers) - 1}.out"])
    through_word_head(walk, decoder.head, states, name="decoder.head.bias")
    written = with_first(ids, m.tokenizer.dec_id)
    through_text(walk, t, decoder, stack="decoder", ids=written, images=True)
    return Taken([walk], scored.labels, written, m.ids(questions)[0] if metric == "answer" else None, t.grid)


def _points(stack: str, by_source: bool, images: bool = True) -> list[str]:
    """The points that a walk through a stack reads."""
    sites = ["attn"] if stack == "image" else ["self", "cross"] if images else ["self"]
    read = ("z", "v", "pattern") if by_source else ("z",)
    states = ("mlp", "out") if stack == "image" else ("in", "mlp", "out")
    return [f"{stack}.*.{point}" for point in (*states, *(f"{site}.{point}" for site in sites for point in read))]


def _numbers(texts: Sequence[object]) -> list[str]:
    return [str(number) for number in range(len(texts))]
