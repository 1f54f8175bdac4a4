"""What statements of licences consist of: the vocabulary and the patterns that `licenses.py` reads them by.

All patterns are for text in lower case, with one kind of hyphens and blanks.
"""

import re

VERSIONS = ("1.0", "2.0", "2.1", "2.5", "3.0", "4.0")
# jurisdictions that versions before 4.0 were ported to, as in addresses and codes; the commonest also in words
CODES_OF_PORTS = """
am ar at au az be bg br ca ch cl cn co cr cz de dk ec ee eg es fi fr ge gr gt hk hr hu ie igo il in it jp kr lu mk mt
mx my nl no nz pe ph pl pr pt ro rs scotland se sg si th tw ua ug uk us ve vn za
"""
PORTS = CODES_OF_PORTS.split()
PLACES = ("united states", "england and wales", "england & wales", "united kingdom", "germany", "france", "spain",
          "italy", "netherlands", "australia", "new zealand", "canada", "austria", "switzerland", "brazil", "japan",
          "intergovernmental organizations", "intergovernmental organisations")  # fmt: skip

GAP = r"[\s\-_/.,():\[\]]*"  # between the parts of a code
RESTRICTIONS = {
    "NC": r"nc(?![a-z])|nc(?=nd|sa)|(?:for )?non[ -]?commercial(?:ly)?(?: use| purposes)?|no commercial(?: use)?"
    r"|not (?:used )?for commercial (?:use|purposes)",
    "SA": r"sa(?![a-z])|sa(?=nc)|share[ -]?alike",
    "ND": r"nd(?![a-z])|nd(?=nc)|no[ -]?(?:derivs?|derivatives?)(?: works?)?(?![a-z])|no modifications?",
}
PART = "|".join(["by(?![a-z])|by(?=nc|nd|sa)|attribution", *RESTRICTIONS.values()])
VERSION = r"(?:version |ver\.? ?|v\.? ?)?(?P<{0}>[1-4](?:\.\d)?)(?![\d.]*\d)"
PORT = "|".join(map(re.escape, sorted([*PORTS, *PLACES], key=len, reverse=True)))
# words around the name of a licence; none may negate, limit, except, set a condition or speak of another time: such
# words are understood in whole sentences alone, which are in `license_sentences.py`
STATEMENT = """
a an and are article articles at available conditions deed details distributed dedication freely full generic
international is it its licence licences license licensed licenses made of paper permits published see terms the this
under universal unported visit waiver which work
"""
WORDS = frozenset(STATEMENT.split())
DATA_WAIVER = re.compile(
    r"(?:^|(?<=[.;,\s]))the (?:creative commons |cc0? ?)+(?:zero )?(?:public domain dedication )?waiver"
    r"(?: \([^()\s]*\))? applies to the data(?: made available in this article)?"
    r"(?:,? unless otherwise stated)?(?: in a credit line to the data)?"
)
TOKEN = re.compile(
    rf"(?P<link>(?<![\w.@/-])(?:https?:)?(?://)?(?:www\.)?creativecommons\.org[^\s()<>\[\]\"',;]*)"
    r"|(?P<holder>(?:copyright:? ?)?(?:©|\(c\)|copyright):? ?(?:\d{4},? )?(?:by )?(?:the )?author(?:s|\(s\))?(?![a-z])"
    r"(?:,? \d{4}(?!\d))?)"
    rf"|(?P<zero>(?<![a-z])(?:cc|creative ?commons){GAP}(?:cc{GAP})?(?:0|zero)(?![a-z\d]|\.\d)"
    rf"(?:{GAP}{VERSION.format('zero_version')})?)"
    rf"|(?P<code>(?<![a-z])(?P<kind>creative ?commons{GAP}cc|creative ?commons|cc){GAP}(?P<parts>(?:(?:{PART}){GAP})+)"
    rf"(?:{VERSION.format('version')}(?:{GAP}(?P<port>{PORT})(?![a-z]))?)?)"
    r"|(?P<public>in(?:to)? the public domain|public domain (?:mark|dedication))"
    rf"|(?P<more>(?<![a-z])(?:{'|'.join(RESTRICTIONS.values())}))"
    r"|(?P<title>attribution(?![a-z]))"
    r"|(?P<fine>creative commons|cc(?![a-z\d])|open[ -]access|public licen[cs]e|legal code"
    r"|igo(?![a-z])|(?:version |v\.? ?)?[1-4]\.[015](?![\d.]*\d))"
    r"|(?P<word>[a-z]+)"
    r"|(?P<gap>[\s\-_/.,():;\[\]\"'&]+)"
)  # fmt: skip
LINK = re.compile(
    r"(?:https?:)?(?://)?(?:www\.)?creativecommons\.org(?::\d{1,5})?/"
    r"(?:licen[cs]es/(?P<parts>[a-z]{2}(?:-[a-z]{2}){0,2})|publicdomain/(?P<free>zero|mark))"
    rf"(?:/(?P<version>\d\.\d)(?:/(?P<port>{'|'.join(PORTS)}))?)?"
    r"(?:/(?:legalcode|deed)(?:[.-][a-z_-]{2,8})?(?:\.txt|\.html)?)?/?(?:\?ref=[\w-]+)?",
)
