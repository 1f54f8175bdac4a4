"""How well captions are split: the true split of a composed caption, and whether a split equals it."""

import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from blip.pubmed.panels.caption_parts import Part, Split
from blip.pubmed.panels.caption_writer import BEFORE, BEHIND, COMMON, GLUE, LABEL, LEAD, MORE, SHARED, TAIL, Composed

CONJUNCTIONS = ("and", "or", "versus", "vs", "while", "whereas")


@dataclass
class Score:
    """Shares of captions that are split exactly, or with all labels and own words right; F1 of labels."""

    exact: float
    own: float
    labels: float
    kept: float  # share of captions with a confidence of at least `least`
    exact_of_kept: float


def words(text: str) -> list[str]:
    """The words of a text, without conjunctions at its ends."""
    found = re.findall(r"[\w%\u00b1]+", text)
    while found and found[0] in CONJUNCTIONS:
        found = found[1:]
    while found and found[-1] in CONJUNCTIONS:
        found = found[:-1]
    return found


def truth(made: Composed) -> Split:
    """The split that the spans of a composed caption say."""
    split = Split("", [], whole=made.caption)
    every = {name for _, _, role, names in made.spans if role == LABEL for name in names}
    waiting, sentence = "", list[str]()  # the labels of the sentence so far
    for start, end, role, names in made.spans:
        text = made.caption[start:end].strip()
        if role == LEAD:
            split.lead = f"{split.lead} {text}".strip()
        elif role == BEHIND:
            waiting += " " + text
        elif role == COMMON:
            split.parts.append(Part(list(names), text))
        elif role == LABEL:
            split.parts.append(Part(list(names), waiting))
            sentence, waiting = sentence + list(names), ""
        elif role in (BEFORE, MORE):
            split.parts[-1].text += " " + text
        elif role == TAIL or (role == SHARED and every.issubset(sentence)):
            split.tail = f"{split.tail} {text}".strip()
        elif role == SHARED:
            split.parts.append(Part(sentence, text))
        if role in (BEFORE, SHARED) or (role in (MORE, GLUE) and text[-1:] in (".", ";")):
            sentence = []
    return split


def same_parts(wanted: Split, got: Split) -> bool:
    """Whether labels and own words are the same."""
    return [(one.labels, words(one.text)) for one in wanted.parts] == [
        (one.labels, words(one.text)) for one in got.parts
    ]


def same(wanted: Split, got: Split) -> bool:
    """Whether labels, own words, lead and tail are the same."""
    lead = wanted.lead if wanted.parts else wanted.whole
    return same_parts(wanted, got) and words(lead) == words(got.lead) and words(wanted.tail) == words(got.tail)


def score(captions: Iterable[Composed], splitter: Callable[[str], Split], least: float = 0.5) -> Score:
    """Splits composed captions and compares. At least one is needed."""
    exact = own = kept = exact_of_kept = count = 0
    names = Counter[str]()
    for made in captions:
        wanted, got = truth(made), splitter(made.caption)
        right = same(wanted, got)
        a = Counter(name for part in wanted.parts for name in part.labels)
        b = Counter(name for part in got.parts for name in part.labels)
        names.update(both=2 * (a & b).total(), all=a.total() + b.total())
        sure = got.confidence >= least
        count, exact, own = count + 1, exact + right, own + same_parts(wanted, got)
        kept, exact_of_kept = kept + sure, exact_of_kept + (right and sure)
    return Score(
        exact / count, own / count, names["both"] / max(1, names["all"]), kept / count, exact_of_kept / max(1, kept)
    )
