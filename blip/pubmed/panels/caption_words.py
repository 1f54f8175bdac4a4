"""Words and signs from which features of captions are made: kinds of words, statistics, letters that name a panel."""

import re

SIGNS = "<>=\u2264\u00b1*#"  # each `STATISTIC` has one
STATISTIC = re.compile(r"\b[pPnN]\s?[<>=\u2264]|\u00b1|[*#]\s?[pP]\b")
DEFINITION = re.compile(r"[\w/+'\u2019-]{1,9}(?:(?:,|:|\s=)\s|=)")
DEFINED = re.compile(r"(?<![^\s(;,])[\w/+-]*[A-Z*\u2020][\w/+*-]{0,7}(?:\s?[=:]|,)\s?(?=\w)")  # `PV: portal vein`
# a panel that a sentence names, `in A`, `(B)`, `A and B`: a letter, and the words that may stand before one
AFTER_LETTER = r"(?![^\s).,;:\u2013-])"
LETTERS = [re.compile(sign + rf"(?=[A-L]{AFTER_LETTER})") for sign in (" ", r"\(", "\u2013", "-")]
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
    "plot": "graph graphs plot plots chart charts histogram histograms quantification diagram schematic traces",
    "then": "then thus here next afterwards subsequently finally however therefore",
    "person": "patient patients man woman boy girl case year-old female male",
}  # fmt: skip
# words that lead to a panel which a sentence refers to
LINKS = frozenset(("in", "of", "from", "with", "to", "as", "by", "between", "than", "for", "see", "at", "on", "like",
                   "cf", "and", "or", "both", "within", "under", "into", "via"))  # fmt: skip
KIND_OF = {word: kind for kind, words in KINDS.items() for word in words.split()}
KIND_OF_ANY = KIND_OF | {f"{word}.": kind for word, kind in KIND_OF.items()}  # also at the end of a sentence
KNOWN = frozenset(KIND_OF_ANY)


def led(text: str, place: int) -> bool:
    """Whether words or signs before the capital at this position make it the name of a panel."""
    return (
        text[place - 1] != " " or text[place - 2] == "," or LEADING.search(text, max(0, place - 9), place) is not None
    )


def sign_before(text: str, place: int) -> str:
    """What stands before a position: ^ nothing, a sign, or w a word."""
    before = text[place - 2 : place - 1] if text[place - 1 : place] == " " else text[place - 1 : place]
    if not before or not place:
        return "^"
    if before in ".;:,()":
        return before
    return "&" if before in "dr" and text[max(0, place - 4) : place].rstrip().endswith(("and", " or")) else "w"


def sign_behind(text: str, place: int) -> str:
    """What stands behind a position: $ nothing, a sign, A a capital, a a small letter, 0 a digit."""
    behind = text[place : place + 2].lstrip()[:1]
    if not behind:
        return "$"
    if behind in ".,;:()":
        return behind
    return "A" if behind.isupper() else "0" if behind.isdigit() else "a" if behind.isalpha() else "*"


def share(part: int, whole: int) -> str:
    return "0" if not part else "4" if part == whole else "3" if part * 2 >= whole else "1"
