"""What composed captions consist of: rows of labels, the forms in which labels are written, phrases, and their spans.

`compose_captions.py` puts them together.
"""

import random
import re
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

LEAD, BEHIND, BEFORE, MORE, SHARED, TAIL, COMMON, LABEL, GLUE = "LNPQSTMDG"
# longer phrases, of which some are kept for captions in other templates than training
RESERVED = frozenset(
    ("fragment", "more", "reference", "lead", "colon", "opening", "tail", "shared", "own_tail", "plain", "item",
     "each", "again", "again_all")
)  # fmt: skip
ROMANS = ("i", "ii", "iii", "iv", "v", "vi", "vii", "viii")
# labels before their text: how one is written, and its weight
BEFORE_FORMS = (
    ("({}) ", 30), ("{}) ", 6), ("{}. ", 7), ("{}: ", 8), ("{}, ", 8), ("{} ", 6), ("[{}] ", 2), ("{} | ", 2),
    ("{} \u2013 ", 1), ("({}): ", 2), ("({}). ", 1), ("{} : ", 1), ("Panel {}: ", 2), ("Panel {} shows ", 2),
    ("Panel {}, ", 1), ("Figure 1{}: ", 1), ("Fig. 2{}. ", 1), ("In panel {}, ", 1), ("In {}, ", 1), ("{} - ", 1),
    ("({})", 1), ("{}.) ", 1), ("{} = ", 1), ("({}) - ", 1), ("panel {}: ", 1), ("({}) shows ", 1), ("{} shows ", 2),
    ("Image {}: ", 1), ("Image {} shows ", 1), ("{}-", 1), ("({}.) ", 1), ("{}, ", 2), ("Fig. 1{}: ", 1), ("{} ", 2),
)  # fmt: skip
BEHIND_FORMS = (
    ("({})", 40), ("(panel {})", 3), ("[{}]", 2), ("(Panel {})", 2), ("(Fig. 1{})", 2), ("(Figure 2{})", 1),
    ("{})", 1), ("in {}", 2), ("in panel {}", 1), ("(image {})", 1), ("(Fig. {})", 1),
)  # fmt: skip
MARKED = (" (arrow, {})", " (arrows, {})", " ({}, arrow)", " ({}; arrowheads)", " (asterisk; {})", " ({}, {zoom})",
          " (arrow in {})", " ({}: {zoom})", " ({stain}, {})", " ({}, yellow arrows)")  # fmt: skip
SHARE_OF_FURTHER = 0.5  # at most, of phrases for training alone among all that are drawn
RANGES = ("\u2013", "\u2013", "-", "-", " to ", "~")
LISTS = (", ", ", ", " and ", " and ", ",", " & ", "/", ", and ")
PLACES = (("left", "right"), ("upper", "lower"), ("top", "bottom"), ("left", "middle", "right"),
          ("top", "middle", "bottom"), ("left", "center", "right"), ("left", "right"), ("upper", "middle", "lower"),
          ("top left", "top right", "bottom left", "bottom right"), ("left", "centre", "right"),
          ("upper left", "upper right", "lower left", "lower right"), ("top left", "middle left", "bottom left"),
          ("top left", "middle left", "bottom left", "top right", "middle right", "bottom right"),
          ("upper left", "upper middle", "upper right", "lower left", "lower middle", "lower right"))  # fmt: skip


Names = tuple[str, ...]


def upper(text: str) -> str:
    """A text with a capital at its beginning."""
    return text[:1].upper() + text[1:]


@dataclass
class Composed:
    """A caption and its spans: (start, end, role, labels); a text without a span is empty or a blank."""

    caption: str = ""
    spans: list[tuple[int, int, str, tuple[str, ...]]] = field(default_factory=list)

    def add(self, text: str, role: str, names: tuple[str, ...] = ()) -> None:
        """Appends a text; a blank goes before it where one is needed, blanks at its end are dropped later."""
        if not text.strip():
            return
        if text[0] in ",;." and self.caption.endswith(" "):  # no blank before a sign
            self.caption = self.caption.rstrip()
            start, _, before, labels = self.spans.pop()
            self.spans.append((start, len(self.caption), before, labels))
        if self.caption.endswith((" ", "(")) or not self.caption:
            text = text.lstrip()
        self.spans.append((len(self.caption), len(self.caption) + len(text), role, names))
        self.caption += text

    def of(self, *roles: str) -> str:
        """The text of spans of these roles."""
        return " ".join(self.caption[a:b].strip() for a, b, role, _ in self.spans if role in roles)


