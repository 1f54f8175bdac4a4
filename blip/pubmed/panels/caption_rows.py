"""Lists of panel labels and the rows that they form: `A-C, E` is A, B, C, E; A, B, C is a row, A, B, X is none."""

import re
from functools import lru_cache

from blip.pubmed.panels.caption_rules import DASH, PRIME, ROMAN

ONE = rf"(?:[A-Za-z](?:\d|[{PRIME}]{{1,2}})?|[ivx]{{2,5}}|[IVX]{{2,5}}|\d{{1,2}})"
LINK = rf"(?:,?\s(?:and|or|to|through)\s|\s?[{DASH},&/+]\s?(?:(?:and|or)\s)?)"


@lru_cache(maxsize=4096)
def expand(names: str) -> tuple[str, ...]:
    """`A-C, E`, also `(A)-(C)`, -> A B C E; empty where it is no list of labels."""
    pieces = re.split(rf"({LINK})", re.sub(r"[()\[\]\s]+", " ", names).strip())
    found: list[str] = []
    for place, name in enumerate(pieces[::2]):
        name = name.strip()
        link = pieces[2 * place - 1].strip(" ,") if place else ""
        if place and (link in ("to", "through") or (link and link in "-~\u2212\u2010\u2011\u2012\u2013\u2014\u2015")):
            between = _between(found[-1], name)
            if not between:
                return ()
            found += between
        found.append(name)
    kinds = {kind_of(name) for name in found}
    if len(kinds) > 1 and not kinds <= {"l", "r"} and not kinds <= {"U", "R"}:
        return ()
    return tuple(dict.fromkeys(found))


def _between(first: str, last: str) -> list[str]:
    """The labels after `first` up to and including `last`; empty where the two are not of one row."""
    if first.lower() in ROMAN and last.lower() in ROMAN and (len(first) > 1 or len(last) > 1):
        low, high = ROMAN.index(first.lower()), ROMAN.index(last.lower())
        return [name if first.islower() else name.upper() for name in ROMAN[low + 1 : high + 1]]
    if first.isdigit() and last.isdigit() and int(first) < int(last) < int(first) + 20:
        return [str(number) for number in range(int(first) + 1, int(last) + 1)]
    stem = first[:-1] if len(first) == len(last) == 2 and first[0] == last[0] else ""
    one, two = first[len(stem) :], last[len(stem) :]
    if len(one) == len(two) == 1 and one.isupper() == two.isupper() and one.isdigit() == two.isdigit() and one < two:
        return [stem + chr(code) for code in range(ord(one) + 1, ord(two) + 1)]
    return []


def kind_of(name: str) -> str:
    """U capitals, l small letters, R and r Roman numerals of several letters, d numbers, p places."""
    if len(name) > 1 and name.lower() in ROMAN:
        return "r" if name.islower() else "R"
    return "d" if name[0].isdigit() else "U" if name[0].isupper() else "l"


FIRST = frozenset(("A", "a", "i", "I", "1", "A1", "a1", "Aa"))


def row_of(names: set[str]) -> set[str]:
    """The names that form a row from its beginning: A, B, C of A, B, C, X."""
    allowed = names & FIRST
    if "i" in allowed and "ii" not in names:
        allowed.discard("i")  # the letter after h
    if "I" in allowed and "II" not in names:
        allowed.discard("I")
    todo = list(allowed)
    while todo:
        for name in names_after(todo.pop()):
            if name in names and name not in allowed:
                allowed.add(name)
                todo.append(name)
    return allowed


@lru_cache(maxsize=1024)
def names_after(name: str) -> tuple[str, ...]:
    """Names that may follow a name in a row."""
    found = []
    if name.isdigit():
        return (str(int(name) + 1),)
    if name.lower() in ROMAN[:-1]:
        after = ROMAN[ROMAN.index(name.lower()) + 1]
        found.append(after if name.islower() else after.upper())
    if len(name) == 1 or not name[1].isalpha():
        step = chr(ord(name[0]) + 1)
        found += [step, step + "1"] + ([name[0] + str(int(name[1]) + 1)] if name[1:].isdigit() else [])
        found += [name + prime for prime in PRIME if len(name) < 3 and not name[1:].isdigit()] + [
            name + "1",
            name + "2",
        ]
    return tuple(found)
