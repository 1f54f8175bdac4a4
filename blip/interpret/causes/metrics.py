"""What the effect of a patch or an ablation is measured by: one differentiable number for each pair of image and text.

    match      match logit of class 1 minus class 0: the log-odds that image and text belong together
    cosine     of the projected features of image and text; of BLIP-2 that of the nearest query
    caption    log-probability of the whole text, written about the image
    answer     log-probability of an answer; the text of a pair is (question, answer)

A function of the same form is a metric too. It gets R texts and as many images or one, which all texts share, and has
to pass all of them through the model at once: `batch_size=len(texts)`.
"""

import difflib
from collections.abc import Callable, Sequence

from torch import Tensor

from blip.errors import InputError
from blip.inference.inputs import OneImage
from blip.inference.predictor import Predictor
from blip.interpret.objectives import explained

OneText = str | tuple[str, str]  # a text, or a question with its answer
Metric = Callable[[Predictor, Sequence[OneImage], Sequence[OneText]], Tensor]  # (R,)


def match(m: Predictor, images: Sequence[OneImage], texts: Sequence[OneText]) -> Tensor:
    """Log-odds of a match (R,)."""
    logits = m.match_logits(images, _plain(texts, "match"), len(texts))
    return logits[:, 1] - logits[:, 0]


def cosine(m: Predictor, images: Sequence[OneImage], texts: Sequence[OneText]) -> Tensor:
    """Cosine of the features of image i and text i (R,)."""
    of_images = m.encode_image(images, len(images))  # (R, E), or (R, Q, E)
    of_texts = m.encode_text(_plain(texts, "cosine"), len(texts))
    if of_images.dim() == 2:
        return (of_images * of_texts).sum(dim=1)
    return (of_images * of_texts[:, None]).sum(dim=2).amax(dim=1)


def caption(m: Predictor, images: Sequence[OneImage], texts: Sequence[OneText]) -> Tensor:
    """Log-probability of the whole text i about image i, the end included (R,)."""
    return explained(m, "caption").score(m, images, _plain(texts, "caption"), answers=()).sum(dim=1)


def answer(m: Predictor, images: Sequence[OneImage], texts: Sequence[OneText]) -> Tensor:
    """Log-probability of an answer, the end included (R,); each text is (question, answer)."""
    if any(isinstance(text, str) or len(text) != 2 for text in texts):
        raise InputError('the text of a pair is (question, answer) for the metric answer: ("which side?", "left")')
    questions, answers = zip(*texts, strict=True)
    return explained(m, "answer").score(m, images, questions, answers=answers)[:, 0]


METRICS: dict[str, Metric] = {"match": match, "cosine": cosine, "caption": caption, "answer": answer}
UNITS = {"match": "logit", "cosine": "cosine", "caption": "log-probability", "answer": "log-probability"}


def metric_of(metric: str | Metric) -> Metric:
    """The metric of a name; a function is returned as it is.

    Raises:
        InputError: there is no such metric; the message names the nearest.
    """
    if callable(metric):
        return metric
    if not isinstance(metric, str) or metric not in METRICS:
        near = difflib.get_close_matches(str(metric), METRICS, n=1)
        raise InputError(
            f"metric is {metric!r}; it can be {', '.join(METRICS)}, or a function of (model, images, texts)"
            + (f"; did you mean {near[0]}?" if near else "")
        )
    return METRICS[metric]


def unit_of(metric: str | Metric) -> str:
    """The unit of the metric's values; of a function its name."""
    return getattr(metric, "__name__", "metric") if callable(metric) else UNITS[metric]


def _plain(texts: Sequence[OneText], metric: str) -> list[str]:
    found = [text for text in texts if isinstance(text, str)]
    if len(found) != len(texts):
        raise InputError(f"the text of a pair is one string for the metric {metric}, not a question with its answer")
    return found
