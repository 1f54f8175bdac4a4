"""What a predictor returns for texts that it writes or ranks."""

from dataclasses import dataclass

from blip.models.decoding import Generated
from blip.tokenizer import Tokenizer


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
    """Generated ids as texts, up to the end token. `prompt` holds the ids that each text begins with."""
    texts = []
    for ids, log_probs in zip(generated.ids.tolist(), generated.log_probs.tolist(), strict=True):
        end = ids.index(tokenizer.sep_id) + 1 if tokenizer.sep_id in ids else len(ids)
        tokens = [tokenizer.token(i) for i in ids[:end]]
        texts.append(Written(tokenizer.decode(prompt + ids), sum(log_probs[:end]), tokens, log_probs[:end]))
    return texts
