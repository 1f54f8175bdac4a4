"""Maps of the parts of an image that matching, captioning or answering depended on, for each word and the sentence.

    for explanation in explain_pairs(m, "chest.png", "small left effusion"):
        explanation.maps  # (words, h, w), at the resolution of the patches

Methods, each with the same signature (`maps.py`):

    gradcam    mean over heads of A * max(ds/dA, 0), at one layer's cross-attention (Li et al. 2021, section 5)
    raw        mean over heads of A, independent of its effect on s
    relevance  the rules of Chefer et al. 2021 (equations 5 to 11) through all layers of image encoder and text
               transformer, where texts attend to images, and images only to themselves
    rollout    raw attention, carried back to the patches by attention rollout (Abnar and Zuidema 2020); of the image
               encoder alone, where there is no text

A is a pattern of cross-attention and s the score that is explained: for `match` the match logit before its soft-max;
for `caption` the log-probability of word t, read at row t-1, from which it was predicted; for `answer` that of the
whole answer, through the question encoder's cross-attention. Maps are not a diagnosis, and not all methods find what
mattered (`docs/results.md`). Of an item of several pictures (`blip.Study`) each picture has a map.

Shapes: R pairs of image and text, T tokens, H heads, N = h*w patches.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal

import torch
from torch import Tensor

from blip.errors import InputError
from blip.inference.inputs import CAPTIONS, Images, OneImage, Study, Texts, as_list, batches_of
from blip.inference.predictor import Predictor
from blip.inference.query_scoring import written_spans
from blip.inference.scoring import check_texts
from blip.interpret.maps import MAPS, image_rollout
from blip.interpret.objectives import OBJECTIVES, Objective, completed_answers, completed_captions, explained
from blip.interpret.query_maps import maps_of_queries
from blip.interpret.recording import Trace
from blip.interpret.requests import Request, request_of
from blip.interpret.trace import trace
from blip.models.decoding import Decoding
from blip.models.factory import spec_of

# where a text comes from: the caller, the model, or the record of a data set
Origin = Literal["given", "predicted", "true"]
PAIRS_AT_ONCE = 4  # relevance keeps the patterns of all layers: 0.9 GB for each image of 480 pixels in ViT-B/16


@dataclass
class Explanation:
    """Maps of one text about one image. Values are those of the method, not scaled; 0 means no effect."""

    task: str
    method: str
    layer: int | None  # of the cross-attention; None where a method reads all
    text: str  # that was matched, written or asked; empty for a map of the image alone
    answer: str  # to a question; else empty
    score: float  # s, of the whole text; 0 for a map of the image alone
    words: list[str]
    maps: Tensor  # (words, h, w); of an item of F pictures (words, F, h, w)
    sentence: Tensor  # (h, w), or (F, h, w)
    text_is: Origin = "given"
    answer_is: Origin = "given"
    truth: str = ""  # the caption or answer of the record, where the model's own was explained


def pictures_in(image: OneImage) -> int:
    """The pictures of an image or a study."""
    return len(image.pictures) if isinstance(image, Study) else 1


@dataclass
class Pair:
    """An image with its text, and the answer where the text is a question."""

    image: OneImage
    text: str
    answer: str
    text_is: Origin = "given"
    answer_is: Origin = "given"


def explain_pairs(
    m: Predictor,
    images: Images,
    texts: Texts = "",
    *,
    task: str = "",
    method: str = "",
    layer: int | None = None,
    rows: str = "words",
    answers: Texts = "",
    decoding: Decoding = CAPTIONS,
    batch_size: int = PAIRS_AT_ONCE,
) -> list[Explanation]:
    """One explanation for each pair of image i and text i; one image goes with all texts, one text with all images.

    Args:
        m: what `blip.load` returns.
        images: paths, PIL images or a list of them.
        texts: texts to match; captions, or "" for the model's own; questions; none for a map of the image alone.
        task: match, caption, answer or image; the usual one of the checkpoint's task unless given. `image` needs no
            text and maps the image encoder by rollout; so does `method="rollout"` where a text is needed and missing.
        method: gradcam, raw, relevance or rollout; of BLIP-2 not relevance. Unless given relevance, which pointed best
            at lesions of the methods here (`docs/results.md`); of BLIP-2 gradcam, of the image alone rollout.
        layer: whose cross-attention; the middle one unless given, and never the last one of a matching model. Of
            BLIP-2 the maps of all layers that attend to the image are added up unless one is given.
        rows: `words`, or `enc` for the `[ENC]` row alone, the only one that the last layer of a matching model has. Of
            BLIP-2 `words` that are written, summed over the queries, or `queries`, which a match always shows.
        answers: to the questions; the model's own unless given.
        decoding: how the model's own captions are written; as `blip caption` writes them unless given.
        batch_size: pairs at once.

    Raises:
        TraceError: the checkpoint or the layer has no such maps.
        InputError: an unknown value, or lists that do not fit together; the message lists what is possible.

    Example:
        >>> m = blip.load("checkpoint")
        >>> explanation, = blip.explain_pairs(m, "chest.png", "small left effusion", method="gradcam")
        >>> explanation.words
        ['small', 'left', 'effusion']
        >>> explanation.maps.shape[0]  # one map (h, w) for each word
        3
    """
    objective = objective_of(m, task, method, has_texts=any(as_list(texts)))
    request = request_of(m, objective, method=method, layer=layer, rows=rows)
    if batch_size < 1:
        raise InputError(f"batch_size is {batch_size}, it must be 1 or more")
    pairs = _pairs(m, images, texts, answers=answers, objective=objective, decoding=decoding)
    explanations = []
    for _, group in groupby(pairs, key=lambda pair: pictures_in(pair.image)):  # in a batch all items have as many
        for batch in batches_of(list(group), batch_size):
            explanations += _explain_batch(m, batch, request)
    return explanations


def objective_of(m: Predictor, task: str, method: str, *, has_texts: bool) -> Objective:
    """As `explained`; with rollout the image alone, where a text is needed and there is none."""
    usual = spec_of(m.info["task"]).explained_as
    writes = bool(usual) and OBJECTIVES[usual].writes_texts
    image_alone = method == "rollout" and not (task or has_texts or writes)
    return explained(m, "image" if image_alone else task)


def _pairs(
    m: Predictor, images: Images, texts: Texts, *, answers: Texts, objective: Objective, decoding: Decoding
) -> list[Pair]:
    pictures: list[Any] = [m.opened(x) for x in as_list(images)]
    words, replies = as_list(texts), as_list(answers)
    counts = {len(pictures), len(words), len(replies)}
    if 0 in counts or len(counts - {1}) > 1:
        given = f"{len(pictures)} images and {len(words)} texts" + (f" and {len(replies)} answers" if answers else "")
        raise InputError(f"{given}: give as many, or one of either")
    pictures, words, replies = (x * max(counts) if len(x) == 1 else x for x in (pictures, words, replies))
    if objective.of_image:
        if any(words):
            raise InputError(f"a map of the image alone depends on no text: leave out {words[0]!r}")
        return [Pair(picture, "", "") for picture in pictures]
    origins: list[tuple[Origin, Origin]] = [
        ("given" if text else "predicted", "predicted" if objective.has_answers and not reply else "given")
        for text, reply in zip(words, replies, strict=True)
    ]
    if objective.writes_texts:
        words = completed_captions(m, pictures, words, decoding)
    check_texts(m, words, longest=objective.longest(m))
    if objective.has_answers:
        replies = completed_answers(m, pictures, words, answers=replies)
        check_texts(m, replies, "answer")
    return [
        Pair(picture, text, reply, *origin)
        for picture, text, reply, origin in zip(pictures, words, replies, origins, strict=True)
    ]


def _explain_batch(m: Predictor, pairs: Sequence[Pair], request: Request) -> list[Explanation]:
    images, texts, answers = [p.image for p in pairs], [p.text for p in pairs], [p.answer for p in pairs]
    with trace(m, request.points, grads=True) as t:
        scores = request.objective.scores(m, images, texts, answers=answers)
    maps = _maps(t, scores, request)
    count = pictures_in(images[0])
    if request.objective.of_image and count > 1:
        maps = maps.unflatten(0, (-1, count)).transpose(1, 2)  # (R, 1, F, h, w)
    totals = [float(of_pair.sum()) for of_pair in scores.detach()]
    return [
        _explanation(m, pair, maps_of_pair, request=request, score=total)
        for pair, maps_of_pair, total in zip(pairs, maps, totals, strict=True)
    ]


def _maps(t: Trace, scores: Tensor, request: Request) -> Tensor:
    """Maps (R, T, h, w) of each token, or (R, T, F, h, w).

    Where each token has a score of its own, those of the first are zero. Of BLIP-2 those of each query or each score.
    """
    if request.objective.of_queries:
        by_query = request.rows == "queries"
        return maps_of_queries(t, scores, request.layers, method=request.method, by_query=by_query)
    maps_of = MAPS[request.method]
    if request.objective.of_image:
        return image_rollout(t)
    if not request.objective.per_token:
        t.backward(scores, again=False)
        return maps_of(t, request.attention)
    steps = []
    for token in range(scores.shape[1]):  # the score of token + 1, read at the row before it
        t.backward(scores[:, token], again=True)
        steps.append(maps_of(t, request.attention)[:, token])
    maps = torch.stack(steps, dim=1)
    return torch.cat([torch.zeros_like(maps[:, :1]), maps], dim=1)


def _explanation(m: Predictor, pair: Pair, maps: Tensor, *, request: Request, score: float) -> Explanation:
    """Maps of words and of the sentence from those of tokens, (T, h, w)."""
    no_words = request.rows == "enc" or request.objective.of_image
    spans = [] if no_words else _spans(m, pair, request, count=len(maps))
    words = [word for word, _ in spans]
    of_words = [maps[span].sum(dim=0) for _, span in spans]
    tokens = [token for _, span in spans for token in range(span.start, span.stop)]
    # relevance is that of the row that the score is read from; the other methods treat each row on its own
    of_first = no_words or (request.method == "relevance" and request.objective.reads_enc)
    return Explanation(
        task=request.objective.name,
        method=request.method,
        layer=None if request.reads_all_layers else request.layer,
        text=pair.text,
        answer=pair.answer,
        score=score,
        words=words,
        maps=torch.stack(of_words) if of_words else maps.new_zeros(0, *maps.shape[1:]),
        sentence=maps[0].clone() if of_first else maps[tokens].mean(dim=0),
        text_is=pair.text_is,
        answer_is=pair.answer_is,
    )


def _spans(m: Predictor, pair: Pair, request: Request, *, count: int) -> list[tuple[str, slice]]:
    """The words of a pair, each with its rows among `count` maps."""
    if request.rows == "queries":
        return [(f"query {q + 1}", slice(q, q + 1)) for q in range(count)]
    return written_spans(m, pair.text) if request.objective.of_queries else word_spans(m, pair.text)


def word_spans(m: Predictor, text: str) -> list[tuple[str, slice]]:
    """The words of a text, each with its tokens in `[CLS] ... [SEP]`; a word may consist of several tokens."""
    spans: list[tuple[str, slice]] = []
    place = 1
    for word, count in m.tokenizer.words(m.cleaned(text)):
        spans.append((word, slice(place, place + count)))
        place += count
    return spans
