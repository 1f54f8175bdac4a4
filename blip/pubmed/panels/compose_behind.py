"""Structures of composed captions whose labels stand behind their words: CT (A) and MRI (B) show a mass."""

from blip.pubmed.panels.caption_writer import (
    BEHIND,
    BEHIND_FORMS,
    GLUE,
    LABEL,
    LEAD,
    MARKED,
    MORE,
    SHARED,
    Composed,
    Names,
    Writer,
    upper,
)


def behind_label(writer: Writer, made: Composed, group: Names, form: str) -> None:
    """A label behind its words, sometimes with a mark in the same brackets."""
    if form.startswith("(") and writer.chance(0.15):
        shown = writer.choose(MARKED)
        first, _, rest = shown.partition("{}")
        text = writer.written(group, "{}")
        extra = {"{zoom}": "zoom", "{stain}": "stain"}
        for mark, name in extra.items():
            first, rest = first.replace(mark, writer.phrase(name)), rest.replace(mark, writer.phrase(name))
        made.add(first.removesuffix("in "), BEHIND)
        made.add(" in " if first.endswith("in ") else "", GLUE)
        made.add(text, LABEL, group)
        made.add(rest, MORE if rest != ")" else GLUE)
        return
    made.add(" " + writer.written(group, form), LABEL, group)


def _words(writer: Writer, share: float) -> str:
    """Words of a label, in `share` of cases a longer phrase, mostly without a semicolon or colon."""
    text = writer.phrase("fragment" if writer.chance(share) else "item")
    return text if not {";", ":"} & set(text) or writer.chance(0.1) else writer.phrase("item")


def behind_items(writer: Writer, made: Composed, groups: list[Names], *, form: str, shared: float = 0.65) -> None:
    """One sentence: words (A), words (B) and words (C) shared words."""
    if writer.chance(0.15) and not made.of(LABEL):
        made.add(" " + upper(writer.phrase("colon")) + ": ", LEAD)
    for at, group in enumerate(groups):
        last = at == len(groups) - 1
        if at:
            made.add(writer.choose((" and ", " and ", ", and ", ", ", " as well as ")) if last else ", ", GLUE)
        text = _words(writer, 0.2)
        made.add(" " + (text if at else upper(text)), BEHIND)
        behind_label(writer, made, group, form)
    if len(groups) > 1 and writer.chance(shared):
        bare = [name for group in groups for name in group]
        made.add(writer.phrase("shared", writer.refs(bare, "x" if form.startswith("(") else form)), SHARED)
    else:
        made.add(".", GLUE)
    made.caption += " "


def behind_linked(writer: Writer, made: Composed) -> None:
    """Lead. Words (A) further words, words (B) further words and words (C) further words. Tail."""
    names, form = writer.row(most=4), writer.form(BEHIND_FORMS[:3])
    writer.lead(made, 0.35, closed=True)
    groups, sign = writer.groups(names, 0.1), writer.choose((", ", ", ", "; "))
    joins = (" and ", " and ", ", and ", ", ", ", while ", " whereas ") if sign == ", " else ("; ", "; ", "; and ")
    for at, group in enumerate(groups):
        last = at == len(groups) - 1
        if at:
            made.add(writer.choose(joins) if last else sign, GLUE)
        made.add(" " + (upper if not at else str)(writer.phrase("item")), BEHIND)
        behind_label(writer, made, group, form)
        if not at or writer.chance(0.8):
            made.add(writer.phrase("own_tail").removeprefix(","), MORE)
    made.add(".", GLUE)
    made.caption += " "
    writer.tail(made, names, form, 0.4)


def behind_inline(writer: Writer, made: Composed) -> None:
    """Lead. Words (A), words (B) and words (C) shared words. Words (D). Tail."""
    names, form = writer.row(most=7), writer.form(BEHIND_FORMS)
    form = "in panel {}" if form == "in {}" and not names[0].isupper() else form
    groups = writer.groups(names, 0.2)
    writer.lead(made, 0.35, closed=True)
    if len(names) in (4, 6) and writer.chance(0.25):  # words (A, B) and (C, D); words (A, C) and (B, D)
        half = len(names) // 2
        groups = [tuple(names[:half]), tuple(names[half:])]
        behind_items(writer, made, groups, form=form)
        groups = [(names[at], names[half + at]) for at in range(half)]
    while groups:
        size = len(groups) if writer.chance(0.6) else 1 + writer.below(len(groups))
        behind_items(writer, made, groups[:size], form=form)
        groups = groups[size:]
    writer.tail(made, names, form, 0.4)


def behind_sentence(
    writer: Writer, made: Composed, group: Names, *, names: list[str], form: str, inside: bool = False
) -> None:
    """Words (A), or words (A) further words; `inside`: Words. (A)"""
    made.add(" " + upper(_words(writer, 0.8)), BEHIND)
    end = writer.choose((".", ".", ".", ";"))
    if inside:
        made.caption += "."
    behind_label(writer, made, group, form)
    if not inside:
        text = writer.phrase("own_tail") if writer.chance(0.3) else ""
        made.add(text + end, MORE if text else GLUE)
    if writer.chance(0.12) and not inside:
        made.add(" " + upper(writer.phrase("more", writer.refs(names, form))), MORE)
    made.caption += " "


def behind_sentences(writer: Writer, made: Composed) -> None:
    """Lead. Words (A). Words (B) further words. Tail."""
    names, form = writer.row(most=7), writer.form(BEHIND_FORMS)
    form = "in panel {}" if form == "in {}" and not names[0].isupper() else form
    writer.lead(made, 0.4, closed=True)
    inside = writer.chance(0.05) and form.startswith("(")
    for group in writer.groups(names, 0.2):
        behind_sentence(writer, made, group, names=names, form=form, inside=inside)
    writer.tail(made, names, form, 0.4)
