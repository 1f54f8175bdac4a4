"""A caption of several panels -> the part of each, by rules that say how sure they are.

Labels come in styles: (A) text, A, text, A: text, A. text, a) text, [A] text, Left: text. Of each style the labels that
continue a row from its first (A, B, C; i, ii, iii) are counted, and the style with the longest row is taken. Text
before the first label belongs to every panel. `Figure 1A`, `vitamin A` and the like are no labels: they do not begin a
sentence or stand in brackets, or break the row.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

ROMAN = ("i", "ii", "iii", "iv", "v", "vi", "vii", "viii", "ix", "x", "xi", "xii")
DASH = "-~\u2010-\u2015\u2212"
ONE = r"(?:[A-Za-z]|[ivx]{2,5}|[IVX]{2,5})['\u2032]?"
SEVERAL = rf"{ONE}(?:\s*(?:[{DASH},&;]|\band\b|\bto\b|\bor\b)\s*{ONE})*"
BEGIN = r"(?:(?<=^)|(?<=[.;:!?)\]]\s)|(?<=[.;]))"  # of the caption or of a sentence
# style -> pattern whose first group holds the labels
STYLES = {
    "(A)": re.compile(rf"\(\s*({SEVERAL})\s*\)"),
    "[A]": re.compile(rf"\[\s*({SEVERAL})\s*\]"),
    "A)": re.compile(rf"(?:(?<=^)|(?<=[\s;.,]))({SEVERAL})\)"),
    "A:": re.compile(rf"{BEGIN}(?:[Pp]anels?\s+)?({SEVERAL})\s?:"),
    "A,": re.compile(rf"{BEGIN}({SEVERAL}),(?=\s)"),
    "A.": re.compile(rf"{BEGIN}({SEVERAL})\.(?=\s)"),
}  # fmt: skip
PLACE_WORDS = ("upper", "lower", "top", "bottom", "middle", "center", "centre", "central", "left", "right", "first",
               "second", "third")  # fmt: skip
ROW = "|".join(f"{word}|{word.title()}" for word in PLACE_WORDS)
PLACES = re.compile(rf"{BEGIN}((?:{ROW})(?:[ -](?:{ROW}))?)(?:\s+(?:panels?|rows?|columns?|images?))?\s?[:,]")


@dataclass
class Label:
    """Labels that stand together, such as the two of `(A and B)`, and where."""

    names: list[str]
    start: int
    end: int
    begins: bool  # the caption, or a sentence


@dataclass
class Part:
    """The text of one or several panels."""

    labels: list[str]
    text: str


@dataclass
class Split:
    """A caption in parts. `lead` belongs to all of them; without parts it is the whole caption."""

    lead: str
    parts: list[Part]
    style: str = ""
    confidence: float = 0.0  # 0 to 1

    def of(self, label: str) -> str:
        """The caption of one panel, with what all share; "" for a label that there is none of."""
        own = [part.text for part in self.parts if label in part.labels]
        return " ".join([self.lead, *own]).strip() if own else ""


Splitter = Callable[[str], Split]  # what may stand in the place of `split_caption`: a learned one, or a service


def split_caption(caption: str) -> Split:
    """The parts of a caption, or the whole as `lead` where no row of at least two labels is found."""
    text = " ".join(caption.split())
    found = {style: row_of(text, pattern) for style, pattern in STYLES.items()}
    style = max(found, key=lambda name: sum(len(label.names) for label in found[name]))
    labels = found[style]
    if sum(len(label.names) for label in labels) < 2:
        style, labels = "Left:", [Label([m[1].lower()], m.start(), m.end(), True) for m in PLACES.finditer(text)]
        if len({name for label in labels for name in label.names}) < 2:
            return Split(text, [])
    # labels stand before what they name where the first begins a sentence, or most do
    before = labels[0].begins or 2 * sum(label.begins for label in labels) > len(labels)
    parts = _parts_behind(text, labels) if before else _parts_around(text, labels)
    lead = text[: labels[0].start].strip(" :;,") if before else ""
    if before and lead.endswith(("Panels", "panels", "Panel", "panel")):
        lead = lead.rpartition(" ")[0]
    return Split(lead, parts, style, _confidence(style, labels, parts, before))


def row_of(text: str, pattern: re.Pattern[str]) -> list[Label]:
    """The labels of a style that continue a row from its first one; others are no labels."""
    candidates = []
    for match in pattern.finditer(text):
        if names := expand(match[1]):
            candidates.append(Label(names, match.start(), match.end(), begins(text, match.start())))
    best: list[Label] = []
    for kind in (str.isupper, str.islower):
        row, known = [], set[str]()
        for label in (c for c in candidates if all(kind(name[0]) for name in c.names)):
            new = set(label.names) - known
            if label.names[0] in following(known) or (label.names[0] in known and (new or label.begins)):
                row.append(label)
                known.update(label.names)
        best = max(best, row, key=lambda labels: len({name for label in labels for name in label.names}))
    return best


def following(known: set[str]) -> set[str]:
    """What may come next: the first of any alphabet, or the one behind the last that is known."""
    if not known:
        return {"A", "a", "i", "I"}
    found = set()
    for name in known:
        plain = name.rstrip("'\u2032")
        if len(plain) == 1 and plain.lower() != "z":
            found |= {chr(ord(plain) + 1), f"{plain}'", f"{plain}\u2032"}
        if plain.lower() in ROMAN[:-1]:
            after = ROMAN[ROMAN.index(plain.lower()) + 1]
            found.add(after if plain.islower() else after.upper())
    return found


def expand(names: str) -> list[str]:
    """`A-C, E` -> A B C E; empty where it is no list of labels."""
    found: list[str] = []
    pieces = re.split(rf"\s*([{DASH},&;]|\band\b|\bto\b|\bor\b)\s*", names.strip())
    for place, name in enumerate(pieces[::2]):
        if not name:
            continue
        link = pieces[2 * place - 1] if place else ""
        if (link == "to" or re.fullmatch(f"[{DASH}]", link)) and found:
            between = _between(found[-1], name)
            if not between:
                return []
            found += between
        found.append(name)
    return list(dict.fromkeys(found))


def _between(first: str, last: str) -> list[str]:
    """The labels behind `first` and before `last`, and `last` itself; empty where they are not of one row."""
    if first.lower() in ROMAN and last.lower() in ROMAN and (len(first) > 1 or len(last) > 1):
        low, high = ROMAN.index(first.lower()), ROMAN.index(last.lower())
        return [name if first.islower() else name.upper() for name in ROMAN[low + 1 : high + 1]]
    if len(first) == len(last) == 1 and first.isupper() == last.isupper() and first < last:
        return [chr(code) for code in range(ord(first) + 1, ord(last) + 1)]
    return []


def begins(text: str, place: int) -> bool:
    """Whether a sentence, or the caption, begins there."""
    before = text[:place].rstrip()
    return not before or before[-1] in ".;:!?)"


def _parts_behind(text: str, labels: list[Label]) -> list[Part]:
    ends = [label.start for label in labels[1:]] + [len(text)]
    return [Part(label.names, text[label.end : end].strip(" :;,").removesuffix(" and"))
            for label, end in zip(labels, ends, strict=True)]  # fmt: skip


def _parts_around(text: str, labels: list[Label]) -> list[Part]:
    """Labels behind what they name: each gets the sentence that it stands in."""
    bounds = [0, *(m.end() for m in re.finditer(r"(?<=[.;!?])\s+(?=[A-Z(])", text)), len(text)]
    parts = []
    for label in labels:
        start = max(bound for bound in bounds if bound <= label.start)
        end = min(bound for bound in bounds if bound > label.start)
        parts.append(Part(label.names, text[start:end].strip()))
    return parts


def _confidence(style: str, labels: list[Label], parts: list[Part], before: bool) -> float:
    """By hand: rows of letters in brackets before their text are surest; sentences that several panels share least."""
    value = {"(A)": 0.95, "[A]": 0.9, "A)": 0.9, "A:": 0.9, "A,": 0.8, "A.": 0.75, "Left:": 0.6}[style]
    value *= 1.0 if before else 0.6
    names = [name for label in labels for name in label.names]
    value *= 0.8 if len(set(names)) < len(names) else 1.0  # a label comes back
    empty = sum(not part.text for part in parts)
    return round(value * (1 - empty / len(parts)), 3)
