"""What a predictor returns for texts that it writes or ranks."""

from dataclasses import dataclass

from torch import Tensor

from blip.checkpoints.format import CheckpointError
from blip.models.decoding import Generated
from blip.tokenizer import Tokenizer


def finite(values: Tensor) -> Tensor:
    """The same scores or features; CheckpointError where one is infinite or not a number."""
    if not bool(values.isfinite().all()):
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


@dataclass
class Answer:
    """An answer, its probability, and the candidates that were ranked, the likeliest first (none if generated)."""

    text: str
    probability: float
    candidates: list[tuple[str, float]]


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
