"""Which parts of an image a model looked at when it matched, captioned or answered: maps for words and sentences.

    for found in explain_pairs(m, "chest.png", "small left effusion"):
        found.maps  # (words, h, w), at the resolution of the patches

Methods, each with the same signature:

    gradcam    mean over heads of A * max(ds/dA, 0), at one layer's cross-attention (Li et al. 2021, section 5)
    raw        mean over heads of A, whatever it does to s
    relevance  the rules of Chefer et al. 2021 (equations 5 to 11) through image encoder and text transformer, where
               texts look at images and images at nothing but themselves; all layers
    rollout    raw attention, carried back to the patches by attention rollout (Abnar and Zuidema 2020)

A is a pattern of cross-attention and s what is explained: for `match` the match logit before its soft-max; for
`caption` the log-probability of word t, read at row t-1, whence it was written; for `answer` that of the whole answer,
through the question encoder's cross-attention. Maps are none of a diagnosis, and not all methods find what mattered
(`docs/results.md`).

Shapes: R pairs of image and text, T tokens, H heads, N = h*w patches.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from blip.errors import InputError
from blip.inference.predictor import ImageInput, Images, Predictor, Texts, listed
from blip.inference.scoring import check_texts, scores_of
from blip.interpret.hooks import TraceError
from blip.interpret.maps import MAPS, METHODS
from blip.interpret.points import layers_of
from blip.interpret.trace import trace

TASKS = ("match", "caption", "answer")
STACK = {"match": "text", "caption": "decoder", "answer": "text"}
OF_CHECKPOINT = {"pretrain": "match", "retrieval": "match", "caption": "caption", "vqa": "answer"}


@dataclass
class Explanation:
    """Maps of one text about one image. Values are those of the method, not scaled; 0 is nothing."""

    task: str
    method: str
    layer: int | None  # of the cross-attention; None where a method reads all
    text: str  # what was matched, written or asked
    answer: str  # of a question; else empty
    score: float  # s, in all
    words: list[str]
    maps: Tensor  # (words, h, w)
    sentence: Tensor  # (h, w)


# ---- methods ---------------------------------------------------------------------------------------------------------


# ---- tasks -----------------------------------------------------------------------------------------------------------


def explain_pairs(
    m: Predictor,
    images: Images,
    texts: Texts = "",
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
        texts: what is matched; captions, or "" for the model's own; questions.
        task: match, caption or answer; what the checkpoint was made for unless given.
        method: gradcam, raw, relevance or rollout.
        layer: whose cross-attention; the middle one unless given, and never the last one of a matching model.
        rows: `words`, or `enc` for the `[ENC]` row alone, which is all that the last layer of a matching model has.
        answers: to the questions; the model's own unless given.
        batch_size: pairs at once.

    Raises:
        TraceError, ValueError: an unknown or impossible wish; the message says what is possible.
    """
    task = task or OF_CHECKPOINT.get(m.info["task"], "")
    site = _site(m, task, method, layer, rows)
    pairs = _pairs(m, images, texts, answers, task)
    if batch_size < 1:
        raise InputError(f"batch_size is {batch_size}, it must be 1 or more")
    found = []
    for start in range(0, len(pairs), batch_size):
        found += _explain_batch(m, pairs[start : start + batch_size], task, method, site, rows)
    return found


@dataclass
class Pair:
    image: ImageInput
    text: str
    answer: str


def _pairs(m: Predictor, images: Images, texts: Texts, answers: Texts, task: str) -> list[Pair]:
    pictures, words, replies = listed(images), listed(texts), listed(answers)
    counts = {len(pictures), len(words), len(replies)}
    if 0 in counts or len(counts - {1}) > 1:
        given = f"{len(pictures)} images and {len(words)} texts" + (f" and {len(replies)} answers" if answers else "")
        raise InputError(f"{given}: give as many, or one of either")
    pictures, words, replies = (x * max(counts) if len(x) == 1 else x for x in (pictures, words, replies))
    if task == "caption" and not all(words):
        own = m.caption(pictures)
        words = [text or written for text, written in zip(words, own, strict=True)]
    check_texts(m, words)
    if task == "answer" and not all(replies):
        own = [answer.text for answer in m.answer(pictures, words)]
        replies = [given or answer for given, answer in zip(replies, own, strict=True)]
    if task == "answer":
        check_texts(m, replies, "answer")
    return [Pair(*pair) for pair in zip(pictures, words, replies, strict=True)]


