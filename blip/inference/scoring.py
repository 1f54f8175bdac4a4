"""How probable a model finds a text that it is given: a caption token by token, an answer, a match with an image.

Shapes: R pairs of image and text, T tokens of the longest text.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from blip.errors import InputError
from blip.inference.predictor import ImageInput, Predictor
from blip.models.caption import CaptionModel
from blip.models.matching import match_logits
from blip.models.momentum import unit_features
from blip.models.pretrain import PretrainModel
from blip.models.retrieval import RetrievalModel
from blip.models.vqa import VqaModel
from blip.network.cross_attention import ImageKeys
from blip.network.med import TextDecoder
from blip.network.packing import Rows, with_first


def check_texts(m: Predictor, texts: Sequence[str], what: str = "text") -> None:
    """ValueError for a text without tokens, or with more than the model reads."""
    for number, tokens in enumerate(m.tokenizer.count([m.cleaned(text) for text in texts]), start=1):
        if tokens < 3:
            raise InputError(f"{what} {number} is empty: it has no words")
        if tokens > m.max_text_tokens:
            raise InputError(f"{what} {number} has {tokens} tokens, the model reads {m.max_text_tokens}: shorten it")


def scores_of(
    m: Predictor, task: str, images: Sequence[ImageInput], texts: Sequence[str], answers: Sequence[str] = ()
) -> Tensor:
    """What a task thinks of pairs, (R, n): `match` logits (n = 1), log-probabilities of a `caption`'s tokens (n = T-1)
    or of an `answer` to a question (n = 1). `image` encodes alone and returns nothing (n = 0).
    """
    if task != "image" and len(images) != len(texts):
        raise InputError(f"{len(images)} images and {len(texts)} texts: give as many")
    if task == "match":
        return m.match_logits(images, texts, len(texts))[:, 1:]
    if task == "caption":
        return caption_log_probs(m, images, texts)
    if task == "answer":
        return answer_log_probs(m, images, texts, answers)[:, None]
    if task == "image":
        with torch.set_grad_enabled(m.grads):
            return m.model.image_encoder(m.pixels(images))[:, 0, :0]
    raise InputError(f"there is no task {task!r}: match, caption, answer or image")


@torch.no_grad()
def match_groups(
    m: Predictor, images: Sequence[ImageInput], texts: Sequence[Sequence[str]]
) -> list[list[tuple[float, float]]]:
    """(match probability, cosine) of each text of each image; an image is encoded once, its keys are never repeated.

    Images with equally many texts go through the text encoder together.
    """
    model = m.needs("itm_head", "match images and texts", PretrainModel, RetrievalModel)
    found: list[list[tuple[float, float]]] = [[] for _ in images]
    if not images:
        return found
    states = model.image_encoder(m.pixels(images))
    for count in {len(several) for several in texts} - {0}:
        members = [i for i, several in enumerate(texts) if len(several) == count]
        ids, lengths = m.ids([text for i in members for text in texts[i]])
        index = torch.tensor(members, device=m.device)
        matches, cosines = match_states(model, states[index], ids, lengths, m.tokenizer.enc_id)
        values = list(zip(matches.tolist(), cosines.tolist(), strict=True))
        for place, i in enumerate(members):
            found[i] = values[place * count : (place + 1) * count]
    return found


def match_states(
    model: PretrainModel | RetrievalModel, states: Tensor, ids: Tensor, lengths: Tensor, enc_id: int
) -> tuple[Tensor, Tensor]:
    """Image states (B, N, D), ids (B*c, T) of c texts an image and their lengths -> probability of a match and cosine
    of the features, (B*c,) each. The texts of an image lie side by side on the query axis."""
    count = len(ids) // len(states)
    rows = Rows(lengths, ids.shape[1], ids.device)
    text_features = unit_features(model.text_proj, model.text_encoder.text(ids, rows, first_only=True))
    cosines = (unit_features(model.image_proj, states[:, 0])[:, None] * text_features.unflatten(0, (-1, count))).sum(
        dim=2
    )
    keys = model.text_encoder.keys_or_states(states, tokens=count * ids.shape[1])
    ids = with_first(ids, enc_id)
    logits = match_logits(model.text_encoder, model.itm_head, ids, lengths=lengths, keys=keys)
    return logits.float().softmax(dim=1)[:, 1], cosines.flatten()


def caption_log_probs(m: Predictor, images: Sequence[ImageInput], captions: Sequence[str]) -> Tensor:
    """Log-probability (R, T-1) of each token of caption i about image i, the end included, given those before it.

    Zero behind the end. The first token, `[DEC]`, is not counted. `m.grads` keeps what gradients need.
    """
    model = m.needs("text_decoder", "write captions", PretrainModel, CaptionModel)
    with torch.set_grad_enabled(m.grads):
        keys = model.text_decoder.image_keys(model.image_encoder(m.pixels(images)))
        ids, lengths = m.ids(captions)
        return _log_probs(m, model.text_decoder, ids, lengths, keys)


def answer_log_probs(
    m: Predictor, images: Sequence[ImageInput], questions: Sequence[str], answers: Sequence[str]
) -> Tensor:
    """Log-probability (R,) of answer i to question i about image i, the end included."""
    model = m.needs("text_decoder", "answer questions", VqaModel)
    check_texts(m, answers, "answer")
    with torch.set_grad_enabled(m.grads):
        keys = model.question_keys(m.pixels(images), *m.ids(questions))
        ids, lengths = m.ids(answers)
        return _log_probs(m, model.text_decoder, ids, lengths, keys).sum(dim=1)


def _log_probs(m: Predictor, decoder: TextDecoder, ids: Tensor, lengths: Tensor, keys: ImageKeys) -> Tensor:
    rows = Rows(lengths, ids.shape[1], ids.device)
    ids = with_first(ids, m.tokenizer.dec_id)
    values = rows.unpack(decoder.head(decoder(ids, rows, keys)).float().log_softmax(dim=-1))  # (R, T, V)
    each = values[:, :-1].gather(2, ids[:, 1:, None]).squeeze(2)
    behind = torch.arange(1, ids.shape[1]) >= lengths[:, None]
    return each.masked_fill(behind.to(ids.device), 0.0)
