"""A caption as a row of atoms: label candidates of one group, and the texts between them and between sentences.

Each atom has features, plain strings such as `fw=scale` (the first word) or `B=.` (it begins a sentence), of which a
learned score of its tags is the sum.
"""

import re
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache

from blip.pubmed.panels.caption_labels import NOUNS, Candidate, Group

# a sentence ends before a blank and anything but a small letter, and not behind an abbreviation
SENTENCE = re.compile(r" (?:(?<=[.!?;:\u3002] )|(?<=[.!?]\) ))(?=\S)")
NOT_END = re.compile(r"\b(?:vs|[Ff]igs?|e\.g|i\.e|al|[Nn]o|Dr|refs?|ca|cf|St|approx|resp|Prof)\.\s$")
GLUE = frozenset(("", "and", "or", "as well as", "versus", "vs", "but", "while", "whereas", "plus"))
WORD = re.compile(r"[^\s()\[\],;:]+")
SIGNS = "<>=\u2264\u00b1*#"  # each `STATISTIC` has one
STATISTIC = re.compile(r"\b[pPnN]\s?[<>=\u2264]|\u00b1|[*#]\s?[pP]\b")
DEFINITION = re.compile(r"[\w/+'\u2019-]{1,9}(?:,|:|\s?=)\s")
# a panel that a sentence names, `in A`, `(B)`, `A and B`: a letter, and the words that may stand before one
AFTER_LETTER = r"(?![^\s).,;:\u2013-])"
LETTER = re.compile(rf"[A-L](?<=[ (\u2013-].){AFTER_LETTER}")
SMALL_LETTERS = (re.compile(rf"\([a-l]{AFTER_LETTER}"), re.compile(rf"panel [a-l]{AFTER_LETTER}"))
LEADING = re.compile(r"\b(?:in|of|and|with|to|panels?|from|than|for|versus)\s$")
KINDS = {
    "scale": "bar bars magnification magnifications",
    "mark": "arrow arrows arrowhead arrowheads asterisk asterisks star stars circle circles box boxes line lines "
            "lettering dots symbols curves bracket brackets triangles triangle dot lane lanes inset insets squares",
    "stat": "sems sds averages average median medians ranges range tukey student bonferroni mann-whitney wilcoxon "
            "log-rank fisher performed calculated determined triplicate replicates expressed presented mean means sd "
            "sem s.e.m anova error significant significance whiskers quartiles confidence values data statistical "
            "t-test test p-value",
    "abbr": "abbreviations abbreviation",
    "all": "all each both representative experiments independent panels images times repeated panel replicates same",
    "says": "represents delineate outline denoted outlined highlighted highlight highlights correspond corresponds "
            "indicate indicates represent mark marks marked point points denote denotes indicated depict",
    "shows": "shows show showing demonstrates demonstrate demonstrating reveals reveal revealing depicts confirms "
             "shown",
    "source": "reproduced permission copyright courtesy see supplementary source adapted license licence created "
              "consent figure fig interpretation version",
    "axis": "axes axis scales numbers number brackets parentheses orientation anterior posterior dorsal ventral up "
            "down coordinates labels letters legend key units logarithmic rostral caudal proximal distal superior "
            "inferior",
    "colour": "colours colors coloured colored red green blue magenta cyan yellow white black grey gray color colour",
    "line": "solid dashed dotted shaded open filled closed hatched fit fits limits interval intervals horizontal "
            "vertical connect shading areas scale",
    "person": "patient patients man woman boy girl case year-old female male",
}  # fmt: skip
# words that lead to a panel which a sentence refers to
LINKS = frozenset(("in", "of", "from", "with", "to", "as", "by", "between", "than", "for", "see", "at", "on", "like",
                   "cf", "and", "or", "both", "within", "under", "into", "via"))  # fmt: skip
KIND_OF = {word: kind for kind, words in KINDS.items() for word in words.split()}
KIND_OF_ANY = KIND_OF | {f"{word}.": kind for word, kind in KIND_OF.items()}  # also at the end of a sentence
KNOWN = frozenset(KIND_OF_ANY)


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
    cuts.sort(key=_first)
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


