"""Lines of copyright, such as "(c) 2020 Smith et al.": whether they consist of names and reserve nothing."""

import re
import unicodedata

# where a line goes over to the licence, as in "(c) Author(s) 2020. Re-use permitted under CC BY."
BEGINS = re.compile(
    r"(?<=[.;,)\d])\s+(?=(?:open[ -]access|this (?:is an|article|work)|re-?use permitted)\b)", re.IGNORECASE
)
PLACES = re.compile(r"\(?https?://(?:[a-z]+\.)?jmir\.org/?\)?")
# what stands in small letters between names, which begin with a capital
BETWEEN = """
al and author authors behalf by copyright corporation da das de del della den der des di do dos du ed el employer
employers et for group in la las le les licensee los of on or originally published publishing san society ten ter the
their to und van von vom zu zum zur
"""
PARTICLES = frozenset(BETWEEN.split())
RESERVED = re.compile(
    r"reserv|r\u00e9serv|vorbehalt|riservat|rights|rechte|droits|derechos|direitos|diritti|licen[cs]e(?!e)"
    r"|exclusive|creative|commons|commercial|permission|reuse|prohibit|personal|\b(?:cc|nc|only|use|no|not)\b",
    re.IGNORECASE,
)


def parted(line: str) -> tuple[str, str]:
    """A line of copyright and the words on the licence that follow it in the same line, "" for none."""
    begins = BEGINS.search(line)
    return (line[: begins.start()], line[begins.end() :]) if begins else (line, "")


def only_names(line: str) -> bool:
    """Whether a line consists of names in Latin letters, years and what stands between them, and reserves nothing."""
    text = PLACES.sub(" ", unicodedata.normalize("NFKC", line))
    text = "".join(c for c in text if unicodedata.category(c) != "Cf")
    if RESERVED.search(text):
        return False
    words = re.findall(r"[^\W\d_]+", text)
    return all(
        "LATIN" in unicodedata.name(word[0], "") and (not word[0].islower() or len(word) == 1 or word in PARTICLES)
        for word in words
    )
