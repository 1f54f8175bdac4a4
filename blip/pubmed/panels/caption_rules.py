"""A caption of several panels -> the text of each panel, by rules alone, with a confidence; `captions.py` learned more.

Labels have several styles: (A) text, A, text, A: text, A. text, a) text, [A] text, A Text, Left: text. For each style
the labels that form a row from its beginning (A, B, C; i, ii, iii) are counted, and the style with the longest row is
taken. The words around each label decide by majority whether labels stand before or behind their text. Text before the
first label belongs to every panel. `Figure 1A` or `vitamin A` are not labels, because they neither begin a sentence nor
stand in brackets, or are in no row. If a label begins a sentence somewhere, its other occurrences are references.
"""

import re
from dataclasses import dataclass

from blip.pubmed.panels.caption_parts import Part, Split

ROMAN = ("i", "ii", "iii", "iv", "v", "vi", "vii", "viii", "ix", "x", "xi", "xii")
DASH = "-~\u2010-\u2015\u2212"
PRIME = "'\u2019\u2032\u2033"
ONE = rf"(?:[A-Za-z]|[ivx]{{2,5}}|[IVX]{{2,5}})[{PRIME}]{{0,2}}"
LINK = rf"\s*(?:[,;]\s*(?:and|or)\b|[{DASH},&;]|\band\b|\bto\b|\bor\b)\s*"
MORE = r"{0,50}"  # further labels in one list: without a bound, the time grows by the square of a hostile caption
SEVERAL = rf"{ONE}(?:{LINK}{ONE}){MORE}"
BEGIN = r"(?:(?<=^)|(?<=[.;:!?)\]]\s)|(?<=[.;\u3002]))"  # of the caption or of a sentence
# style -> pattern whose first group holds the labels
STYLES = {
    "(A)": re.compile(rf"(\(\s*{SEVERAL}\s*\)(?:{LINK}\(\s*{SEVERAL}\s*\)){MORE})\s?:?"),
    "(A, left)": re.compile(
        rf"\((?:[Pp]anels?\s)?({SEVERAL})(?:,?\s(?:upper|lower|top|bottom|left|right)(?:\s\w+)?)?\)\s?:?"
    ),
    "[A]": re.compile(rf"(\[\s*{SEVERAL}\s*\](?:{LINK}\[\s*{SEVERAL}\s*\]){MORE})\s?:?"),
    "A)": re.compile(rf"(?:(?<=^)|(?<=[\s;.,]))({SEVERAL})\)"),
    "A:": re.compile(rf"(?:{BEGIN}|(?<=,\s))(?:[Pp]anels?\s+)?({SEVERAL})\s?:"),
    "A,": re.compile(rf"(?:{BEGIN}|(?<=[;,]\sand\s)|(?<=[;,]\s))(?:[Pp]anels?\s+)?({SEVERAL}),(?=\s)"),
    "A.": re.compile(rf"{BEGIN}(?:({SEVERAL})\.(?=\s?[A-Z0-9(])|((?-i:[a-z]))\.(?=\s))"),
    "A |": re.compile(rf"{BEGIN}({SEVERAL})\s?[|\u2013\u2014]\s"),
    "Panel A": re.compile(rf"{BEGIN}(?:In\s)?[Pp]anels?\s\(?({SEVERAL})\)?[\s,:.](?!and\b)"),
    "A Text": re.compile(rf"{BEGIN}({SEVERAL})\s(?=[A-Z0-9][\w-]*[a-z]|[A-Z]{{2}}|[a-z]{{1,2}}[A-Z0-9])"),
}  # fmt: skip
SURE = {"(A)": 0.95, "[A]": 0.9, "A)": 0.9, "A:": 0.9, "(A, left)": 0.85, "A |": 0.85, "Panel A": 0.85, "A,": 0.8,
        "A.": 0.75, "A Text": 0.7, "Left:": 0.6}  # fmt: skip
