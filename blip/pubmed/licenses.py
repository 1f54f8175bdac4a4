"""Names of licences: families of Creative Commons, by a closed grammar. What does not parse completely is `unknown`.

A text parses if all of it consists of codes (`CC BY-NC 4.0`), names in words (Creative Commons Attribution), addresses
of creativecommons.org, known sentences on material of others, and words that licence statements use and that restrict
nothing. Any other word or character, such as "not", "data" or "reserved", makes it `unknown`, and so do two names that
contradict each other. A restriction (NC, ND, SA) counts wherever it occurs.
"""

import difflib
import re
import unicodedata
from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

from blip.errors import InputError
from blip.pubmed.license_grammar import (
    DATA_WAIVER,
    LINK,
    PART,
    RESTRICTIONS,
    TOKEN,
    VERSIONS,
    WORDS,
)
from blip.pubmed.license_holders import only_names, parted
from blip.pubmed.license_sentences import SENTENCE

# family -> (terms in short, address of its text)
FAMILIES = {
    "CC0": ("no rights reserved", "https://creativecommons.org/publicdomain/zero/1.0/"),
    "CC-BY": ("credit the authors", "https://creativecommons.org/licenses/by/4.0/"),
    "CC-BY-SA": ("credit the authors; what you make of it has the same licence",
                 "https://creativecommons.org/licenses/by-sa/4.0/"),
    "CC-BY-NC": ("credit the authors; no commercial use", "https://creativecommons.org/licenses/by-nc/4.0/"),
    "CC-BY-ND": ("credit the authors; no changed versions, which cut-out panels may be",
                 "https://creativecommons.org/licenses/by-nd/4.0/"),
    "CC-BY-NC-SA": ("credit the authors; no commercial use; same licence",
                    "https://creativecommons.org/licenses/by-nc-sa/4.0/"),
    "CC-BY-NC-ND": ("credit the authors; no commercial use; no changed versions",
                    "https://creativecommons.org/licenses/by-nc-nd/4.0/"),
}  # fmt: skip
UNKNOWN = "unknown"  # a licence that is named and not understood
ARCHIVE_CODES = ("TDM", "NO-CC-CODE")  # other codes of PubMed Central: no licence of Creative Commons
LONGEST = 20_000  # characters of a statement; a longer one is not read


def short_license(code: object) -> str:
    """The family of a licence, without version or country: `cc by-nc 3.0 igo` -> CC-BY-NC.

    "" for no text, TDM and NO-CC-CODE as the archive names them, `unknown` for whatever does not parse.
    """
    if code is None or code == "":
        return ""
    if not isinstance(code, str):
        return UNKNOWN
    if not code.strip():
        return ""
    named = re.sub(r"[\s-]+", "-", code.strip().upper())
    if named in ARCHIVE_CODES:
        return named
    parsed = _parse(code)
    return parsed[0] if parsed else UNKNOWN


@lru_cache(maxsize=4096)  # the articles of a journal share their statement
def license_name(text: str) -> str:
    """The name, such as CC-BY-4.0, from a code, an address or a statement; the version from codes and addresses.

    "" for no text, and for one that reserves all rights and names no licence; `unknown` for whatever does not parse.
    """
    if not text.strip():
        return ""
    if len(text) > LONGEST:
        return UNKNOWN
    if parsed := _parse(text):
        return "-".join(filter(None, parsed))
    plain = _plain(text).replace("not in the public domain", "")
    reserved = "all rights reserved" in plain and not re.search(r"creative|commons|\bcc|public domain", plain)
    return "" if reserved else UNKNOWN


def article_license(links: Iterable[str], statement: str, holder: str = "", *, kinds: Iterable[str] = ()) -> str:
    """The name of an article's licence, by its links to Creative Commons, beside which all words must be understood.

    Args:
        links: addresses in its permissions; those of other places count for nothing.
        statement: its words on the licence.
        holder: its words on the copyright: names, and what follows them on the licence.
        kinds: what the attributes call the licence, such as open-access or cc-by.
    """
    if max(len(statement), len(holder)) > LONGEST:
        return UNKNOWN
    holder, more = parted(holder)
    statement = f"{statement} {more}".strip()
    named = license_name(statement)
    found = [LINK.fullmatch(_plain(link)) for link in links if "creativecommons" in _plain(link[:LONGEST])]
    parsed = [link and _of_link(link) for link in found]
    if None in parsed:
        return UNKNOWN
    names = {name for name in parsed if name}
    if DATA_WAIVER.search(_plain(statement)):
        names = {name for name in names if name[0] != "CC0"}  # of the data
    if not only_names(holder):
        return UNKNOWN if names or named else ""
    if names:
        families = {family for family, _ in names}
        versions = {version for _, version in names if version}
        named = "-".join([families.pop(), *(versions if len(versions) == 1 else ())]) if len(families) == 1 else UNKNOWN
    family = short_license(named)
    if family not in FAMILIES:
        return named
    agree = _agrees(statement, family) and all(_kind_agrees(kind, family) for kind in kinds)
    return named if agree else UNKNOWN


def _agrees(statement: str, family: str) -> bool:
    """Whether all words are understood, name no other licence and restrict no more than this one."""
    read = _read(statement)
    if read is None or read.restrictions - set(family.split("-")):
        return False
    named = _one_name(read)
    return named[0] == family if named else not read.names


def _kind_agrees(kind: str, family: str) -> bool:
    plain = re.sub(r"[\s_-]+", "", _plain(kind))
    return plain in ("", "openaccess", "oa", "open", "cc", "creativecommons") or _agrees(kind, family)


