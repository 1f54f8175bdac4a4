"""Captions of compound figures, composed of phrases or of single captions, with the truth about each span.

A caption is written from left to right: a lead, labels in one of the forms of the literature, each before or behind its
own words, references to panels inside sentences, and a tail that belongs to all panels. Each function writes one
structure.
"""

import re
from collections.abc import Callable, Iterator

from blip.pubmed.panels.caption_writer import (
    BEFORE,
    BEFORE_FORMS,
    COMMON,
    GLUE,
    LABEL,
    LEAD,
    Composed,
    Names,
    Writer,
    upper,
)
from blip.pubmed.panels.compose_behind import (
    behind_inline,
    behind_items,
    behind_linked,
    behind_sentence,
    behind_sentences,
)
from blip.pubmed.panels.compose_places import places


def _form(writer: Writer, names: list[str]) -> str:
    """How labels before their words are written."""
    return writer.choose(("({}) ", "{}) ", "{}. ", "Panel {}: ")) if names[0].isdigit() else writer.form(BEFORE_FORMS)


def sentences(writer: Writer, made: Composed) -> None:
    """Lead. (A) Words. Further words. (B) Words. Tail."""
    names = writer.row()
    form = _form(writer, names)
    writer.lead(made, 0.8)
    if made.caption and writer.chance(0.12):  # a title without its full stop
        bare = made.caption.rstrip(". ")
        made.spans[-1] = (0, len(bare) + 1, LEAD, ())
        made.caption = bare + " "
    writer.each = writer.alternative("each") if writer.chance(0.15) else ""
    before_sentences(writer, made, writer.groups(names), form=form)
    writer.each = ""
    writer.tail(made, names, form)


def before_sentences(writer: Writer, made: Composed, groups: list[Names], *, form: str) -> None:
    """Labels before one or more sentences each."""
    names = [name for group in groups for name in group]
    bare = form in ("{} ", "{}. ", "{} | ")
    lower = writer.chance(0.1) and not bare
    for at, group in enumerate(groups):
        made.add(" " + writer.written(group, form), LABEL, group)
        text = writer.own(names, form, sentence=True, last=at == len(groups) - 1)
        if len(group) > 1 and "(" in form and writer.chance(0.45):  # (A, B) Words in some (A) and others (B).
            text = _divided(writer, group)
        if len(group) > 1 and writer.chance(0.08):
            text += " " + upper(writer.phrase("own_refs", (f"({group[0]})", f"({group[-1]})")))
        if "shows" in form:
            text = writer.choose(("shows ", "shows ", "is ", "demonstrates ")) + text[0].lower() + text[1:]
            made.add(" " + text + " ", BEFORE)
            continue
        made.add((text[0].lower() if lower else text[0].upper()) + text[1:] + " ", BEFORE)


def _divided(writer: Writer, group: Names) -> str:
    """Words of several panels, of which each is named again behind some of the words."""
    join = writer.choose((", ", " and ", " or "))
    named = list(group)
    if len(group) > 3 and writer.chance(0.5):  # some (A and C) and others (B and D)
        named = [
            ", ".join(some[:-1]) + writer.choose((" and ", ", ", ", and ")) + some[-1]
            for some in (group[::2], group[1::2])
        ]
    kind = writer.choose(("item", "item", "group", "time", "divided"))
    items = [f"{writer.phrase(kind)} ({name})" for name in named]
    text = writer.phrase("opening" if writer.chance(0.6) else "fragment") + writer.choose(
        (" in ", " of ", " ", " at ", " with ", " before ", " after ", ": ", " from ", " for ", " either ")
    )
    refs = writer.refs(list(group), "({})")
    text += ", ".join(items[:-1]) + join + items[-1] + (writer.phrase("shared", refs) if writer.chance(0.65) else ".")
    while writer.chance(0.5 * writer.longer):
        text += " " + upper(writer.phrase("more" if writer.chance(0.5) else "own_refs", refs))
    return text


