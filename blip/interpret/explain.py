"""Maps of the parts of an image that matching, captioning or answering depended on, for each word and the sentence.

    for explanation in explain_pairs(m, "chest.png", "small left effusion"):
        explanation.maps  # (words, h, w), at the resolution of the patches

Methods, each with the same signature (`maps.py`):

    gradcam    mean over heads of A * max(ds/dA, 0), at one layer's cross-attention (Li et al. 2021, section 5)
    raw        mean over heads of A, independent of its effect on s
    relevance  the rules of Chefer et al. 2021 (equations 5 to 11) through all layers of image encoder and text
               transformer, where texts attend to images, and images only to themselves
    rollout    raw attention, carried back to the patches by attention rollout (Abnar and Zuidema 2020)

A is a pattern of cross-attention and s the score that is explained: for `match` the match logit before its soft-max;
for `caption` the log-probability of word t, read at row t-1, from which it was predicted; for `answer` that of the
whole answer, through the question encoder's cross-attention. Maps are not a diagnosis, and not all methods find what
mattered (`docs/results.md`).

Shapes: R pairs of image and text, T tokens, H heads, N = h*w patches.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from blip.errors import InputError
from blip.inference.inputs import ImageInput, Images, Texts, as_list
from blip.inference.predictor import Predictor
from blip.inference.scoring import check_texts
from blip.interpret.maps import MAPS, METHODS
from blip.interpret.objectives import Objective, completed_answers, explained
from blip.interpret.recording import Trace, TraceError
from blip.interpret.trace import trace


@dataclass
class Explanation:
    """Maps of one text about one image. Values are those of the method, not scaled; 0 means no effect."""

    task: str
    method: str
    layer: int | None  # of the cross-attention; None where a method reads all
    text: str  # that was matched, written or asked
    answer: str  # to a question; else empty
    score: float  # s, of the whole text
    words: list[str]
    maps: Tensor  # (words, h, w)
    sentence: Tensor  # (h, w)


@dataclass(frozen=True)
class Request:
    """How every pair is explained: `attention` is where a map is read, such as `text.6.cross`."""

    objective: Objective
    method: str
    rows: str
    layer: int

    @property
    def attention(self) -> str:
        return f"{self.objective.stack}.{self.layer}.cross"

    @property
    def points(self) -> list[str]:
        """The points that a trace has to record for the method."""
        if self.method in ("relevance", "rollout"):
            return ["image.*.attn.*", f"{self.objective.stack}.*"]
        return [f"{self.attention}.*"]


@dataclass
class Pair:
    """An image with its text, and the answer where the text is a question."""

    image: ImageInput
    text: str
    answer: str


def explain_pairs(
    m: Predictor,
    images: Images,
    texts: Texts = "",
    *,
    task: str = "",
    method: str = "gradcam",
    layer: int | None = None,
    rows: str = "words",
    answers: Texts = "",
    batch_size: int = 8,
) -> list[Explanation]:
    """One explanation for each pair of image i and text i; one image goes with all texts, one text with all images.

    Args:
        m: what `blip.load` returns.
        images: paths, PIL images or a list of them.
        texts: texts to match; captions, or "" for the model's own; questions.
        task: match, caption or answer; the usual one of the checkpoint's task unless given.
        method: gradcam, raw, relevance or rollout.
        layer: whose cross-attention; the middle one unless given, and never the last one of a matching model.
        rows: `words`, or `enc` for the `[ENC]` row alone, the only one that the last layer of a matching model has.
        answers: to the questions; the model's own unless given.
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
    objective = explained(m, task)
    request = _request(m, objective, method=method, layer=layer, rows=rows)
    pairs = _pairs(m, images, texts, answers=answers, objective=objective)
    if batch_size < 1:
        raise InputError(f"batch_size is {batch_size}, it must be 1 or more")
    explanations = []
    for start in range(0, len(pairs), batch_size):
        explanations += _explain_batch(m, pairs[start : start + batch_size], request)
    return explanations


