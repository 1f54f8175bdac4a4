"""A list of answers to choose from, prepared once for all questions."""

from blip.errors import InputError
from blip.inference.results import Answer, finite
from blip.models.answer_tree import AnswerTree
from blip.models.ranking import distinct_answers, rank_answers
from blip.network.cross_attention import ProjectedKeys
from blip.network.med import TextDecoder
from blip.tokenizer import Tokenizer


class AnswerChoices:
    """The distinct answers of a list, `texts`, and the tree of their tokens."""

    def __init__(self, given: list[str], tokenizer: Tokenizer, max_tokens: int) -> None:
        """`max_tokens`: longer answers are cut to it, `[CLS]` and `[SEP]` included.

        Raises:
            InputError: an answer has no token.
        """
        self.given = given
        self.texts, tokens = distinct_answers(tokenizer, given, max_tokens)
        if wordless := [i for i, count in enumerate(tokenizer.count(given), start=1) if count < 3]:
            raise InputError(f"answer {wordless[0]} of the list has no token: leave it out")
        self.tree = AnswerTree(tokens, tokenizer.dec_id, tokenizer.sep_id)

    def rank(self, decoder: TextDecoder, keys: ProjectedKeys, k: int) -> list[Answer]:
        """The likeliest answer to each question of `keys`; `k` candidates are scored whole."""
        ranked = rank_answers(decoder, keys, self.tree, k=k)
        answers = []
        for row, probabilities in zip(ranked.answers.tolist(), finite(ranked.probabilities).tolist(), strict=True):
            candidates = [(self.texts[i], p) for i, p in zip(row, probabilities, strict=True)]
            answers.append(Answer(*candidates[0], candidates))
        return answers
