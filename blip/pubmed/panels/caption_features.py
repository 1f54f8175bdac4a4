"""The features of atoms: plain strings, such as `fw=scale` (the first word) or `B=.` (it begins a sentence).

A learned score of the tags of an atom is the sum of their weights. Many tell what all labels of a caption agree on:
what stands before the first and behind the last, signs on either side, which names begin sentences, how far the row is.
"""

import re
from collections import Counter
from functools import lru_cache

from blip.pubmed.panels.caption_atoms import Atom
from blip.pubmed.panels.caption_labels import NOUNS, Candidate, Group
from blip.pubmed.panels.caption_rows import FIRST, names_after
from blip.pubmed.panels.caption_words import (
    DEFINED,
    DEFINITION,
    KIND_OF,
    KIND_OF_ANY,
    KNOWN,
    LETTERS,
    LINKS,
    SIGNS,
    SMALL_LETTERS,
    STATISTIC,
    led,
    share,
    sign_before,
    sign_behind,
)

JOINED = re.compile(r"\s?(?:,|and\s|or\s|as\s|versus\s|\(|/)")
WORD = re.compile(r"[^\s()\[\],;:]+")


def features_of(text: str, atoms: list[Atom], group: Group) -> list[list[str]]:
    """The features of each atom."""
    count = Counter(atom.clause for atom in atoms if atom.label)
    places = [at for at, atom in enumerate(atoms) if atom.label]
    context = _Context(text, atoms, group, count)
    first, last = places[0], places[-1]
    found, number = [], 0
    for at, atom in enumerate(atoms):
        if atom.label is not None:
            found.append(context.of_label(at, atom, atom.label, number=number))
            number += 1
        else:
            where = "0" if at < first else "9" if at > last else "5"
            found.append(context.of_text(at, atom, where))
    return found