def selected_families(names: Iterable[str]) -> frozenset[str]:
    """The families that a user selects, such as CC-BY and CC0.

    Raises:
        InputError: a name is not known; the message has the nearest one.
    """
    known = [*FAMILIES, *ARCHIVE_CODES]
    selected = set()
    for name in names:
        if (family := short_license(name)) not in known:
            nearest = difflib.get_close_matches(str(name).upper().replace(" ", "-"), known, 1, 0.3)
            hint = f"; did you mean {nearest[0]}?" if nearest else "."
            raise InputError(f"no licence is called {name!r}{hint} Known are {', '.join(known)}")
        selected.add(family)
    return frozenset(selected)


# ---- the grammar -----------------------------------------------------------------------------------------------------


def _plain(text: str) -> str:
    """In lower case, with one kind of hyphens, blanks and apostrophes, and without characters that nobody sees."""
    if text.isascii():
        return " ".join(text.lower().split())
    kept = (c for c in unicodedata.normalize("NFKC", text) if unicodedata.category(c) != "Cf")
    plain = "".join("-" if unicodedata.category(c) == "Pd" or c in "\u2212\u2043\u02d7" else c for c in kept)
    return " ".join(plain.replace("\u2019", "'").lower().split())


class Read(NamedTuple):
    """What a text names that is understood completely."""

    names: set[str]
    versions: set[str]
    restrictions: set[str]


def _read(text: str) -> Read | None:
    """What a text names that consists of known parts alone, else None."""
    if len(text) > LONGEST:
        return None
    plain, read, at, titled = _plain(text), Read(set(), set(), set()), 0, False
    while at < len(plain):
        if known := DATA_WAIVER.match(plain, at) or SENTENCE.match(plain, at):
            read.restrictions.update(_restrictions(known) if known.re is SENTENCE else ())
            at = known.end()
            continue
        token = TOKEN.match(plain, at)
        if token is None or (token["word"] and token["word"] not in WORDS):
            return None
        at = token.end()
        titled = titled or bool(token["title"])
        if token["more"]:
            read.restrictions.update(p for p, words in RESTRICTIONS.items() if re.fullmatch(words, token["more"]))
        elif token["link"] or token["code"] or token["zero"] or token["public"]:
            name = _of_token(token)
            if name is None:
                return None
            read.names.add(name[0])
            read.versions.update(filter(None, [name[1]]))
    return None if titled and "CC0" in read.names else read


def _restrictions(sentence: re.Match[str]) -> set[str]:
    """The restrictions that a known sentence speaks of."""
    said = {part for part, words in RESTRICTIONS.items() if re.search(rf"(?<![a-z])(?:{words})", sentence[0])}
    more = (sentence.lastgroup or "").upper().split("_")
    return said | (set(more) & set(RESTRICTIONS)) | ({"SA"} if "under the identical terms" in sentence[0] else set())


def _one_name(read: Read) -> tuple[str, str] | None:
    """(family, version or "") of the one licence that was read, None for none, several and one that there is not."""
    if len(read.names) != 1 or len(read.versions) > 1:
        return None
    return _restricted(next(iter(read.names)), read.restrictions, "".join(read.versions))


def _parse(text: str) -> tuple[str, str] | None:
    """(family, version or "") of a text that consists of known parts alone, else None."""
    read = _read(text)
    return _one_name(read) if read else None


def _of_token(token: re.Match[str]) -> tuple[str, str] | None:
    """(family, version or "") that one part of a text names, None if there is no such licence."""
    if token["link"]:
        link = LINK.fullmatch(token["link"].rstrip(".:"))
        return _of_link(link) if link else None
    if token["public"]:
        return "CC0", ""
    if token["zero"]:
        return _versioned("CC0", token["zero_version"] or "", "")
    parts = re.findall(PART, token["parts"])
    family = _family(parts)
    version, port = token["version"] or "", token["port"] or ""
    if version == "4.0" and port in WORDS:  # "CC BY 4.0 in any medium" is not a licence of India
        port = ""
    if family is None or _versioned(family, version, port) is None:
        return None
    return _versioned(family, version if token["kind"].endswith("cc") else "", port)


def _of_link(link: re.Match[str]) -> tuple[str, str] | None:
    """The same of an address."""
    if link["free"]:
        return _versioned("CC0", link["version"] or "", link["port"] or "")
    parts = link["parts"].split("-")
    family = _family(parts) if len(set(parts)) == len(parts) else None
    return _versioned(family, link["version"] or "", link["port"] or "") if family else None


def _family(parts: list[str]) -> str | None:
    """The family of parts such as by, nc, noderivs; None without attribution, for unknown ones and for ND with SA."""
    found = set()
    for part in parts:
        known = [name for name, words in RESTRICTIONS.items() if re.fullmatch(words, part)]
        if not known and part not in ("by", "attribution"):
            return None
        found.update(known or ["BY"])
    name = _restricted("CC-BY", found - {"BY"}, "")
    return name[0] if name and "BY" in found else None


def _restricted(family: str, more: set[str], version: str) -> tuple[str, str] | None:
    """A family with further restrictions; None where there is no such licence."""
    parts = {*family.split("-")[2:], *more}
    name = "-".join([*family.split("-")[:2], *(part for part in ("NC", "SA", "ND") if part in parts)])
    return (name, version) if name in FAMILIES else None


def _versioned(family: str, version: str, port: str) -> tuple[str, str] | None:
    """A family and its version in full; None where there is no such version, or it was never ported."""
    version = f"{version}.0" if len(version) == 1 else version
    if version not in ("", *(VERSIONS if family != "CC0" else ("1.0",))) or (port and version == "4.0"):
        return None
    return family, version
