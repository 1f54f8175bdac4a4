"""Where a caption may have panel labels: candidates in all forms, and the groups of them that form a row.

A candidate is a label or a list of labels in a form: `(A)`, `A)`, `[A]`, `A:`, `A,`, `A.`, `A |`, `A Text`, `Panel A`,
`((A) and (B))`, `Figure 1A`, `in A`, `(A, text)`, `(arrow, A)`, `Left:`, `(left)`. Candidates of one form and one kind
of names (capitals, small letters, Roman numerals, numbers, places) are a group if they hold at least two labels of a
row that begins with A, a, i or 1. Whether a candidate is a label or only named in a sentence is decided later, by
`caption_readings.py`.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from blip.pubmed.panels.caption_rows import LINK, ONE, expand, kind_of, row_of
from blip.pubmed.panels.caption_rules import PLACE, PRIME, ROMAN

SEVERAL = rf"{ONE}(?:{LINK}{ONE}){{0,30}}"  # without a bound, the time grows by the square of a hostile caption
PANEL = r"(?:[Pp]anels?|[Ii]mages?|[Ss]ub-?figures?|[Pp]hoto(?:graph)?s?|Parts?|Frames?|Graphs?|Plots?)"
NOUN = r"(?:panels?|rows?|columns?|images?|side|half|part|graphs?|plots?|inset|figures?|pictures?|frames?|traces?)"
ORDINAL = rf"(?:first|second|third|fourth|1st|2nd|3rd|4th)(?=\s{NOUN})"
PLACES = rf"(?:{PLACE}(?:[ -]{PLACE})?|{ORDINAL})"
SOME_PLACES = rf"{PLACES}(?:(?:,| and|,? and) {PLACES}){{0,3}}"
# a list in brackets; several brackets that follow one another; a list with other words before or behind it
IN_BRACKETS = re.compile(
    rf"\(\s?(?:(?P<panel>(?:in\s)?{PANEL}|[Ff]ig(?:ure)?s?\.?\s?S?\d{{0,2}})\s?)?(?P<names>{SEVERAL})"
    rf"(?:(?P<close>\.?\s?\))(?P<more>(?:{LINK}\(\s?{SEVERAL}\s?\)){{0,12}})(?P<sign>\s?:(?=\s))?|"
    r"(?P<open>\s?[,;:=\u2013]\s|\s(?=(?:and\s)?[a-z]{3}))(?=\S))"
)
# a pattern that begins with a letter or a sign is found faster than one that begins with several or with what precedes
BEFORE_BRACKET = re.compile(
    rf"(?P<link>[ ,;:](?<=[\w.%].)(?:(?<=\s)in\s|(?<!\s)\s(?:in\s)?))(?:{PANEL}\s)?(?P<names>{SEVERAL})\)"
)
ENDS_IN_LABEL = re.compile(rf".*(?:[^A-Za-z0-9][A-Za-z0-9]{{1,2}}|[ivxIVX{PRIME}])$")
SECOND = re.compile(r"\([bB]\s(?:and\s)?[a-z]{3}")
STAIN = re.compile(r"H\s?(?:&|and|/|-|\+)\s?E$")
IN_SQUARES = re.compile(rf"\[\s?(?P<names>{SEVERAL})\s?\](?:\s?:)?")
VERBS = r"(?:shows?|depicts?|demonstrates?|represents?|illustrates?|displays?|presents?|is|are|was|were)"
# where `BARE` may begin: behind one of these signs, before one of these beginnings
NOUN_BEGINS = r"(?:In\s)?[Pp](?:anel|hoto)|[Ii]mage|[Ss]ub|In\s|P(?:art|lot)|Frame|Graph"
BARE_BEGINS = rf"(?=\(?(?:[A-Za-z](?![a-z])|[ivxIVX]{{2}}|\d|{NOUN_BEGINS}))"
BEFORE_BARE = [re.compile(sign + BARE_BEGINS) for sign in (" ", r"\(", ";", r"\.", "\u3002")]
BARE = re.compile(
    rf"(?<![^\s(;.\u3002])(?P<panel>(?:In\s)?{PANEL}\s|In\s(?=[A-Za-z](?:,|\sand\s|[-\u2013][A-Za-z],)))?\(?(?P<names>{SEVERAL})"
    rf"(?P<sign>\.?\)(?:\s?:)?|\s?:|\.(?!\d)|,|\s?=|\s?[|\u2013\u2014-](?=\s)|[\u2013\u2014-](?=[A-Z]?[a-z]{{3}})|(?P<verb>(?=\s{VERBS}\b))|"
    r"(?=\s\(?[\"'\u201c]?(?:[A-Z0-9\u0391-\u03c9][\w&'-]|[a-z]{1,4}[A-Z0-9-]|A\s[a-z])))"
)
SHOWN_IN = re.compile(rf"n\s(?<=[Ii]..)(?<!\w...)(?P<panel>{PANEL}\s)?(?P<names>{SEVERAL})(?![\w'\u2019])")
IN_FIGURE = re.compile(
    rf"ig(?<=[Ff]..)(?<!\w...)(?:(?:ure|s|ures)?\.?\s?\d{{1,2}}\s?\(?)"
    rf"(?P<names>[A-Za-z]\d?(?:{LINK}[A-Za-z]\d?){{0,9}}|[ivx]{{2,5}})"
    r"(?P<sign>\s?\)?[:.,|]?)(?=\s)"
)
PLACE_BEGINS = ("upper", "lower", "top", "bottom", "middle", "center", "centre", "central", "left", "right", "above",
                "below", "first", "second", "third", "fourth", "1st", "2nd", "3rd", "4th")  # fmt: skip
BEFORE_PLACE = re.compile(r"(?:\((?:on\s)?(?:the\s)?)?(?:(?:In\s|On\s)?[Tt]he\s)?$")
OF_PLACE = re.compile(
    rf"(?P<open>\((?:on\s)?(?:the\s)?)?(?<!\w)(?P<the>(?:In\s|On\s)?[Tt]he\s)?(?P<names>(?i:{SOME_PLACES}))(?!\w)"
    rf"(?P<noun>\s(?i:{NOUN}))?(?P<sign>\)|\s?:|,|;|\.|\s?[\u2013\u2014|-](?=\s)|(?=\s(?:shows?|depicts?|represents?|illustrates?)\b)|)"
)  # fmt: skip
# words before a letter that is the name of something else
NOUNS = frozenset((
    "group", "groups", "type", "types", "vitamin", "hepatitis", "influenza", "lane", "lanes", "arm", "stage",
    "case", "patient", "grade", "class", "phase", "protein", "complex", "factor", "strain", "chain", "table",
    "region", "zone", "site", "point", "step", "sample", "model", "experiment", "subunit", "equation", "method",
    "part", "plate", "cohort", "level", "ward", "blood", "virus", "population", "species", "subject", "mouse",
    "day", "week", "route", "scenario", "isoform", "allele",
))  # fmt: skip
SIGNS = {":": "C", ".": "D", ",": "M", "=": "E", "|": "I", "-": "I", "\u2013": "I", "\u2014": "I"}
ROMANS = frozenset(ROMAN)
UNITED = ("PHKF", "CDMBIWE", "PHKFCDMBIWE")  # forms that one caption may mix


@dataclass(slots=True)
class Candidate:
    """A label or a list of labels at its position.

    Attributes:
        form: P brackets, H half brackets, K square brackets, C colon, D full stop, M comma, E equals, I dash or bar,
            B nothing, W the word panel, F the word figure, V the word in, L place.
        way: how exactly it is written, a feature.
        mark: what a bracket that the label shares with other words needs: `(` after it, or `)` before it.
    """

    start: int
    end: int
    names: tuple[str, ...]
    form: str
    way: str
    mark: str = ""


@dataclass(slots=True)
class Group:
    """Candidates of one form and one kind, in order."""

    form: str
    kind: str
    labels: list[Candidate]
    names: frozenset[str]


def candidates(text: str) -> list[Candidate]:
    """All candidates of a caption, in no order; blanks of the caption are single."""
    found: list[Candidate] = []
    if "(" in text:
        for m in IN_BRACKETS.finditer(text):
            found += _bracketed(m)
    found += _behind_in_brackets(text)
    if "[" in text:
        for m in IN_SQUARES.finditer(text):
            found += _made(m.start(), m.end(), expand(m["names"]), "K", way="[A]")
    for m in _matches(BARE, text, sorted([0, *(m.end() for before in BEFORE_BARE for m in before.finditer(text))])):
        found += _bare(text, m)
    for m in SHOWN_IN.finditer(text):
        if m["panel"] or m["names"][0].isupper():
            found += _made(m.start() - 1, m.end(), expand(m["names"]), "V", way="in panel" if m["panel"] else "in A")
    if "ig" in text:
        for m in IN_FIGURE.finditer(text):
            found += _made(m.start() - 1, m.end(), expand(m["names"]), "F", way="fig" + m["sign"][-1:])
    return found


def _behind_in_brackets(text: str) -> list[Candidate]:
    """Labels behind other words in brackets: `(arrow, A)`."""
    found: list[Candidate] = []
    close = text.find(")", 4)
    while close > 0:
        opened = text.rfind("(", max(0, close - 200), close)
        if 0 <= opened < close - 3 and ENDS_IN_LABEL.match(text, close - 4, close):
            opened = max(opened, text.rfind(")", opened, close))
            m = BEFORE_BRACKET.search(text, opened + 1, close + 1)
            if m and text[opened] == "(" and m.start() - opened <= 120:
                way = ",A)" if m["link"][0] in ",;:" else "in A)"
                found += _made(m.start(), m.end(), expand(m["names"]), "P", way=way, mark=")")
        close = text.find(")", close + 1)
    return found


def _matches(pattern: re.Pattern[str], text: str, starts: list[int]) -> Iterator[re.Match[str]]:
    """The matches of a pattern, as `finditer` has them, where all places at which one may begin are known."""
    end = 0
    for at in starts:
        if at >= end and (m := pattern.match(text, at)):
            end = m.end()
            yield m


def _bracketed(m: re.Match[str]) -> list[Candidate]:
    names, first = m["names"], m["names"].partition(", ")[0]
    if STAIN.match(names):
        return []
    form = "F" if m["panel"] and m["panel"][0] in "Ff" else "P"
    mixed = first != names and len(first) == 1 and any(map(str.isdigit, names)) and first.isalpha()  # `(A, T1)`
    if m["close"] and not mixed and (names_in := expand(names + (m["more"] or ""))):
        way = "panel" if m["panel"] else "(A):" if m["sign"] else "(A)"
        if list(names_in) == sorted(names_in) or not m["more"]:
            around = m.string[m.start() - 1 : m.start()] == "(" and m.string[m.end() : m.end() + 1] == ")"  # ((A), (B))
            return _made(m.start() - around, m.end() + around, names_in, form, way=way)
        inner = re.finditer(r"\([^()]*\)", m[0])  # `as in (G), (B) Text`
        return [
            one
            for some in inner
            for one in _made(m.start() + some.start(), m.start() + some.end(), expand(some[0]), form, way="(A)")
        ]
    if m["panel"] or (m["close"] and first == names):
        return []
    if m["close"]:  # `(A, H&E)` is no list
        return _made(m.start(), m.start("names") + len(first) + 2, expand(first), "P", way="(A,", mark="(")
    article = m["open"] == " " and names in ("a", "A") and not SECOND.search(m.string)
    return [] if article else _made(m.start(), m.end(), expand(names), "P", way=f"(A{m['open'].strip()}", mark="(")


def _bare(text: str, m: re.Match[str]) -> list[Candidate]:
    sign, start = m["sign"].strip(), m.start()
    if STAIN.match(m["names"]):
        return []
    if text[start] == "(":
        start += 1  # the bracket belongs to the words
        if sign.endswith(")") or m.end("names") == m.end():
            return []
    if not m["panel"] and text[max(0, start - 16) : start].rstrip().rpartition(" ")[2].lower() in NOUNS:
        return []  # `group A:`
    form = "H" if ")" in sign else SIGNS.get(sign[:1], "B")
    if m["names"][0].isdigit() and form in "CMEIB" and not m["panel"]:
        return []  # a number and its meaning: `1, aorta; 2, vein`
    if m["panel"]:
        form = "W"
        start -= 3 * (text[start - 4 : start] == " in ")
    elif (
        form == "B"
        and not begins(text, start)
        and (m["names"][0] not in "Aa" or not text[m.end() + 1 : m.end() + 2].isupper())
        and text[start - 4 : start] != "and "
        and (m["verb"] is None or text[start - 2 : start] != ", ")
    ):
        return []
    if (
        form == "B"
        and m["verb"] is None
        and len(m["names"]) == 1
        and text[m.end() + 1 : m.end() + 2].islower()
        and m["names"] in "aAI"
    ):
        return []  # an article
    way = form + sign[:1] + ("a" if form == "I" and text[m.end() : m.end() + 1].isalpha() else "")
    found = _made(start, m.end(), expand(m["names"]), form, way=way)
    first, comma, _ = m["names"].partition(", ")
    if comma:  # `A, S. aureus` is no list
        end = m.start("names") + len(first) + 1
        found += _made(start, end, expand(first), "W" if m["panel"] else "M", way="W," if m["panel"] else "M,")
        last = m["names"].rpartition(", ")[2]  # nor `h, b` in `(a) 48 h, b) text`
        found += _made(m.end("names") - len(last), m.end(), expand(last), form, way=way) if form == "H" else []
    return found


def _made(start: int, end: int, names: tuple[str, ...], form: str, *, way: str, mark: str = "") -> list[Candidate]:
    return [Candidate(start, end, names, form, way, mark)] if names else []


def places(text: str) -> list[Candidate]:
    """Candidates that are places: `Left:`, `(upper row)`, `The right panel shows`."""
    found: list[Candidate] = []
    lower, starts = text.lower(), list[int]()
    for word in PLACE_BEGINS if len(lower) == len(text) else ():  # faster than a pattern
        at = lower.find(word)
        while at >= 0:
            if not at or not (lower[at - 1].isalnum() or lower[at - 1] == "_"):
                starts.append(at)
            at = lower.find(word, at + 1)
    if len(starts) < 2:
        return found
    starts = [BEFORE_PLACE.search(text, max(0, at - 15), at).start() for at in sorted(starts)]  # type: ignore[union-attr]
    for m in _matches(OF_PLACE, text, starts):
        sign, start, mark = m["sign"].strip()[:1], m.start(), ""
        if m["open"]:
            if sign not in "),;:" or not sign:
                continue
            way, mark = "(left)" if sign == ")" else "(left,", "" if sign == ")" else "("
        elif sign == ")":
            before = text[max(0, start - 60) : start]
            if before[-2:] not in (", ", "; ", "n ") or before.rfind("(") <= before.rfind(")"):
                continue
            start, way, mark = start - 2, ",left)", ")"
        elif begins(text, start) and text[m.end() : m.end() + 2].strip().isupper():  # `Left The patient`
            way = "Left " + ("n" if m["noun"] else "")
        elif (sign or m["noun"]) and (
            begins(text, start) or text[start].isupper() or text[start - 4 : start] == "and "
        ):
            way = "Left" + sign + ("n" if m["noun"] else "")
        else:
            continue
        names = tuple(re.sub(r"\s*-\s*", " ", one) for one in re.split(r", and |, | and ", m["names"].lower()))
        found.append(Candidate(start, m.end(), names, "L", way, mark))
    return found


def begins(text: str, place: int) -> bool:
    """Whether the caption, a sentence or a part of it begins at this position."""
    before = text[max(0, place - 2) : place].rstrip()
    return not before or before[-1] in ".;:!?)]("


def groups(text: str) -> list[Group]:
    """The groups of a caption, each with labels that do not overlap."""
    by_form: dict[tuple[str, str], list[Candidate]] = {}
    for one in candidates(text):
        kind = kind_of(one.names[0])
        by_form.setdefault((one.form, kind), []).append(one)
    for roman, letters in (("r", "l"), ("R", "U")):  # `i` and `v` are both
        for (form, kind), some in list(by_form.items()):
            if kind == roman:
                other = by_form.get((form, letters), [])
                by_form[form, kind] = some + [one for one in other if ROMANS.issuperset(map(str.lower, one.names))]
    found = [group for (form, kind), some in by_form.items() if (group := _group(form, kind, some))]
    for forms in UNITED:
        for kind in "Ul":
            parts = [some for (form, k), some in by_form.items() if k == kind and form in forms]
            most = max((len(other.names) for other in found if other.kind == kind and other.form in forms), default=0)
            if len(parts) > 1 and len({name for some in parts for one in some for name in one.names}) > most:
                group = _group(forms, kind, [one for some in parts for one in some])
                found += [group] if group and len(group.names) > most else []
    named = places(text)
    if len({name for one in named for name in one.names}) > 1:
        found.append(Group("L", "p", named, frozenset(name for one in named for name in one.names)))
    return found


def _group(form: str, kind: str, some: list[Candidate]) -> Group | None:
    row = row_of({name for one in some for name in one.names})
    if len(row) < 2:
        return None
    kept: list[Candidate] = []
    for one in sorted(some, key=lambda one: (one.start, -one.end)):
        if row.issuperset(one.names) and (not kept or one.start >= kept[-1].end):
            kept.append(one)
    names = frozenset(name for one in kept for name in one.names)
    return Group(form, kind, kept, names) if len(names) > 1 and len(kept) > 1 else None