PLACE = r"(?:upper|lower|top|bottom|middle|cent(?:er|re|ral)|left|right|above|below)"
ORDINAL = r"(?:first|second|third|fourth|1st|2nd|3rd|4th)"  # a place only before a noun
NOUN = r"(?:panels?|rows?|columns?|images?|side|half|part|graphs?|plots?)"
PLACE_NAME = rf"({PLACE}(?:[ -]?{PLACE}|(?:,| and) {PLACE})?(?=\W|{NOUN})|{ORDINAL}(?=\s?{NOUN}))"
BEFORE_TEXT = re.compile(
    rf"(?:{BEGIN}|(?<=\())(?:The )?{PLACE_NAME}(?:\s?{NOUN})?\s?"
    r"(?:[:,]|(?=\s(?:shows?|depicts?|represents?)\b)|(?=\s(?-i:[A-Z])))",
    re.IGNORECASE,
)
BEHIND_TEXT = re.compile(rf"\((?:the )?{PLACE_NAME}(?:\s?{NOUN})?\)", re.IGNORECASE)
# words that do not end a phrase: a label behind one of these stands before its text
OPEN_WORDS = {"a", "an", "the", "of", "for", "from", "in", "on", "at", "with", "by", "to", "between", "under", "after",
              "before", "using", "shows", "showing"}  # fmt: skip


@dataclass
class Label:
    """Labels that stand together, such as the two of `(A and B)`, and their position in the caption."""

    names: list[str]
    start: int
    end: int
    begins: bool  # whether it begins the caption or a sentence


def split_by_rules(caption: str) -> Split:
    """The parts of a caption; the whole caption as `lead` where there is no row of at least two labels."""
    text = " ".join(caption.split()).replace("\uff08", "(").replace("\uff09", ")")
    found = {style: row_of(text, pattern) for style, pattern in STYLES.items()}
    found = {style: labels for style, labels in found.items() if len(labels) > 1}  # one list of names is no row
    style = max(found, key=lambda name: SURE[name] * len({one for label in found[name] for one in label.names}),
                default="")  # fmt: skip
    labels = found.get(style, [])
    if len({name for label in labels for name in label.names}) < 2:
        style, labels = "Left:", _places(text)
        if not labels:
            return Split(text, [], whole=text)
    before = sum(pull(text, label) for label in labels) > 0
    parts = _parts_behind(text, labels) if before else _parts_around(text, labels)
    lead = text[: labels[0].start].strip(" :;,") if before else ""
    if before and lead.endswith(("Panels", "panels", "Panel", "panel")):
        lead = lead.rpartition(" ")[0]
    return Split(lead, parts, style, _confidence(style, labels, parts, before=before), text)


def row_of(text: str, pattern: re.Pattern[str]) -> list[Label]:
    """The labels of a style that form a row from its beginning."""
    candidates = []
    for match in pattern.finditer(text):
        if names := expand(match[match.lastindex or 1]):
            candidates.append(Label(names, match.start(), match.end(), begins(text, match.start())))
    rows = []
    for kind in (str.isupper, str.islower):
        some = [label for label in candidates if all(kind(name[0]) for name in label.names)]
        allowed = _closed({name for label in some for name in label.names})
        openers = {name for label in some if label.begins for name in label.names}
        row, known = [], set[str]()
        some = [label for label in some if set(label.names) <= allowed]
        # labels behind their text may occur repeatedly
        behind = not openers and sum(pull(text, label) for label in some) <= 0
        for label in some:
            new = set(label.names) - known
            if label.begins or behind or (new and not set(label.names) <= openers):
                row.append(label)
                known.update(label.names)
        rows.append((row, known))
    # of an outer and an inner row the outer comes first
    rows.sort(key=lambda both: (len(both[1]) < 2, both[0][0].start if both[0] else len(text)))
    return rows[0][0]


def _closed(names: set[str]) -> set[str]:
    """The names that form a row from its beginning."""
    allowed: set[str] = set()
    while new := (following(allowed) & names) - allowed:
        allowed |= new
    return allowed


def following(known: set[str]) -> set[str]:
    """Names that may follow in a row: the first of each alphabet, or the successor of any known name."""
    if not known:
        return {"A", "a", "i", "I"}
    found = set()
    for name in known:
        plain = name.rstrip(PRIME)
        found |= {name + prime for prime in PRIME} if len(name) < 3 else set()
        if len(plain) == 1 and plain.lower() != "z":
            found.add(chr(ord(plain) + 1))
        if plain.lower() in ROMAN[:-1]:
            after = ROMAN[ROMAN.index(plain.lower()) + 1]
            found.add(after if plain.islower() else after.upper())
    return found