def clauses(writer: Writer, made: Composed) -> None:
    """Lead: (A) words; (B) words; and (C) words. Tail."""
    names = writer.row()
    form = _form(writer, names)
    writer.lead(made, 0.25)
    if writer.chance(0.6):
        made.add(upper(writer.phrase("colon")) + writer.choose((": ", ": ", ". ", ", ")), LEAD)
    mark = writer.choose((";", ",", ";", ".", ""))
    if form in ("{} ", "{}. ", "{}, ") and mark in ("", ","):
        mark = ";"
    groups = writer.groups(names)
    for at, group in enumerate(groups):
        if at == len(groups) - 1 and mark != "." and writer.chance(0.3):
            made.add(" and ", GLUE)
        made.add(" " + writer.written(group, form), LABEL, group)
        text = writer.own(names, form, sentence=False)
        if "shows" in form:
            text = "shows " + text[0].lower() + text[1:]
        elif form == "{} " or writer.chance(0.4):
            text = upper(text)
        made.add((" " if "shows" in form else "") + text + ("." if at == len(groups) - 1 else mark) + " ", BEFORE)
    writer.tail(made, names, form)


def inline(writer: Writer, made: Composed) -> None:
    """Photomicrographs of (A) words, (B) words and (C) words. Tail."""
    names = writer.row(most=5)
    form = writer.choose(("({}) ", "({}) ", "({}) ", "{}) ", "[{}] "))
    writer.lead(made, 0.3)
    if writer.chance(0.75):
        made.add(upper(writer.phrase("opening")) + " ", LEAD)
    _items(writer, made, writer.groups(names, 0.1), form=form)
    writer.tail(made, names, form)


def _items(writer: Writer, made: Composed, groups: list[Names], *, form: str) -> None:
    """(A) words, (B) words and (C) words."""
    for at, group in enumerate(groups):
        last = at == len(groups) - 1
        if last:
            made.add(writer.choose((" and ", " and ", ", and ", " or ", " versus ")), GLUE)
        made.add(" " + writer.written(group, form), LABEL, group)
        text = writer.phrase("item")
        if last and writer.chance(0.25):
            text += writer.phrase("shared", writer.refs([name for some in groups for name in some], form)).rstrip(".")
        made.add(text + ("." if last else "," if at < len(groups) - 2 else "") + " ", BEFORE)


def inner(writer: Writer, made: Composed) -> None:
    """(A) Words. Common words of (B) words, (C) words and (D) words. (E) Words. Tail."""
    names, form = writer.row(least=4, most=9), writer.choose(("({}) ", "({}) ", "({}) ", "{}) ", "[{}] "))
    start = 1 + writer.below(len(names) - 2)
    end = start + 2 + writer.below(min(3, len(names) - start - 1))
    groups: list[Names] = [(name,) for name in names]
    writer.lead(made, 0.8)
    if start > 1 and writer.chance(0.4):
        _items(writer, made, groups[:start], form=form)
    else:
        before_sentences(writer, made, groups[:start], form=form)
    made.add(upper(writer.phrase("opening")) + " ", COMMON, tuple(names[start:end]))
    _items(writer, made, groups[start:end], form=form)
    before_sentences(writer, made, groups[end:], form=form)
    writer.tail(made, names, form)


def mixed(writer: Writer, made: Composed) -> None:
    """Some labels behind their words, the others before, with the change at the end of a sentence."""
    names = writer.row(least=3, most=8)
    groups: list[Names] = [(name,) for name in names]
    cut = 1 + writer.below(len(groups) - 1)
    writer.lead(made, 0.4, closed=True)
    first, second = groups[:cut], groups[cut:]
    before = writer.chance(0.4)
    form = _form(writer, names) if writer.chance(0.3) else "({}) "  # of labels before words
    for behind, some in ((not before, first), (before, second)):
        if not behind:
            before_sentences(writer, made, some, form=form)
        elif len(some) > 1:
            behind_items(writer, made, some, form="({})")
        else:
            behind_sentence(writer, made, some[0], names=names, form="({})")
    writer.tail(made, names, "({})", 0.4)


def nested(writer: Writer, made: Composed) -> None:
    """(A\u2013C) Common words: (A) words, (B) words and (C) words. (D) Words."""
    names = writer.row(least=4, most=8)
    size = 2 + writer.below(len(names) - 2)
    writer.lead(made, 0.8)
    made.add(writer.written(tuple(names[:size]), "({}) "), LABEL, tuple(names[:size]))
    made.add(upper(writer.phrase("colon")) + writer.choose((": ", ". ", " ")), BEFORE)
    for at, name in enumerate(names[:size]):
        last = at == size - 1
        if last:
            made.add(" and ", GLUE)
        made.add(f" ({name}) ", LABEL, (name,))
        made.add(writer.phrase("item") + ("." if last else ",") + " ", BEFORE)
    before_sentences(writer, made, [(name,) for name in names[size:]], form="({}) ")
    writer.tail(made, names, "({}) ")


