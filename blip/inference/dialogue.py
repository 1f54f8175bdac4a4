"""Answers to a question in a dialogue about an image, ranked by a model of dialogues."""

from collections.abc import Sequence

import torch

from blip.data.dialogue_texts import DialogueEncoder, Lengths
from blip.errors import InputError
from blip.inference.inputs import OneImage
from blip.inference.loaded_model import LoadedModel
from blip.inference.results import Answer, finite
from blip.models.dialogue import Round, answer_logits


def rank(
    m: LoadedModel,
    image: OneImage,
    caption: str,
    *,
    history: Sequence[tuple[str, str]],
    question: str,
    answers: Sequence[str],
) -> Answer:
    """The best answer, with all candidates in their order; arguments and errors as of `Predictor.rank_answers`."""
    model = m.needs("rank")
    if isinstance(answers, str) or not answers:
        raise InputError(f"answers are {answers!r}: give a list of texts to choose from")
    for turn in history:
        if isinstance(turn, str) or len(turn) != 2:
            raise InputError(f"the history holds {turn!r}, which is no pair of a question and its answer")
    encode = encoder_of(m)
    ids = torch.tensor([encode.caption(caption)], device=m.device)
    lengths = torch.tensor([ids.shape[1]])
    keys = model.keys(m.states([image]), model.caption_states(ids, lengths), lengths)
    one = Round(encode.before(history, question), [encode.answer(answer) for answer in answers])
    (logits,) = answer_logits(model, keys, [one])
    values = finite(logits.float().softmax(dim=1)[:, 1])
    order = (logits[:, 1] - logits[:, 0]).argsort(descending=True, stable=True)
    candidates = [(answers[i], p) for i, p in zip(order.tolist(), values[order].tolist(), strict=True)]
    return Answer(*candidates[0], candidates)


def encoder_of(m: LoadedModel) -> DialogueEncoder:
    """Texts to ids with the lengths that the model was trained with; else those of VisDial."""
    usual = {"max_caption_tokens": 40, "max_turn_tokens": 20, "max_answer_tokens": 8}
    return DialogueEncoder(
        m.tokenizer, Lengths(m.max_text_tokens, *(int(m.info.get(k) or n) for k, n in usual.items()))
    )