class _Context:
    """What the features of an atom need to know of the others."""

    def __init__(self, text: str, atoms: list[Atom], group: Group, count: Counter[int]) -> None:
        self.text, self.atoms, self.group, self.count = text, atoms, group, count
        self.known: set[str] = set()
        self.latest = ""  # the name that the row has reached
        self.letters = [m.end() for sign in LETTERS for m in sign.finditer(text) if led(text, m.end())]  # of panels
        for pattern in SMALL_LETTERS:
            self.letters += [m.end() - 1 for m in pattern.finditer(text)]
        self.plain = text.replace("(", " ").replace(")", " ").replace("[", " ").replace("]", " ")
        self.plain = self.plain.replace(",", " ").replace(";", " ").replace(":", " ")
        lower = self.plain.lower()
        self.plain = lower if len(lower) == len(text) else self.plain
        self.named: dict[int, set[str]] = {}  # sentence -> panels that it names
        self.kinds: list[str] = []  # kinds of words before the last label
        self.own: list[str] = []  # words of the last label in its sentence
        self.others: list[list[str]] = []  # words of the texts before the last label
        self.sets: tuple[set[str], set[str]] | None = None  # `own`, and the words of `others` that are not in it
        self.signs = [sign for sign in SIGNS if sign in text]
        labels = [atom.label for atom in atoms if atom.label]
        self.around = [(sign_before(text, one.start), sign_behind(text, one.end)) for one in labels]
        # names that begin a part of a sentence somewhere: elsewhere they are probably references
        self.openers: dict[str, int] = {}
        self.ways: dict[str, int] = {}  # how labels are written -> how many are
        for one, (before, _) in zip(labels, self.around, strict=True):
            self.ways[one.way] = self.ways.get(one.way, 0) + 1
            for name in one.names if before in "^.;:" else ():
                self.openers[name] = self.openers.get(name, 0) + 1
        # what all labels agree on: the beginning before the first one, the end behind the last, signs behind each
        begin = self.around[0][0]
        self.common = (
            f"g0={begin if begin in '^.:;,' else 'w'}",
            f"g9={self.around[-1][1]}",
            f"gb={share(sum(before in '^.;:' for before, _ in self.around), len(labels))}",
            f"gs={share(sum(sign in '.,;$' for _, sign in self.around), len(labels))}",
            f"gf={group.form}{group.kind}",
        )
        self.last, self.long = 0, "s"
        self.behind: dict[int, str] = {}  # part of a sentence -> what stands behind its labels before the last
        self._rows()
        self.parts = _parts_named_again(labels, self.around)
        # how many labels the sentence of the last one has, and what stands before the last one
        last = atoms[self.last]
        before = sign_before(text, last.start)
        self.closing = str(min(3, sum(atom.label is not None and atom.sentence == last.sentence for atom in atoms)))
        self.closing += before if before in "^.;:," else "w"
        self.names = "n" + str(min(len(group.names), 5))
        self.style = group.form if len(group.form) == 1 else "x"
        self.agreed = (self.style, *self.common[2:4])

    def _rows(self) -> None:
        """Finds the last candidate with a new name, whether a label has several sentences, and what is behind each."""
        known, sentences, clause, end = set[str](), set[int](), -1, 0
        for at, atom in enumerate(self.atoms):
            if atom.label is None:
                sentences.add(atom.sentence)
                continue
            if not known.issuperset(atom.label.names):
                if known and len(sentences) > 1:
                    self.long = "l"
                known.update(atom.label.names)
                self.last, sentences = at, set()
            if atom.clause == clause and self.behind.get(clause) != "t":
                self.behind[clause] = "g" if JOINED.match(self.text, end) else "t"
            clause, end = atom.clause, atom.end

    def of_label(self, at: int, atom: Atom, label: Candidate, *, number: int) -> list[str]:
        """Features of a label candidate; `number`: which one it is."""
        text = self.text
        before, sign = self.around[number]
        new = [name for name in label.names if name not in self.known]
        fresh = "new" if len(new) == len(label.names) else "old" if not new else "mix"
        self.known.update(label.names)
        first = label.names[0]
        row = first in names_after(self.latest) if self.latest else first in FIRST
        if fresh == "new" and (row or self.group.kind == "p"):
            self.latest = label.names[-1]
        step = "p" if self.group.kind == "p" else "s" if row else "j"
        opened = min(self.openers.get(name, 0) for name in label.names) - (before in "^.;:")
        elsewhere = "o" if opened > 0 else "n"
        word = self.plain[max(0, label.start - 24) : label.start].split()
        previous = word[-1] if word else ""
        following = WORD.match(text, label.end + (text[label.end : label.end + 1] == " "))
        after = following[0].lower() if following else ""
        alone = "1" if self.count[atom.clause] == 1 else "2"
        neighbours = ("t" if at and not self.atoms[at - 1].label else "d") + (
            "t" if at + 1 < len(self.atoms) and not self.atoms[at + 1].label else "d"
        )
        several = "s" if len(label.names) > 1 else ""
        leads = "n" if previous in NOUNS else "l" if previous in LINKS else "w"
        style, common = self.style, self.common
        row_is = (elsewhere, step, str(self.ways[label.way] * 3 >= len(self.around)))
        form = _form_of_label(
            label.way, (before, sign), (fresh, alone, several, leads, neighbours), row_is, style, common
        )
        found = [*form, f"pw={previous}", f"nw={after}", f"k={self.group.kind}", f"{self.names}{style}"]
        if part := self.parts.get(number):
            found += [f"in={part}", f"in={part}{before}{sign}"]
        return found

    def of_text(self, at: int, atom: Atom, where: str) -> list[str]:
        """Features of a text."""
        piece = self.text[atom.start : atom.end]
        words = self.plain[atom.start : atom.end].split()
        first = words[0] if words else ""
        begin = "(" if atom.enclosed else "l" if at and self.atoms[at - 1].label and not atom.gap else "-;.^"[atom.gap]
        following = self.atoms[at + 1] if at + 1 < len(self.atoms) else None
        end = "$" if following is None else "l" if following.label and following.clause == atom.clause else "."
        close = "l" if following and following.label else ""
        bare = piece.strip()
        stop = bare[-1:] if bare[-1:] in ".;:," else "w"
        size = "1" if len(words) == 1 else "2" if len(words) < 4 else "3" if len(words) < 9 else "4"
        head = bare[:1]
        shape = "a" if head.islower() else "A" if head.isupper() else "0" if head.isdigit() else head
        labels = "012"[min(self.count.get(atom.clause, 0), 2)]
        form = _form_of_text((begin, end, close, labels), where, stop, size, shape, self.agreed)
        named = self.references(at)
        found = [*form, f"fw={first}{begin}", f"r={min(2, len(named))}{where}{begin}"]
        if begin == "l" and at > 1:  # what stands behind the labels before, in the same sentence
            behind = self.behind.get(atom.clause, "-")
            found += [f"q={behind}{where}{end}{labels}", f"q={behind}{where}{first if first in LINKS else ''}"]
        known = KNOWN.intersection(words)
        kinds = sorted({KIND_OF_ANY[word] for word in known}) if known else []
        if self.signs and any(sign in piece for sign in self.signs) and STATISTIC.search(piece):
            kinds.append("p")
        found += [f"k={kind}{where}{begin}" for kind in kinds]
        if at > self.last:  # how many sentences after the last label
            passed = atom.sentence - self.atoms[self.last].sentence
            later = min(3, passed)
            found += [f"u={later}{begin}", f"u={later}{self.long}{begin}", f"u={self.style}{self.common[3]}{begin}"]
            found += [f"us={self.closing}{later}", f"us={self.closing}{later}{begin}{self.style}"]
            if not passed:
                self.own += words
            else:
                found += [f"a={word}" for word in dict.fromkeys(words[:16])]
                if ("=" in piece or ":" in piece or "," in piece) and (defined := len(DEFINED.findall(piece))):
                    found.append(f"k=abbr{min(3, defined)}{begin}")
                if passed < 4:
                    found += self._like(words, kinds, named)
        else:
            self.others.append(words)
            self.kinds += kinds
        if definition := DEFINITION.match(piece):
            found.append(f"k=def{definition[0].rstrip()[-1]}{where}{begin}")
        if first in KIND_OF:
            found.append(f"f={KIND_OF[first]}{begin}{where}")
        if len(words) > 1 and words[1] in KIND_OF:
            found.append(f"f2={KIND_OF[words[1]]}{begin}{where}")
        return found

    def _like(self, words: list[str], kinds: list[str], named: set[str]) -> list[str]:
        """What one of the first sentences behind the last label has in common with its panel, and with the others.

        Long words, kinds of words, and whether it names that panel alone.
        """
        if self.sets is None:
            own = set(self.own)
            self.sets = own, set().union(*self.others) - own
        label, long = self.atoms[self.last].label, [word for word in words if len(word) > 4]
        shared = "v=" + "".join("012"[min(2, len(some.intersection(long)))] for some in self.sets)
        found = [f"y={kind}{min(2, self.kinds.count(kind))}" for kind in kinds]
        found += [shared, shared + kinds[0] if kinds else shared + "-"]
        if named and label is not None:
            found.append("r=own" if named.issubset(label.names) else "r=others")
        return found

    def references(self, at: int) -> set[str]:
        """The panels that the sentence of an atom names."""
        number = self.atoms[at].sentence
        if number not in self.named:
            first = last = at
            while first and self.atoms[first - 1].sentence == number:
                first -= 1
            while last + 1 < len(self.atoms) and self.atoms[last + 1].sentence == number:
                last += 1
            start, end = self.atoms[first].start, self.atoms[last].end
            self.named[number] = {self.text[letter] for letter in self.letters if start < letter < end}
        return self.named[number]