def crossed(writer: Writer, made: Composed) -> None:
    """(A, B) Words; (C, D) words. (A, C) Words; (B, D) words."""
    form = writer.choose(("({}) ", "({}) ", "{}: ", "({}): "))
    names = list("abcd" if writer.chance(0.4) else "ABCD")
    writer.lead(made, 0.8)
    pairs = [(names[0], names[1]), (names[2], names[3]), (names[0], names[2]), (names[1], names[3])]
    if writer.chance(0.3):
        pairs = pairs[2:] + pairs[:2]
    stop = writer.choose(("; ", ", ", ". "))
    for at, pair in enumerate(pairs):
        made.add(" " + writer.written(pair, form), LABEL, pair)
        text = writer.phrase("item")
        made.add((upper(text) if stop == ". " else text) + (". " if at % 2 else stop), BEFORE)
    writer.tail(made, names, form)


def bracketed(writer: Writer, made: Composed) -> None:
    """Lead (A, words; B, words). Tail."""
    names, sign = writer.row(most=5), writer.choose((",", ":", ",", " =", "."))
    writer.lead(made, 0.2)
    made.add(upper(writer.phrase("colon")) + " (", LEAD)
    for at, name in enumerate(names):
        if at == len(names) - 1 and writer.chance(0.2):
            made.add(" and ", GLUE)
        made.add(f" {name}{sign} ", LABEL, (name,))
        made.add(writer.phrase("item") + ("). " if at == len(names) - 1 else "; "), BEFORE)
    writer.tail(made, names, "{}")


def enclosed(writer: Writer, made: Composed) -> None:
    """Lead. (A, words) Words. (B, words) Words."""
    names = writer.row(most=6)
    writer.lead(made, 0.6)
    for at, name in enumerate(names):
        made.add(f" ({name}{writer.choose((', ', ', ', ': ', '; '))}", LABEL, (name,))
        made.add(writer.phrase(writer.choose(("plane", "mri", "stain", "item", "mark", "zoom"))) + ") ", BEFORE)
        made.add(upper(writer.own(names, "({})", sentence=True, last=at == len(names) - 1)) + " ", BEFORE)
    writer.tail(made, names, "({})")


def plain(writer: Writer, made: Composed) -> None:
    """A caption without labels, with what is easily taken for labels."""
    text = "(left)"
    while re.search(r"\((?:left|top)\)|(?:Left|Top)[:,]", text):  # which would be panels
        text = writer.phrase("fragment") + "." if writer.chance(0.2) else writer.phrase("plain", ("(A)", "B"))
        if writer.chance(0.2):
            text += " " + upper(writer.phrase("more", ("(A)", "B")))
    made.add(upper(text), LEAD)


Structures = tuple[tuple[Callable[[Writer, Composed], None], int], ...]
STRUCTURES: Structures = (
    (sentences, 34), (clauses, 14), (inline, 11), (behind_inline, 14), (behind_sentences, 8), (mixed, 6), (nested, 4),
    (behind_linked, 6), (inner, 3), (bracketed, 3), (crossed, 2), (enclosed, 3), (places, 10), (plain, 11),
)  # fmt: skip


def compose(writer: Writer, structures: Structures = STRUCTURES) -> Composed:
    """One caption with its spans, in one of these structures by their weights."""
    made = Composed()
    writer.longer = writer.choose((0.02, 0.15, 0.3, 0.3, 0.6))
    at = writer.below(sum(weight for _, weight in structures))
    for structure, weight in structures:
        at -= weight
        if at < 0:
            structure(writer, made)
            break
    made.caption = made.caption.rstrip()
    return made


def captions(
    seed: int, count: int, half: str = "train", *, singles: tuple[str, ...] = (), structures: Structures = STRUCTURES
) -> Iterator[Composed]:
    """`count` captions, the same ones for the same arguments; see `Writer` and `compose`."""
    writer = Writer(seed, half, singles)
    for _ in range(count):
        yield compose(writer, structures)