def _site(m: Predictor, task: str, method: str, layer: int | None, rows: str) -> str:
    """The attention that a map is read from, such as `text.6.cross`."""
    if m.info["task"] not in OF_CHECKPOINT:
        raise TraceError(f"a checkpoint of {m.info['task']} cannot be explained; {', '.join(OF_CHECKPOINT)} can")
    if task not in TASKS:
        raise InputError(f"task is {task!r}; it can be {', '.join(TASKS)}")
    if method not in METHODS:
        raise InputError(f"method is {method!r}; it can be {', '.join(METHODS)}")
    if rows not in ("words", "enc"):
        raise InputError(f"rows is {rows!r}; it can be words or enc")
    stack = STACK[task]
    count = layer_count(m, task)
    if count == 0 or (task == "match" and not hasattr(m.model, "itm_head")):
        raise TraceError(f"a checkpoint of {m.info['task']} cannot {task}: its task is {OF_CHECKPOINT[m.info['task']]}")
    if rows == "enc" and task == "caption":
        raise TraceError("a caption is written by a decoder, which has no [ENC] row: rows=words")
    last_is_enc = task == "match"
    if layer is None:
        layer = max(0, min(count // 2, count - 2 if last_is_enc and rows == "words" else count - 1))
    if not 0 <= layer < count:
        raise InputError(f"there is no layer {layer}: this model has layers 0 to {count - 1}")
    if last_is_enc and rows == "words" and layer == count - 1 and method != "relevance":
        raise TraceError(
            f"layer {layer} is the last one: the match logit reads its [ENC] row alone, so the gradient of its word "
            f"rows is zero and they are not computed; take a layer below, or rows=enc"
        )
    return f"{stack}.{layer}.cross"


def layer_count(m: Predictor, task: str) -> int:
    """Layers of the stack whose cross-attention a task is explained by."""
    return sum(name.startswith(STACK[task] + ".") for name, _ in layers_of(m.model))


def _explain_batch(
    m: Predictor, pairs: Sequence[Pair], task: str, method: str, site: str, rows: str
) -> list[Explanation]:
    images, texts, answers = [p.image for p in pairs], [p.text for p in pairs], [p.answer for p in pairs]
    points = [f"{site}.*"]
    if method in ("relevance", "rollout"):
        points = ["image.*.attn.*", f"{STACK[task]}.*"]
    with trace(m, points, grads=True) as t:
        scores = scores_of(m, task, images, texts, answers)
    maps_of = MAPS[method]
    if task == "caption":  # each word has a score of its own, read at the row before it
        steps = []
        for token in range(scores.shape[1]):
            t.backward(scores[:, token], again=True)
            steps.append(maps_of(t, site)[:, token])
        maps = torch.stack(steps, dim=1)  # of tokens 1, 2, ...
        maps = torch.cat([torch.zeros_like(maps[:, :1]), maps], dim=1)
    else:
        t.backward(scores, again=False)
        maps = maps_of(t, site)
    layer = None if method == "relevance" else int(site.split(".")[1])
    found = []
    for i, pair in enumerate(pairs):
        total = float(scores[i].detach().sum())
        spans = [] if rows == "enc" else word_spans(m, pair.text)
        words = [word for word, _ in spans]
        of_words = [maps[i, span].sum(dim=0) for _, span in spans]
        tokens = [token for _, span in spans for token in range(span.start, span.stop)]
        # in matching, relevance arrives at the row that is read; the other methods speak of each row alone
        of_enc = rows == "enc" or (method == "relevance" and task == "match")
        whole = maps[i, 0].clone() if of_enc else maps[i, tokens].mean(dim=0)
        stacked = torch.stack(of_words) if of_words else maps.new_zeros(0, *maps.shape[2:])
        found.append(Explanation(task, method, layer, pair.text, pair.answer, total, words, stacked, whole))
    return found


def word_spans(m: Predictor, text: str) -> list[tuple[str, slice]]:
    """Words of a text and which tokens of `[CLS] ... [SEP]` are theirs; a word may have been cut into several."""
    spans: list[tuple[str, slice]] = []
    place = 1
    for word, count in m.tokenizer.words(m.cleaned(text)):
        spans.append((word, slice(place, place + count)))
        place += count
    return spans
