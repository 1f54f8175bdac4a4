"""Names of licences: families of Creative Commons, from codes, links and wording."""

import re

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
DASHES = str.maketrans(dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2212_/", "-"))
CC = re.compile(r"\bCC[ -]?BY((?:[ -]{1,3}(?:NC|ND|SA)\b)*)(?:[ -]*(?:V(?:ERSION)? ?)?(\d\.\d))?", re.IGNORECASE)
LINK = re.compile(r"creativecommons\.org/(licenses|publicdomain)/([a-z-]+)(?:/(\d\.\d))?", re.IGNORECASE)
WORDS = (("NC", r"non-? ?commercial"), ("SA", r"share ?-?alike"), ("ND", r"no-? ?deriv"))


def short_license(code: str) -> str:
    """The family of a licence, without version or country: `cc by-nc 3.0 igo` -> CC-BY-NC; other codes in capitals."""
    text = code.translate(DASHES).strip()
    if re.match(r"CC-? ?(0|ZERO)\b", text, re.IGNORECASE):
        return "CC0"
    if found := CC.match(text):
        return _family(re.findall("NC|ND|SA", found[1].upper()))
    return re.sub(r"[\s-]+", "-", text.upper())


def _family(parts: list[str]) -> str:
    return "-".join(["CC-BY", *(part for part in ("NC", "SA", "ND") if part in parts)])


def license_name(text: str) -> str:
    """The name, such as CC-BY-4.0, from a link or from wording; "" where no licence of Creative Commons is named.

    Restrictions are searched for first: a waiver for the data beside a licence for the article is not the article's.
    """
    if link := LINK.search(text):
        free = link[1].lower() == "publicdomain"
        family = "CC0" if free else _family(re.findall("NC|ND|SA", link[2].upper()))
        return f"{family}-{link[3]}" if link[3] else family
    plain = text.translate(DASHES)
    if found := CC.search(plain):
        family = _family(re.findall("NC|ND|SA", found[1].upper()))
        return f"{family}-{found[2]}" if found[2] else family
    if re.search(r"Creative Commons", plain, re.IGNORECASE) and re.search(r"attribution", plain, re.IGNORECASE):
        # in the name of the licence, not "non-commercial use is permitted" in a sentence of its own
        name = " ".join(re.findall(r"[^.]*attribution[^.]*", re.sub(r"\d\.\d", "", plain), re.IGNORECASE))
        return _family([part for part, words in WORDS if re.search(words, name, re.IGNORECASE)])
    if re.search(r"\bCC-?0\b|Creative Commons Zero", plain, re.IGNORECASE):
        return "CC0"
    public = re.search(r"(?<!not )in(?:to)? the public domain|Public Domain (?:Mark|Dedication)", plain, re.IGNORECASE)
    return "CC0" if public and "rights reserved" not in plain.lower() else ""
