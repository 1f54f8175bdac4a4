"""A caption as a row of atoms: label candidates of one group, and the texts between them and between sentences."""

import re
from dataclasses import dataclass
from itertools import pairwise
from operator import itemgetter

from blip.pubmed.panels.caption_labels import Candidate

# a sentence ends before a blank and anything but a small letter, and not behind an abbreviation
SENTENCE = re.compile(r" (?:(?<=[.!?;:\u3002] )|(?<=[.!?]\) ))(?=\S)")
NOT_END = re.compile(r"\b(?:vs|[Ff]igs?|e\.g|i\.e|al|[Nn]o|Dr|refs?|ca|cf|St|approx|resp|Prof)\.\s$")
GLUE = frozenset(("", "and", "or", "as well as", "versus", "vs", "but", "while", "whereas", "plus"))


@dataclass(slots=True)
class Atom:
    """A label candidate, or a text.

    Attributes:
        label: the candidate; None for a text.
        gap: what ends before it: 0 nothing, 1 a part of a sentence (`;` or `:`), 2 a sentence, 3 the first atom.
        sentence: number of its sentence.
        clause: number of its part between semicolons.
        enclosed: whether it is a text in the same brackets as the label before it, as in `(A, text)`.
    """

    start: int
    end: int
    label: Candidate | None
    gap: int
    sentence: int
    clause: int
    enclosed: bool = False


def sentence_bounds(text: str) -> list[tuple[int, int]]:
    """Positions where sentences (2) and their parts begin, behind `:` (1) or `;` (4), without those inside brackets."""
    found = []
    opened = text.find("(")
    for m in SENTENCE.finditer(text):
        at, sign = m.end(), text[m.start() - 1]
        if sign in ";:":
            if opened >= 0 and text.rfind("(", max(0, at - 120), at) > text.rfind(")", max(0, at - 120), at):
                continue
            found.append((at, 4 if sign == ";" else 1))
        elif not text[at].islower() and (
            (at > 8 and text[at - 9 : at - 2].isalpha()) or not NOT_END.search(text, max(0, at - 9), at)
        ):
            found.append((at, 2))
    return found


def atoms_of(text: str, bounds: list[tuple[int, int]], labels: list[Candidate]) -> list[Atom]:
    """The atoms of a caption; texts of nothing but signs and conjunctions are left out."""
    cuts: list[tuple[int, int, int, Candidate | None]] = [(at, 0, gap, None) for at, gap in bounds]
    cuts += [(one.start, 1, 0, one) for one in labels]
    for one in labels:
        if one.mark == "(" and (close := text.find(")", one.end, one.end + 120)) > 0:
            cuts.append((close + 1, 0, 0, None))
    cuts += [(at, 0, 0, None) for one, two in pairwise(labels) if (at := _new_words(text, one, two))]
    cuts.sort(key=itemgetter(0, 1))
    cuts.append((len(text), 0, 0, None))
    found: list[Atom] = []
    place, gap, sentence, clause = 0, 3, 0, 0
    for at, _, kind, label in cuts:
        if at < place:  # inside a label
            continue
        if at > place:
            piece = text[place:at].strip(" .,;:()[]").lower()
            if piece not in GLUE and any(map(str.isalnum, piece)):
                enclosed = bool(found and found[-1].label and found[-1].label.mark == "(" and found[-1].end == place)
                found.append(Atom(place, at, None, gap, sentence, clause, enclosed))
                gap = 0
            place = at
        if kind and not (found and found[-1].label and not text[found[-1].end : at].strip()):
            gap = max(gap, kind % 3)
            sentence += kind == 2
            clause += kind > 1
        if label is not None:
            if gap < 2 and text[max(0, at - 2) : at].strip()[-1:] in (".", "?", "\u3002"):
                gap, sentence, clause = 2, sentence + 1, clause + 1
            found.append(Atom(at, label.end, label, gap, sentence, clause))
            gap, place = 0, label.end
    return found


def _new_words(text: str, one: Candidate, two: Candidate) -> int:
    """Where the words of the second label may begin, as in `CT (A, arrow) shows a mass and MRI (B)`; 0 for nowhere."""
    start = one.end
    if one.mark == "(":  # behind the bracket that the first label begins
        start = text.find(")", start, two.start) + 1
    if one.form not in "PK" or not start or not text[start : start + 2].lstrip().islower():
        return 0
    words = text[start : two.start]
    at = max(words.rfind(" and "), words.rfind(", "), words.rfind(" while "), words.rfind(" whereas "))
    at -= at > 0 and words[at - 1] == ","
    return start + at if at > 3 and not SENTENCE.search(words) else 0