def _first(cut: tuple[int, int, int, Candidate | None]) -> tuple[int, int]:
    return cut[:2]


def features_of(text: str, atoms: list[Atom], group: Group) -> list[list[str]]:
    """The features of each atom."""
    count = Counter(atom.clause for atom in atoms if atom.label)
    places = [at for at, atom in enumerate(atoms) if atom.label]
    context = _Context(text, atoms, group, count)
    first, last = places[0], places[-1]
    found = []
    for at, atom in enumerate(atoms):
        if atom.label is not None:
            found.append(context.of_label(at, atom, atom.label))
        else:
            where = "0" if at < first else "9" if at > last else "5"
            found.append(context.of_text(at, atom, where))
    return found


class _Context:
    """What the features of an atom need to know of the others."""

    def __init__(self, text: str, atoms: list[Atom], group: Group, count: Counter[int]) -> None:
        self.text, self.atoms, self.group, self.count = text, atoms, group, count
        self.known: set[str] = set()
        self.letters = [m.start() for m in LETTER.finditer(text) if _led(text, m.start())]  # of panels
        for pattern in SMALL_LETTERS:
            self.letters += [m.end() - 1 for m in pattern.finditer(text)]
        self.plain = text.replace("(", " ").replace(")", " ").replace("[", " ").replace("]", " ")
        self.plain = self.plain.replace(",", " ").replace(";", " ").replace(":", " ")
        self.named: dict[int, int] = {}  # sentence -> panels that it names
        self.signs = [sign for sign in SIGNS if sign in text]
        labels = [atom.label for atom in atoms if atom.label]
        # what all labels agree on: the beginning before the first one, the end behind the last, signs behind each
        first, last = labels[0], labels[-1]
        begin = text[: first.start].rstrip()[-1:]
        self.common = (
            f"g0={'^' if not first.start else begin if begin in '.:;,' else 'w'}",
            f"g9={_sign(text, last.end)}",
            f"gb={_share(sum(_begin(text, one.start) in '^.;:' for one in labels), len(labels))}",
            f"gs={_share(sum(_sign(text, one.end) in '.,;$' for one in labels), len(labels))}",
            f"gf={group.form}{group.kind}",
        )
        self.names = "n" + str(min(len(group.names), 5))
        self.style = group.form if len(group.form) == 1 else "x"

    def of_label(self, at: int, atom: Atom, label: Candidate) -> list[str]:
        """Features of a label candidate."""
        text = self.text
        before, sign = _begin(text, label.start), _sign(text, label.end)
        new = [name for name in label.names if name not in self.known]
        fresh = "new" if len(new) == len(label.names) else "old" if not new else "mix"
        self.known.update(label.names)
        word = self.plain[max(0, label.start - 24) : label.start].split()
        previous = word[-1].lower() if word else ""
        following = WORD.match(text, label.end + (text[label.end : label.end + 1] == " "))
        after = following[0].lower() if following else ""
        alone = "1" if self.count[atom.clause] == 1 else "2"
        neighbours = ("t" if at and not self.atoms[at - 1].label else "d") + (
            "t" if at + 1 < len(self.atoms) and not self.atoms[at + 1].label else "d"
        )
        several = "s" if len(label.names) > 1 else ""
        leads = "n" if previous in NOUNS else "l" if previous in LINKS else "w"
        style, common = self.style, self.common
        form = _form_of_label(label.way, before, sign, (fresh, alone, several, leads, neighbours), style, common)
        return [*form, f"pw={previous}", f"nw={after}", f"k={self.group.kind}", f"{self.names}{style}"]

    def of_text(self, at: int, atom: Atom, where: str) -> list[str]:
        """Features of a text."""
        piece = self.text[atom.start : atom.end]
        words = self.plain[atom.start : atom.end].lower().split()
        first = words[0] if words else ""
        begin = "(" if atom.enclosed else "l" if at and self.atoms[at - 1].label and not atom.gap else "-;.^"[atom.gap]
        following = self.atoms[at + 1] if at + 1 < len(self.atoms) else None
        end = "$" if following is None else "l" if following.label and following.clause == atom.clause else "."
        close = "l" if following and following.label else ""
        stop = piece.rstrip()[-1:]
        stop = stop if stop in ".;:," else "w"
        size = "1" if len(words) == 1 else "2" if len(words) < 4 else "3" if len(words) < 9 else "4"
        head = piece.strip()[:1]
        shape = "a" if head.islower() else "A" if head.isupper() else "0" if head.isdigit() else head
        labels = "012"[min(self.count.get(atom.clause, 0), 2)]
        form = _form_of_text((begin, end, close, labels), where, stop, size, shape, (self.style, *self.common[2:4]))
        found = [*form, f"fw={first}{begin}", f"r={self.references(at)}{where}{begin}"]
        if known := KNOWN.intersection(words):
            found += [f"k={kind}{where}{begin}" for kind in sorted({KIND_OF_ANY[word] for word in known})]
        if self.signs and any(sign in piece for sign in self.signs) and STATISTIC.search(piece):
            found.append(f"k=p{where}{begin}")
        if DEFINITION.match(piece):
            found.append(f"k=def{where}{begin}")
        if first in KIND_OF:
            found.append(f"f={KIND_OF[first]}{begin}{where}")
        if len(words) > 1 and words[1] in KIND_OF:
            found.append(f"f2={KIND_OF[words[1]]}{begin}{where}")
        return found

    def references(self, at: int) -> int:
        """How many panels the sentence of an atom names, at most two."""
        number = self.atoms[at].sentence
        if number not in self.named:
            first = last = at
            while first and self.atoms[first - 1].sentence == number:
                first -= 1
            while last + 1 < len(self.atoms) and self.atoms[last + 1].sentence == number:
                last += 1
            start, end = self.atoms[first].start, self.atoms[last].end
            self.named[number] = min(2, len({self.text[letter] for letter in self.letters if start < letter < end}))
        return self.named[number]