def _parts_named_again(labels: list[Candidate], around: list[tuple[str, str]]) -> dict[int, str]:
    """Candidates that name again some of several labels before, as (B) and (C) behind `(B, C)`, with features.

    Features are the signs around the first of them, whether all labels are named again, and which one it is.
    """
    found: dict[int, str] = {}
    at = 0
    while at < len(labels):
        names, start = set(labels[at].names), at + 1
        at = start
        while at < len(labels) and len(labels[at].names) < len(names) and names.issuperset(labels[at].names):
            at += 1
        whole = names == {name for one in labels[start:at] for name in one.names}
        for number in range(start, at):
            place = "0" if number == start else "9" if number == at - 1 else "5"
            found[number] = "".join(around[start]) + f"{whole:d}{place}"
    return found


@lru_cache(maxsize=1 << 15)
def _form_of_label(way: str, around: tuple[str, str], at: tuple[str, ...], row: tuple[str, ...], style: str,
                   common: tuple[str, ...]) -> tuple[str, ...]:  # fmt: skip
    """The features of a label candidate, without those of words: there are few, so that they can be kept."""
    before, sign = around
    fresh, alone, several, leads, neighbours = at
    elsewhere, step, often = row
    both = f"{before}{sign}"
    return (
        "m", f"w={way}", f"b={before}", f"s={sign}", f"{both}{style}", f"{fresh}{style}{before}",
        f"pc={leads}{before}{style}", f"{fresh}{several}", f"{alone}{both}", f"nb={neighbours}", f"{way}{before}",
        f"{fresh}{alone}{before}", *common, f"{common[0]}{common[1]}{style}", f"{common[2]}{common[3]}",
        f"{common[2]}{both}", f"o={elsewhere}{before}", f"o={elsewhere}{fresh}{style}", f"o={step}{fresh}{before}",
        f"o={step}{elsewhere}{style}", f"o={often}{style}{fresh}",
    )  # fmt: skip


@lru_cache(maxsize=1 << 15)
def _form_of_text(
    at: tuple[str, ...], where: str, stop: str, size: str, shape: str, common: tuple[str, ...]
) -> tuple[str, ...]:
    """The same of a text."""
    begin, end, close, labels = at
    base, style = f"{begin}{end}{labels}", common[0]
    return (
        "x", f"B={begin}", f"E={end}{close}", f"{base}{where}", f"{base}{stop}", f"z={size}{begin}",
        f"h={shape}{begin}", f"W={where}", f"{where}{shape}{stop}", f"{where}{begin}{common[1]}",
        f"{base}{common[2]}", f"{style}{where}{begin}",
    )  # fmt: skip