def _pairs(m: Predictor, images: Images, texts: Texts, *, answers: Texts, objective: Objective) -> list[Pair]:
    pictures, words, replies = as_list(images), as_list(texts), as_list(answers)
    counts = {len(pictures), len(words), len(replies)}
    if 0 in counts or len(counts - {1}) > 1:
        given = f"{len(pictures)} images and {len(words)} texts" + (f" and {len(replies)} answers" if answers else "")
        raise InputError(f"{given}: give as many, or one of either")
    pictures, words, replies = (x * max(counts) if len(x) == 1 else x for x in (pictures, words, replies))
    if objective.writes_texts and not all(words):
        own = m.caption(pictures)
        words = [text or written for text, written in zip(words, own, strict=True)]
    check_texts(m, words)
    if objective.has_answers:
        replies = completed_answers(m, pictures, words, answers=replies)
        check_texts(m, replies, "answer")
    return [Pair(*pair) for pair in zip(pictures, words, replies, strict=True)]


def _request(m: Predictor, objective: Objective, *, method: str, layer: int | None, rows: str) -> Request:
    """The request with its layer, where the combination of arguments is possible."""
    if method not in METHODS:
        raise InputError(f"method is {method!r}; it can be {', '.join(METHODS)}")
    if rows not in ("words", "enc"):
        raise InputError(f"rows is {rows!r}; it can be words or enc")
    if rows == "enc" and not objective.has_enc:
        raise TraceError("a caption is written by a decoder, which has no [ENC] row: rows=words")
    count = objective.layers(m)
    without_words = count - 1 if objective.reads_enc and rows == "words" else None  # a layer that runs for [ENC] alone
    if layer is None:
        layer = max(0, min(count // 2, count - 2 if without_words is not None else count - 1))
    if not 0 <= layer < count:
        raise InputError(f"there is no layer {layer}: this model has layers 0 to {count - 1}")
    if layer == without_words and method != "relevance":
        raise TraceError(
            f"layer {layer} is the last one: the match logit reads its [ENC] row alone, so the gradient of its word "
            f"rows is zero and they are not computed; take a layer below, or rows=enc"
        )
    return Request(objective, method, rows, layer)


def _explain_batch(m: Predictor, pairs: Sequence[Pair], request: Request) -> list[Explanation]:
    images, texts, answers = [p.image for p in pairs], [p.text for p in pairs], [p.answer for p in pairs]
    with trace(m, request.points, grads=True) as t:
        scores = request.objective.scores(m, images, texts, answers=answers)
    maps = _maps(t, scores, request)
    totals = [float(of_pair.sum()) for of_pair in scores.detach()]
    return [
        _explanation(m, pair, maps_of_pair, request=request, score=total)
        for pair, maps_of_pair, total in zip(pairs, maps, totals, strict=True)
    ]


def _maps(t: Trace, scores: Tensor, request: Request) -> Tensor:
    """Maps (R, T, h, w) of each token; where each has a score of its own, those of the first token are zero."""
    maps_of = MAPS[request.method]
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
    spans = [] if request.rows == "enc" else word_spans(m, pair.text)
    words = [word for word, _ in spans]
    of_words = [maps[span].sum(dim=0) for _, span in spans]
    tokens = [token for _, span in spans for token in range(span.start, span.stop)]
    # relevance is that of the row that the score is read from; the other methods treat each row on its own
    of_enc = request.rows == "enc" or (request.method == "relevance" and request.objective.reads_enc)
    return Explanation(
        task=request.objective.name,
        method=request.method,
        layer=None if request.method == "relevance" else request.layer,
        text=pair.text,
        answer=pair.answer,
        score=score,
        words=words,
        maps=torch.stack(of_words) if of_words else maps.new_zeros(0, *maps.shape[1:]),
        sentence=maps[0].clone() if of_enc else maps[tokens].mean(dim=0),
    )


def word_spans(m: Predictor, text: str) -> list[tuple[str, slice]]:
    """The words of a text, each with its tokens in `[CLS] ... [SEP]`; a word may consist of several tokens."""
    spans: list[tuple[str, slice]] = []
    place = 1
    for word, count in m.tokenizer.words(m.cleaned(text)):
        spans.append((word, slice(place, place + count)))
        place += count
    return spans