@lru_cache(maxsize=1 << 15)
def _form_of_label(
    way: str, before: str, sign: str, at: tuple[str, ...], style: str, common: tuple[str, ...]
) -> tuple[str, ...]:
    """The features of a label candidate, without those of words: there are few, so that they can be kept."""
    fresh, alone, several, leads, neighbours = at
    both = f"{before}{sign}"
    return (
        "m", f"w={way}", f"b={before}", f"s={sign}", f"{both}{style}", f"{fresh}{style}{before}",
        f"pc={leads}{before}{style}", f"{fresh}{several}", f"{alone}{both}", f"nb={neighbours}", f"{way}{before}",
        f"{fresh}{alone}{before}", *common, f"{common[0]}{common[1]}{style}", f"{common[2]}{common[3]}",
        f"{common[2]}{both}",
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


def _led(text: str, place: int) -> bool:
    """Whether words or signs before the capital at this position make it the name of a panel."""
    return (
        text[place - 1] != " " or text[place - 2] == "," or LEADING.search(text, max(0, place - 9), place) is not None
    )


def _begin(text: str, place: int) -> str:
    """What stands before a position: ^ nothing, a sign, or w a word."""
    before = text[place - 2 : place - 1] if text[place - 1 : place] == " " else text[place - 1 : place]
    if not before or not place:
        return "^"
    if before in ".;:,()":
        return before
    return "&" if before in "dr" and text[max(0, place - 4) : place].rstrip().endswith(("and", " or")) else "w"


def _sign(text: str, place: int) -> str:
    """What stands behind a position: $ nothing, a sign, A a capital, a a small letter, 0 a digit."""
    behind = text[place : place + 2].lstrip()[:1]
    if not behind:
        return "$"
    if behind in ".,;:()":
        return behind
    return "A" if behind.isupper() else "0" if behind.isdigit() else "a" if behind.isalpha() else "*"


def _share(part: int, whole: int) -> str:
    return "0" if not part else "4" if part == whole else "3" if part * 2 >= whole else "1"
