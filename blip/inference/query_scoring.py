"""The probability, token by token, of what BLIP-2 writes about an image, and which tokens are a word.

Shapes: R pairs of image and text, n scored tokens, U targets of a language model.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from blip.inference.inputs import OneImage
from blip.inference.language import LanguagePredictor
from blip.inference.predictor import Predictor
from blip.inference.results import finite
from blip.models.losses import IGNORED
from blip.network.packing import Rows, with_first

Spans = list[tuple[str, slice]]  # the words of a text, each with the columns of its tokens
WORD_STARTS = ("\u0120", "\u2581")  # with which a token of a byte-level tokenizer, or of SentencePiece, begins a word


def written_log_probs(m: Predictor, images: Sequence[OneImage], texts: Sequence[str]) -> Tensor:
    """Log-probability (R, n) of each token of text i about image i, the end included, given those before it.

    Zero where nothing is scored. Inside `m.gradients()` it can be differentiated.
    """
    model = m.needs("caption")
    with torch.set_grad_enabled(m.differentiable), m.computing():
        states = m.states(images)
        if isinstance(m, LanguagePredictor):
            batch = m.tokens.training(texts, [m.info.get("prompt", "")] * len(texts))
            ids, mask, targets = (x.to(m.device) for x in (batch.ids, batch.mask, batch.targets))
            return finite(model.log_probs(states, ids, mask, targets=targets).float())
        ids, lengths = m.ids(texts, m.positions)  # what the model wrote may be longer than what it was trained on
        rows, read = Rows(lengths, ids.shape[1], ids.device), model.read_images(states)
        written = model.qformer.write(with_first(ids, m.tokenizer.dec_id), rows, read.cache())
        values = rows.unpack(model.qformer.head(written).float().log_softmax(dim=-1))  # (R, T, V)
        each = values[:, :-1].gather(2, ids[:, 1:, None]).squeeze(2)
        after_end = torch.arange(1, ids.shape[1]) >= lengths[:, None]
        return finite(each.masked_fill(after_end.to(ids.device), 0.0))


def written_spans(m: Predictor, text: str) -> Spans:
    """The words of a text, each with the columns of its tokens in `written_log_probs`."""
    if not isinstance(m, LanguagePredictor):
        spans, place = [], 0
        for word, count in m.tokenizer.words(m.cleaned(text)):
            spans.append((word, slice(place, place + count)))
            place += count
        return spans
    targets = m.tokens.training([text], [m.info.get("prompt", "")]).targets[0].tolist()
    tokenizer = m.tokens.tokenizer
    words: list[list[int]] = []  # columns of each
    for column, target in enumerate(targets):
        if target in (IGNORED, m.tokens.ids.end) or target in tokenizer.all_special_ids:
            continue
        if not words or tokenizer.convert_ids_to_tokens(target).startswith(WORD_STARTS):
            words.append([])
        words[-1].append(column)
    return [
        (tokenizer.decode([targets[c] for c in columns]).strip(), slice(columns[0], columns[-1] + 1))
        for columns in words
    ]


def token_counts(m: Predictor, texts: Sequence[str]) -> list[int]:
    """Tokens of each text, with one before and one behind it."""
    if isinstance(m, LanguagePredictor):
        return [len(m.tokens.tokenizer(text, add_special_tokens=False)["input_ids"]) + 2 for text in texts]
    return m.tokenizer.count([m.cleaned(text) for text in texts])
