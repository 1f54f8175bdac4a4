"""What a map explains or a capture computes: the objectives `match`, `caption`, `answer` and `image`.

An objective is what a model is run for. Its name is what users pass as `task`; whatever depends on the objective is a
field of `Objective`.

Shapes: R pairs of image and text, T tokens of the longest text.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from blip.errors import InputError
from blip.inference.inputs import OneImage
from blip.inference.loaded_model import ABILITIES
from blip.inference.predictor import Predictor
from blip.inference.query_scoring import written_log_probs
from blip.inference.scoring import answer_log_probs, caption_log_probs
from blip.interpret.points import layers_of, queries_of
from blip.interpret.recording import TraceError
from blip.models.decoding import Decoding
from blip.models.factory import TASKS, spec_of

# model, images, texts, answers -> (R, n)
Score = Callable[..., Tensor]  # of (predictor, images, texts, answers=...)


@dataclass(frozen=True)
class Objective:
    """What a model is run for, and where its score is read.

    Args:
        name: as users write it.
        score: the differentiable scores of pairs, (R, n).
        score_name: for captions of pictures.
        ability: what the checkpoint's task has to be able to do (`TaskSpec.can`).
        stack: the text layers whose cross-attention a map is read from, `text` or `decoder`.
        reads_texts: each image comes with a text.
        writes_texts: the model's own captions take the place of empty texts.
        has_answers: the text is a question with an answer, the model's own where none is given.
        per_token: each token has a score of its own, n = T-1, read at the row before it; otherwise n = 1.
        reads_enc: the score is read from the `[ENC]` row alone, for which the last layer then runs.
        of_queries: it is the queries of BLIP-2 that attend to the image, see `query_maps`.
    """

    name: str
    score: Score
    score_name: str = ""
    ability: str = ""
    stack: str = ""
    reads_texts: bool = True
    writes_texts: bool = False
    has_answers: bool = False
    per_token: bool = False
    reads_enc: bool = False
    of_queries: bool = False

    def longest(self, m: Predictor) -> int:
        """The tokens of a text at most; a decoder writes more than it was trained on, up to the model's positions."""
        return m.positions if self.writes_texts else m.max_text_tokens

    @property
    def of_image(self) -> bool:
        """Whether a map is that of the image encoder alone, without a text."""
        return not self.stack

    @property
    def has_enc(self) -> bool:
        """Whether the first row of the stack is `[ENC]`; that of a decoder is `[DEC]`."""
        return self.stack == "text"

    def scores(
        self, m: Predictor, images: Sequence[OneImage], texts: Sequence[str], *, answers: Sequence[str] = ()
    ) -> Tensor:
        """Scores (R, n) of image i with text i, which the gradients of a map start from."""
        if self.reads_texts and len(images) != len(texts):
            raise InputError(f"{len(images)} images and {len(texts)} texts: give as many")
        return self.score(m, images, texts, answers=answers)

    def layers(self, m: Predictor) -> int:
        """The number of layers of the stack."""
        return sum(name.startswith(self.stack + ".") for name, _ in layers_of(m.model))


def _match(m: Predictor, images: Sequence[OneImage], texts: Sequence[str], *, answers: Sequence[str]) -> Tensor:
    """Match logits before the soft-max (R, 1)."""
    return m.match_logits(images, texts, len(texts))[:, 1:]


def _caption(m: Predictor, images: Sequence[OneImage], texts: Sequence[str], *, answers: Sequence[str]) -> Tensor:
    """Log-probability of each token of a caption (R, T-1)."""
    return caption_log_probs(m, images, texts)


def _answer(m: Predictor, images: Sequence[OneImage], texts: Sequence[str], *, answers: Sequence[str]) -> Tensor:
    """Log-probability of each answer to its question (R, 1)."""
    return answer_log_probs(m, images, texts, answers=answers)[:, None]


def _image(m: Predictor, images: Sequence[OneImage], texts: Sequence[str], *, answers: Sequence[str]) -> Tensor:
    """Runs the image encoder alone; there is nothing to score (R, 0)."""
    with torch.set_grad_enabled(m.differentiable):
        states = m.states(images)
        return (states if isinstance(states, Tensor) else states.tensor[:, 0])[:, 0, :0]


OBJECTIVES = {
    objective.name: objective
    for objective in (
        Objective("match", _match, "match logit", ability="match", stack="text", reads_enc=True),
        Objective(
            "caption",
            _caption,
            "log-probability",
            ability="caption",
            stack="decoder",
            writes_texts=True,
            per_token=True,
        ),
        Objective("answer", _answer, "log-probability", ability="answer", stack="text", has_answers=True),
        Objective("image", _image, reads_texts=False),
    )
}
EXPLAINED = tuple(OBJECTIVES)


def _written(m: Predictor, images: Sequence[OneImage], texts: Sequence[str], *, answers: Sequence[str]) -> Tensor:
    """Log-probability of each token that BLIP-2 writes (R, n)."""
    return written_log_probs(m, images, texts)


OF_QUERIES = {  # what the same objectives are in BLIP-2
    "match": replace(OBJECTIVES["match"], stack="qformer", reads_enc=False, of_queries=True),
    "caption": replace(OBJECTIVES["caption"], stack="qformer", score=_written, of_queries=True),
}


def explained(m: Predictor, name: str = "") -> Objective:
    """The objective that maps of a checkpoint explain; the usual one of its task unless named.

    `image`, the image encoder alone, is possible for every checkpoint.

    Raises:
        InputError: there is no such objective.
        TraceError: the checkpoint's task has no maps, or not of this objective.
    """
    if name == "image":
        return OBJECTIVES[name]
    usual = spec_of(m.info["task"]).explained_as
    if not usual:
        others = ", ".join(task for task, spec in TASKS.items() if spec.explained_as)
        raise TraceError(
            f"of a checkpoint of {m.info['task']} only the image encoder can be explained (task image); {others} can"
        )
    if (name or usual) not in EXPLAINED:
        raise InputError(f"task is {name!r}; it can be {', '.join(EXPLAINED)}")
    objective = OBJECTIVES[name or usual]
    if objective.ability not in spec_of(m.info["task"]).can:
        action, _ = ABILITIES[objective.ability]
        raise TraceError(f"a checkpoint of {m.info['task']} cannot {action}: its task is {usual}")
    if queries_of(m.model) is None:
        return objective
    if objective.name not in OF_QUERIES:
        raise TraceError(f"of BLIP-2 there are no maps of task {objective.name}; there are of {', '.join(OF_QUERIES)}")
    return OF_QUERIES[objective.name]


def completed_captions(
    m: Predictor, images: Sequence[OneImage], captions: Sequence[str], decoding: Decoding
) -> list[str]:
    """The given captions, with the model's own in place of empty ones."""
    if all(captions):
        return list(captions)
    own = m.caption([image for image, given in zip(images, captions, strict=True) if not given], decoding=decoding)
    written = iter(own)
    return [given or next(written) for given in captions]


def completed_answers(
    m: Predictor, images: Sequence[OneImage], questions: Sequence[str], *, answers: Sequence[str]
) -> list[str]:
    """The given answers, with the model's own in place of empty ones."""
    if all(answers):
        return list(answers)
    asked = [(image, question) for image, question, given in zip(images, questions, answers, strict=True) if not given]
    own = iter(m.answer([image for image, _ in asked], [question for _, question in asked]))
    return [given or next(own).text for given in answers]
