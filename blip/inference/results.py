"""What a predictor returns for texts that it writes or ranks."""

from dataclasses import dataclass
from html import escape

from torch import Tensor

from blip.checkpoints.format import CheckpointError
from blip.errors import visible
from blip.models.decoding import Generated
from blip.tokenizer import Tokenizer

SHOWN = 5  # candidates that are printed of an answer


def finite(values: Tensor) -> Tensor:
    """The same scores or features; CheckpointError where one is infinite or not a number."""
    if bool((~values.isfinite()).any()):
        raise CheckpointError(
            "the model computes results that are infinite or not a number: some of its weights are too large, as after "
            "a training that failed, or are damaged; take another checkpoint"
        )
    return values


@dataclass
class Written:
    """A generated text with its log-probability, in total and of each token."""

    text: str
    log_prob: float
    tokens: list[str]
    token_log_probs: list[float]


@dataclass(repr=False)
class Answer:
    """An answer, its probability, and the candidates that were ranked, the likeliest first (none if generated).

    Printed, or shown by a notebook, it is a short table of the five likeliest.

    Example:
        >>> print(Answer("yes", 0.9, [("yes", 0.9), ("no", 0.1)]))
        yes  0.9000
        no   0.1000
    """

    text: str
    probability: float
    candidates: list[tuple[str, float]]

    def best(self, count: int = SHOWN) -> list[tuple[str, float]]:
        """The likeliest candidates with their probabilities; of a generated answer the answer alone."""
        return list(self.candidates[:count]) or [(self.text, self.probability)]

    def __str__(self) -> str:
        rows = [(visible(text), f"{probability:.4f}") for text, probability in self.best()]
        width = max(len(text) for text, _ in rows)
        return "\n".join(f"{text:<{width}}  {probability}" for text, probability in rows)

    def __repr__(self) -> str:
        others = len(self.candidates) - 1
        more = f", {others} others" if others > 0 else ""
        return f"<Answer {self.text!r}, probability {self.probability:.4f}{more}>"

    def _repr_html_(self) -> str:
        """The same table for notebooks; texts are escaped."""
        rows = "".join(f"<tr><td style='text-align:left'>{escape(visible(text))}</td><td>{probability:.4f}</td></tr>"
                       for text, probability in self.best())  # fmt: skip
        return f"<table><tr><th style='text-align:left'>answer</th><th>probability</th></tr>{rows}</table>"


def written_texts(tokenizer: Tokenizer, prompt: list[int], generated: Generated) -> list[Written]:
    """Generated ids as texts, up to the end token. `prompt` holds the ids that each text begins with.

    CheckpointError as in `finite`.
    """
    finite(generated.log_probs)
    texts = []
    for ids, log_probs in zip(generated.ids.tolist(), generated.log_probs.tolist(), strict=True):
        end = ids.index(tokenizer.sep_id) + 1 if tokenizer.sep_id in ids else len(ids)
        tokens = [tokenizer.token(i) for i in ids[:end]]
        texts.append(Written(tokenizer.decode(prompt + ids), sum(log_probs[:end]), tokens, log_probs[:end]))
    return texts
