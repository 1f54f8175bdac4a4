"""Structure of composed captions whose labels are places: `Left: words`, `(upper row)`, `words (left)`."""

from blip.pubmed.panels.caption_writer import BEFORE, LABEL, LEAD, PLACES, Composed, Writer, upper
from blip.pubmed.panels.compose_behind import behind_items


def places(writer: Writer, made: Composed) -> None:
    """Left: words. Right: words; or words (left) and words (right)."""
    names = writer.choose(PLACES)
    if writer.chance(0.1):
        names = writer.choose((("first", "second"), ("1st", "2nd", "3rd"), ("first", "second", "third")))
    noun = writer.choose(("", "", " panel", " row", " image", " column", " panels", " Row", " Panel"))
    noun = " " + writer.choose(("row", "column", "panel", "Row")) if names[0] in ("first", "1st") else noun
    writer.lead(made, 0.5, closed=True)
    if writer.chance(0.15):  # places that are only named
        first, second = (f"{writer.phrase('item')} ({name})" for name in names[:2])
        if writer.chance(0.3):
            both = writer.phrase("opening") + f" (1) {first}, and (2) {second}"
        else:
            both = f"{first} and {second}"
        made.add(" " + upper(both) + writer.phrase("shared", (names[0], names[1])) + " ", LEAD)
        if writer.chance(0.5):
            made.add(f" The {names[0]} {writer.phrase('thing')} " + writer.phrase("acted") + " the "
                     + writer.phrase("thing") + ". ", LEAD)  # fmt: skip
    if writer.chance(0.6):
        sign = writer.choose((": ", ": ", ", ", " shows ", " - ", ". ", " ") if noun else (": ", ": ", ", ", ". ", " "))
        stop = writer.choose((". ", "; ", ". ")) if sign != " " else ". "
        the = "The " if noun and sign == " shows " else ""
        enclosed = writer.chance(0.2)  # (Left) Words.
        if writer.chance(0.2) and sign in (": ", ", "):
            made.add(upper(writer.phrase("colon")) + ": ", LEAD)
            stop = "; "
        for at, name in enumerate(names):
            last = at == len(names) - 1
            shown = the + name if the else upper(name) if stop == ". " or not made.caption else name
            text = writer.phrase("place_own")
            if enclosed:
                made.add(f" ({shown.removeprefix('The ')}{noun}) ", LABEL, (name,))
                made.add((upper(text) if stop == ". " else text) + (". " if last else stop), BEFORE)
                continue
            made.add(f" {shown}{noun}{sign.replace('shows ', '')}", LABEL, (name,))
            text = "shows " + text if sign == " shows " else text
            text = upper(text) if sign == " " or (sign == ": " and writer.chance(0.6)) else text
            if stop == ". " and writer.chance(writer.longer):
                text += ". " + upper(writer.phrase("more", (names[0], names[1]))).rstrip(".")
            made.add(text + (". " if last else stop), BEFORE)
    else:
        form = "({}" + noun + ")" if names[0] in ("first", "1st") or writer.chance(0.5) else "({})"
        behind_items(writer, made, [(name,) for name in names], form=form)
    writer.tail(made, ["A", "B"], "x", 0.35)
