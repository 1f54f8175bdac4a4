"""Operations of inference, ours and as published, counted from the sizes as in `blip/network/flops.py`."""

from collections.abc import Sequence

from blip.network.flops import Text, Vision, attention, head_forward, image_tokens, keys_forward, text_forward


def match_pair(vision: Vision, text: Text, longest: int) -> float:
    """An image and a text of `longest` tokens, padding included, as published: the pair projects its own keys."""
    pair = text_forward(text, 1, longest, longest=longest, image_tokens=image_tokens(vision)) + keys_forward(
        vision, text
    )
    return pair + 2 * text.width * 2  # the head's two classes


def match_grouped(vision: Vision, text: Text, lengths: Sequence[int], *, images: int, keys: bool = True) -> float:
    """Pairs whose texts have `lengths` tokens, grouped by image: an image's keys are made once, nothing is padded.

    Only self-attention unfolds, to a length near a text's own since texts are sorted; it is counted at its own. Without
    `keys`, texts attend to states, in the last layer with one token of each.
    """
    seen = image_tokens(vision)
    texts = sum(text_forward(text, 1, n, longest=n, image_tokens=seen, first_only=True) for n in lengths)
    on_image = sum((text.layers - 1) * n + 1 for n in lengths) * on_states(vision, text) / text.layers
    return texts + (images * keys_forward(vision, text) if keys else on_image) + len(lengths) * 2 * text.width * 2


def write(vision: Vision, text: Text, rows: int, *, new: int, key_sets: int, prompt: int = 1) -> float:
    """`new` tokens of each of `rows` texts by a decoder with a cache.

    Images' keys are projected `key_sets` times; 0: texts attend to states. Beams come from one text each, so the first
    step has fewer rows; it is counted with all of them.
    """
    tokens = prompt - 1 + new  # the last one is not read
    alone = text_forward(text, 1, 1, longest=1, image_tokens=image_tokens(vision))
    alone += 0 if key_sets else on_states(vision, text)
    others = text.layers * sum(attention(1, before, text.width) for before in range(tokens))
    each = tokens * alone + others + new * head_forward(text, 1)
    return rows * each + key_sets * keys_forward(vision, text)


def read_questions(vision: Vision, text: Text, lengths: Sequence[int], *, keys: bool) -> float:
    """Questions of `lengths` tokens, padding included where there is some, each about an image of its own.

    `keys`: they attend to its keys, else to its states.
    """
    seen = image_tokens(vision)
    if keys:
        return sum(text_forward(text, 1, n, longest=n, image_tokens=seen) + keys_forward(vision, text) for n in lengths)
    return sum(text_forward(text, 1, n, longest=n, image_tokens=seen) + n * on_states(vision, text) for n in lengths)


def on_states(vision: Vision, text: Text) -> float:
    """What a token costs more, over all layers, where it attends to states: see `ImageAttention.attend_to_states`."""
    folded = 2 * 2.0 * text.width * text.image_width  # the keys' projection of its query, the values' of what it read
    wider = text.heads * text.image_width - text.width
    return text.layers * (folded + attention(1, image_tokens(vision), wider))


def rank_padded(text: Text, *, k: int, longest: int, question: int) -> float:
    """k answers padded to `longest` tokens, each with a copy of a question's `question` states, and [DEC] alone."""
    once = text_forward(text, 1, 1, longest=1, image_tokens=question) + head_forward(text, 1)
    padded = text_forward(text, k, k * longest, longest=longest, image_tokens=question) + head_forward(
        text, k * longest
    )
    return once + padded + (k + 1) * _question_keys(text, question)


def rank_tree(text: Text, *, nodes: int, question: int, row: int = 64) -> float:
    """A tree of `nodes` tokens over one question, and [DEC] alone; nodes lie in rows of about `row` nodes."""
    once = text_forward(text, 1, 1, longest=1, image_tokens=question) + head_forward(text, 1)
    one = text_forward(text, 1, 1, longest=1, image_tokens=question) + text.layers * attention(1, row - 1, text.width)
    return once + nodes * (one + head_forward(text, 1)) + _question_keys(text, question)


def _question_keys(text: Text, question: int) -> float:
    """Keys and values of a question's states, which are as wide as the decoder's own."""
    return 2.0 * question * text.width * 2 * text.width * text.layers