@cache
def grammar() -> dict[str, tuple[str, ...]]:
    """Name -> its alternatives, from `caption_phrases.txt`; a name in braces in one stands for an alternative of it."""
    found: dict[str, list[str]] = {}
    for line in Path(__file__).with_name("caption_phrases.txt").read_text(encoding="utf-8").splitlines()[1:]:
        if line.startswith("[") and line.endswith("]"):
            some = found.setdefault(line.strip("[]"), [])
        elif line:
            some.append(line)
    return {name: tuple(some) for name, some in found.items()}


@cache
def alternatives(name: str, half: str) -> tuple[tuple[str, ...], ...]:
    """What a name stands for: in `train` without every fifth alternative of `RESERVED`, in `test` those alone.

    Alternatives under `NAME: training` are never reserved, since many say what could as well be said of another panel.
    They are a list of their own.
    """
    some, further = grammar()[name], grammar().get(f"{name}: training", ())
    if name in RESERVED and half != "all":
        some = tuple(line for at, line in enumerate(some) if (at % 5 == 4) == (half == "test"))
    return (some,) if half == "test" or not further else (some, further)


class Writer:
    """Draws the components of captions: the same ones for the same seed.

    Args:
        seed: of the generator of random numbers.
        half: `train`, `test` (reserved templates alone) or `all`.
        singles: captions of single figures, which then are half of the longer texts.
    """

    def __init__(self, seed: int, half: str = "train", singles: tuple[str, ...] = ()) -> None:
        self.random, self.half = random.Random(seed), half
        self.longer = 0.3  # share of further sentences of a panel, of each caption its own
        self.each = ""  # a sentence that each panel of this caption has, its braces not filled in
        self.singles = tuple(text for text in singles if 3 < len(text.split()) < 60)

    # ---- choices -----------------------------------------------------------------------------------------------------

    def chance(self, share: float) -> bool:
        return self.random.random() < share

    def below(self, number: int) -> int:
        return int(self.random.random() * number)

    def choose(self, some):  # type: ignore[no-untyped-def]
        return some[self.below(len(some))]

    def form(self, forms: tuple[tuple[str, int], ...]) -> str:
        at = self.below(sum(weight for _, weight in forms))
        for form, weight in forms:
            at -= weight
            if at < 0:
                return form
        raise AssertionError

    def phrase(self, name: str, refs: tuple[str, str] = ("", "")) -> str:
        """An alternative of a name, its braces filled in."""
        if name == "fragment" and self.singles and self.chance(0.3):
            return self.choose(self.singles).rstrip(". ")
        return self.filled(self.alternative(name), refs)

    def alternative(self, name: str) -> str:
        """One of the alternatives of a name, its braces not filled in."""
        some = alternatives(name, self.half)
        if len(some) == 1:
            return self.choose(some[0])
        share = min(SHARE_OF_FURTHER, len(some[1]) / (len(some[0]) + len(some[1])))
        return self.choose(some[self.chance(share)])

    def filled(self, text: str, refs: tuple[str, str] = ("", "")) -> str:
        """A text with its braces filled in."""
        return re.sub(r"\{(\w+)\}", lambda m: self._filled(m[1], refs), text)

    def again(self, name: str, text: str, refs: tuple[str, str]) -> str:
        """A sentence about a word of a text, or an empty one where it has no long word."""
        found = re.findall(r"(?<![\w-])[a-z]{5,}(?![\w-])", text)
        return self.filled(self.alternative(name).replace("{same}", self.choose(found)), refs) if found else ""

    def _filled(self, name: str, refs: tuple[str, str]) -> str:
        if name in ("ref", "ref2"):
            return refs[name == "ref2"]
        return self.phrase(name, refs)

    # ---- labels ------------------------------------------------------------------------------------------------------

    def row(self, least: int = 2, most: int = 9) -> list[str]:
        """The labels of a caption."""
        count = min(most, least + int(self.random.random() ** 1.7 * 8))
        value = self.random.random()
        if value < 0.55:
            return [chr(65 + at) for at in range(count)]
        if value < 0.87:
            return [chr(97 + at) for at in range(count)]
        if value < 0.91:
            return list(ROMANS[: min(count, 8)])
        if value < 0.925:
            return [str(at + 1) for at in range(count)]
        if value < 0.97:
            letters = "AB" if count < 5 else "ABC"
            return [f"{letter}{at + 1}" for letter in letters for at in range(max(1, count // len(letters)))]
        return [name for at in range(max(1, count // 2)) for name in (chr(65 + at), chr(65 + at) + "'")]

    def groups(self, names: list[str], share: float = 0.25) -> list[tuple[str, ...]]:
        """Labels that have one text: mostly each one alone."""
        found: list[tuple[str, ...]] = []
        at = 0
        while at < len(names):
            size = min(len(names) - at, 2 + self.below(3)) if self.chance(share) else 1
            found.append(tuple(names[at : at + size]))
            at += size
        if len(found) == 2 and len(names) == 4 and self.chance(0.3):  # (A, C) and (B, D)
            found = [(names[0], names[2]), (names[1], names[3])]
        return found if len(found) > 1 else [(name,) for name in names]

    def written(self, names: tuple[str, ...], form: str) -> str:
        """Labels in a form: `(A\u2013C) `, `A, B: `, `(A) and (B) `."""
        form = form.replace("shows ", "")  # a word of the panel
        form = form.replace("anel", "anels") if len(names) > 1 else form
        if form.strip() in ("({})", "({}):") and len(names) == 2 and self.chance(0.15):  # (A) and (B)
            return f"({names[0]})" + self.choose((" and ", ", ", " & ")) + form.replace("{}", names[1])
        if len(names) == 1:
            return form.replace("{}", names[0])
        if form.strip() == "({})" and self.chance(0.1):  # ((A) and (B)), ((A)-(C))
            return form.replace("{}", self._row(tuple(f"({name})" for name in names), names))
        return form.replace("{}", self._row(names, names))

    def _row(self, written: tuple[str, ...], names: tuple[str, ...]) -> str:
        """Names as a range or a list."""
        row = all(len(name) == 1 for name in names) and ord(names[-1]) - ord(names[0]) == len(names) - 1
        join = self.choose(RANGES if row and self.chance(0.7 if len(names) > 2 else 0.3) else LISTS)
        if join in RANGES:
            return written[0] + join + written[-1]
        return (join if join in (",", "/") else ", ").join(written[:-1]) + join + written[-1]

    def refs(self, names: list[str], form: str) -> tuple[str, str]:
        """Two references to panels as sentences have them."""
        ways = ["({})", "{}", "panel {}", "({})"] if "(" in form else ["{}", "panel {}", "{}"]
        way, at = self.choose(ways), self.below(len(names))
        other = names[self.below(len(names))]
        two = at + 1 < len(names) and self.chance(0.3)
        first = way.format(names[at])
        if two:
            join = self.choose((" and ", "\u2013", ", "))
            both = "(" in way and self.chance(0.5)  # (A, B) instead of (A), (B)
            first = way.format(names[at] + join + names[at + 1]) if both else first + join + way.format(names[at + 1])
        return first, way.format(other)

    # ---- texts -------------------------------------------------------------------------------------------------------

    def own(self, names: list[str], form: str, *, sentence: bool, last: bool = False) -> str:
        """Words of one panel; `last`: without sentences that could as well be shared by all panels."""
        text = self.phrase(self.choose(("fragment", "fragment", "fragment", "item")))
        if self.chance(0.14):
            text += self.phrase("reference", self.refs(names, form))
        if not sentence:
            return text
        first, text = text, text + "."
        while self.chance(self.longer):
            more = self.again("again", first, self.refs(names, form)) if self.chance(0.08) else ""
            more = more or self.phrase("more" if last or self.chance(0.7) else "either", self.refs(names, form))
            text += " " + upper(more)
        if self.each:
            text += " " + upper(self.filled(self.each))
        return text

    def lead(self, made: Composed, share: float = 0.65, *, closed: bool = False) -> None:
        """Sentences before the first label; `closed`: always with a full stop."""
        if self.chance(share):
            text = self.phrase("lead")
            text += "." if closed and text[-1] != "." else ""
            made.add(text[0].upper() + text[1:] + " ", LEAD)

    def tail(self, made: Composed, names: list[str], form: str, share: float = 0.45) -> None:
        """Sentences that belong to all panels."""
        if not self.chance(share):
            return
        for _ in range(1 + int(self.random.random() ** 2 * 3)):
            refs = self.refs(names, form)
            text = self.again("again_all", made.caption, refs) if self.chance(0.03) else ""
            text = text or self.phrase("tail", refs)
            text = text.replace(" = ", "=") if self.chance(0.2) else text
            made.add(" " + upper(text), TAIL)
