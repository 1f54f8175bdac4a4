"""The probability of a given text: of a caption token by token, of an answer, of a match with an image.

Shapes: R pairs of image and text, T tokens of the longest text.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from blip.errors import InputError
from blip.inference.inputs import OneImage
from blip.inference.predictor import Predictor
from blip.inference.query_scoring import token_counts
from blip.inference.results import finite
from blip.models.matching import match_logits
from blip.models.momentum import Matcher, unit_features
from blip.network.cross_attention import ImageKeys
from blip.network.med import TextDecoder
from blip.network.packing import Rows, with_first
from blip.network.pictures import States, item_features


def check_texts(m: Predictor, texts: Sequence[str], what: str = "text", *, longest: int = 0) -> None:
    """InputError for a text without tokens, or with more than `longest`, which is what the model reads unless given.

    `what` names the texts in the message.
    """
    longest = longest or m.max_text_tokens
    for number, tokens in enumerate(token_counts(m, texts), start=1):
        if tokens < 3:
            raise InputError(f"{what} {number} is empty: it has no words")
        if tokens > longest:
            raise InputError(f"{what} {number} has {tokens} tokens, the model reads {longest}: shorten it")


def match_groups(
    m: Predictor, images: Sequence[OneImage], texts: Sequence[Sequence[str]]
) -> list[list[tuple[float, float]]]:
    """(match probability, cosine) of each text of each image. An image is encoded once and its keys are not repeated.

    Images with equally many texts go through the text encoder together.
    """
    model = m.needs("match")
    pairs: list[list[tuple[float, float]]] = [[] for _ in images]
    if not images:
        return pairs
    with torch.no_grad(), m.computing():
        states = m.states(images)
        for count in {len(several) for several in texts} - {0}:
            members = [i for i, several in enumerate(texts) if len(several) == count]
            ids, lengths = m.ids([text for i in members for text in texts[i]])
            index = torch.tensor(members, device=m.device)
            matches, cosines = match_states(model, states[index], ids, lengths=lengths, enc_id=m.tokenizer.enc_id)
            values = list(zip(matches.tolist(), cosines.tolist(), strict=True))
            for place, i in enumerate(members):
                pairs[i] = values[place * count : (place + 1) * count]
    return pairs


def match_states(model: Matcher, states: States, ids: Tensor, *, lengths: Tensor, enc_id: int) -> tuple[Tensor, Tensor]:
    """Match probabilities and cosines of the features, (B*c,) each, of images with c texts each.

    The texts of an image lie side by side on the query axis.

    Args:
        states: (B, N, D) of images.
        ids: (B*c, T), those of an image one after the other.
        lengths: (B*c,) tokens of each text.
    """
    count = len(ids) // len(states)
    rows = Rows(lengths, ids.shape[1], ids.device)
    text_features = unit_features(model.text_proj, model.text_encoder.text(ids, rows, first_only=True))
    image_features = item_features(model.image_proj, states)[:, None]  # (B, 1, E)
    cosines = (image_features * text_features.unflatten(0, (-1, count))).sum(dim=2)  # (B, c)
    keys = model.text_encoder.keys_or_states(states, tokens=count * ids.shape[1])
    logits = match_logits(model.text_encoder, model.itm_head, with_first(ids, enc_id), lengths=lengths, keys=keys)
    return finite(logits.float().softmax(dim=1)[:, 1]), finite(cosines.flatten())


def caption_log_probs(m: Predictor, images: Sequence[OneImage], captions: Sequence[str]) -> Tensor:
    """Log-probability (R, T-1) of each token of caption i about image i, the end included, given those before it.

    Zero after the end. The first token, `[DEC]`, is not counted. Inside `m.gradients()` it can be differentiated.
    """
    model = m.needs("caption")
    with torch.set_grad_enabled(m.differentiable), m.computing():
        keys = model.text_decoder.image_keys(m.states(images))
        ids, lengths = m.ids(captions, m.positions)  # what the model wrote may be longer than what it was trained on
        return _log_probs(m, model.text_decoder, ids, lengths=lengths, keys=keys)


def answer_log_probs(
    m: Predictor, images: Sequence[OneImage], questions: Sequence[str], *, answers: Sequence[str]
) -> Tensor:
    """Log-probability (R,) of answer i to question i about image i, the end included."""
    model = m.needs("answer")
    check_texts(m, answers, "answer")
    with torch.set_grad_enabled(m.differentiable), m.computing():
        keys = model.question_keys(m.pixels(images), *m.ids(questions))
        ids, lengths = m.ids(answers)
        return _log_probs(m, model.text_decoder, ids, lengths=lengths, keys=keys).sum(dim=1)


def _log_probs(m: Predictor, decoder: TextDecoder, ids: Tensor, *, lengths: Tensor, keys: ImageKeys) -> Tensor:
    """Log-probability (R, T-1) of each token of ids (R, T) after the first, zero after the end."""
    rows = Rows(lengths, ids.shape[1], ids.device)
    ids = with_first(ids, m.tokenizer.dec_id)
    values = rows.unpack(decoder.head(decoder(ids, rows, keys)).float().log_softmax(dim=-1))  # (R, T, V)
    each = values[:, :-1].gather(2, ids[:, 1:, None]).squeeze(2)
    after_end = torch.arange(1, ids.shape[1]) >= lengths[:, None]
    return finite(each.masked_fill(after_end.to(ids.device), 0.0))