def pull(text: str, label: Label) -> float:
    """Above 0 if a label probably stands before its text, below 0 if it probably stands behind."""
    if label.begins:
        return 3.0
    before, behind = text[: label.start].rstrip(), text[label.end :].lstrip()
    word = re.search(r"(\w+)$", before)
    value = 0.0
    if word and word[1].lower() in OPEN_WORDS:
        value += 2.0
    elif before.endswith((",", ";")) or (word and word[1].lower() in ("and", "or")):
        value += 0.5
    else:
        value -= 0.5
    if not behind or behind[0] in ".,;:)":
        value -= 2.0
    elif re.match(r"[A-Z][a-z]", behind):
        value += 2.0
    elif not re.match(r"(and|or|in|of|is|are|was|were|shows?|with|for|from)\b", behind):
        value += 1.0
    return value


def _places(text: str) -> list[Label]:
    """Positions instead of letters: `Left: ...`, or `... (left)`; empty for fewer than two."""
    for pattern, begin in ((BEFORE_TEXT, True), (BEHIND_TEXT, False)):
        labels = [Label(_place_names(m[1]), m.start(), m.end(), begin) for m in pattern.finditer(text)]
        if len({name for label in labels for name in label.names}) > 1:
            return labels
    return []


def _place_names(words: str) -> list[str]:
    several = re.split(r",\s*| and ", words.lower())
    return [re.sub(rf"^({PLACE})-?({PLACE})$", r"\1 \2", name) for name in several]


def expand(names: str) -> list[str]:
    """`A-C, E`, also `(A)-(C)`, -> A B C E; empty where it is no list of labels."""
    found: list[str] = []
    pieces = re.split(rf"({LINK})", re.sub(r"[()\[\]\s]+", " ", names).strip().rstrip(":").strip())
    for place, name in enumerate(pieces[::2]):
        link = pieces[2 * place - 1].strip() if place else ""
        if (link == "to" or re.fullmatch(f"[{DASH}]", link)) and found:
            between = _between(found[-1], name)
            if not between:
                return []
            found += between
        found.append(name)
    return list(dict.fromkeys(found))


def _between(first: str, last: str) -> list[str]:
    """The labels after `first` up to and including `last`; empty where the two are not of one row."""
    if first.lower() in ROMAN and last.lower() in ROMAN and (len(first) > 1 or len(last) > 1):
        low, high = ROMAN.index(first.lower()), ROMAN.index(last.lower())
        return [name if first.islower() else name.upper() for name in ROMAN[low + 1 : high + 1]]
    if len(first) == len(last) == 1 and first.isupper() == last.isupper() and first < last:
        return [chr(code) for code in range(ord(first) + 1, ord(last) + 1)]
    return []


def begins(text: str, place: int) -> bool:
    """Whether the caption or a sentence begins at this position."""
    before = text[:place].rstrip()
    return not before or before[-1] in ".;:!?)"


def _parts_behind(text: str, labels: list[Label]) -> list[Part]:
    """Labels before their text: each gets the text up to the next label."""
    ends = [label.start for label in labels[1:]] + [len(text)]
    return [Part(label.names, re.sub(r"[\s:;,]+(?:and)?\s*$", "", text[label.end : end]).lstrip(" :;,"))
            for label, end in zip(labels, ends, strict=True)]  # fmt: skip


def _parts_around(text: str, labels: list[Label]) -> list[Part]:
    """Labels behind their text: each gets the sentence that it stands in."""
    bounds = [0, *(m.end() for m in re.finditer(r"(?<=[.;!?])\s+(?=[A-Z(])", text)), len(text)]
    parts = []
    for label in labels:
        start = max(bound for bound in bounds if bound <= label.start)
        end = min(bound for bound in bounds if bound > label.start)
        parts.append(Part(label.names, text[start:end].strip()))
    return parts


def _confidence(style: str, labels: list[Label], parts: list[Part], *, before: bool) -> float:
    """Chosen by hand: highest for letters in brackets before their text, lowest for sentences that panels share."""
    value = SURE[style]
    value *= 1.0 if before else 0.6
    value *= 1.0 if not before or any(label.begins for label in labels) else 0.75  # perhaps a list within a sentence
    names = [name for label in labels for name in label.names]
    value *= 0.8 if len(set(names)) < len(names) else 1.0  # a label occurs again
    empty = sum(not part.text for part in parts)
    return round(value * (1 - empty / len(parts)), 3)
