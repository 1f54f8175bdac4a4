"""The texts of a dialogue as ids: its caption, and what precedes an answer, with the answer behind it."""

from collections.abc import Sequence
from dataclasses import dataclass

from blip.errors import InputError
from blip.tokenizer import Tokenizer


@dataclass(frozen=True)
class Lengths:
    """The most tokens of each part of a text about a dialogue."""

    text: int = 250  # history, question and answer, with [ENC] and every [SEP]
    caption: int = 40  # with [CLS] and [SEP]
    turn: int = 20  # of a question, and of a past question with its answer; without [SEP]
    answer: int = 8  # without [SEP]


class DialogueEncoder:
    """A dialogue to ids: `[ENC] question [SEP] answer [SEP] question [SEP] ...`, the oldest first.

    What is too long is shortened in this order: an answer to `Lengths.answer` tokens, a question to `Lengths.turn`, of
    which its answer, once it is past, has its part; then the oldest turns are left out, whole, until an answer of full
    length fits into `Lengths.text`.
    """

    def __init__(self, tokenizer: Tokenizer, lengths: Lengths = Lengths()):
        """InputError for lengths into which no question fits."""
        if lengths.answer < 1 or lengths.caption < 3:
            raise InputError(
                f"an answer of {lengths.answer} and a caption of {lengths.caption} tokens: 1 and 3 at least"
            )
        if lengths.turn <= lengths.answer:
            raise InputError(f"a turn of {lengths.turn} tokens has no place for a question beside an answer of "
                             f"{lengths.answer}: raise max_turn_tokens")  # fmt: skip
        self.fixed = 1 + (lengths.turn + 1) + (lengths.answer + 1)
        if lengths.text < self.fixed:
            raise InputError(f"max_text_tokens is {lengths.text}; [ENC], a question and its answer take {self.fixed}")
        self.tokenizer, self.lengths = tokenizer, lengths

    def caption(self, text: str) -> list[int]:
        """`[CLS] ... [SEP]`."""
        return self.tokenizer.encode([text], self.lengths.caption)[0]

    def before(self, history: Sequence[tuple[str, str]], question: str) -> list[int]:
        """From `[ENC]` to the `[SEP]` of the question, behind the (question, answer) of the turns before it."""
        last = self._piece(question, self.lengths.turn)
        room = self.lengths.text - 1 - len(last) - (self.lengths.answer + 1)
        turns: list[list[int]] = []
        for turn in reversed(history):
            ids = self._turn(*turn)
            if len(ids) > room:
                break
            turns.insert(0, ids)
            room -= len(ids)
        return [self.tokenizer.enc_id, *(token for turn in turns for token in turn), *last]

    def answer(self, text: str) -> list[int]:
        """The answer's tokens and `[SEP]`."""
        return self._piece(text, self.lengths.answer)

    def _turn(self, question: str, answer: str) -> list[int]:
        said = self.answer(answer)
        return self._piece(question, self.lengths.turn - (len(said) - 1)) + said

    def _piece(self, text: str, most: int) -> list[int]:
        """At most so many tokens, and `[SEP]`."""
        return self.tokenizer.encode([text], most + 2)[0][1:]
