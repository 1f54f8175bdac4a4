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
    "NC": r"nc(?![a-z])|nc(?=nd|sa)|non[ -]?commercial(?:ly)?|no commercial(?: use)?"
    r"|not for commercial (?:use|purposes)",
    "SA": r"sa(?![a-z])|sa(?=nc)|share[ -]?alike",
    "ND": r"nd(?![a-z])|nd(?=nc)|no[ -]?(?:derivs?|derivatives?)(?: works?)?(?![a-z])|no modifications?",
}
PART = "|".join(["by(?![a-z])|by(?=nc|nd|sa)|attribution", *RESTRICTIONS.values()])
VERSION = r"(?:version |ver\.? ?|v\.? ?)?(?P<{0}>[1-4](?:\.\d)?)(?![\d.]*\d)"
PORT = "|".join(map(re.escape, sorted([*PORTS, *PLACES], key=len, reverse=True)))
# words of licence statements that take nothing back; none of them may negate, limit or except
STATEMENT = """
a access adapt adaptation allows an and any anyone appropriate are article articles as at attribution author authors
available be built by can changes cited conditions copy credit credited credits dedication deed details
distribute distributed distribution everyone for format found free freely full generic give given here if in including
indicate international is it its lawful legal licence licences license licensed licenses link long made may medium
modified modify of open or original otherwise paper permit permits permitting properly provide provided public
publication published purpose redistribute redistribution remix reproduce reproduced reproduction s see share sharing
source terms that the these this to transform transmitted under universal unported unrestricted upon use used
users view visit waiver were which with work works you
"""
WORDS = frozenset(STATEMENT.split())
DATA_WAIVER = re.compile(
    r"(?:^|(?<=[.;,\s]))the (?:creative commons |cc0? ?)+(?:zero )?(?:public domain dedication )?waiver"
    r"(?: \([^()\s]*\))? applies to the data(?: made available in this article)?"
    r"(?:,? unless otherwise stated)?(?: in a credit line to the data)?"
)
# sentences that publishers add to an open licence: on material of others, and on what its terms say anyway
KNOWN_SENTENCES = re.compile(
    r"the images or other third party material in this article are included in the article'?s creative commons "
    r"licen[cs]e,? unless indicated otherwise in a credit line to the material\.?"
    r"|if (?:the )?material is not included (?:in|under) the (?:article'?s )?creative commons licen[cs]e"
    r"(?: and your intended use is not permitted by statutory regulation or exceeds the permitted use)?,? "
    r"(?:you|users) will need to obtain permission (?:directly )?from the (?:copyright|licen[cs]e) holder"
    r"(?: to reproduce the material)?\.?"
    r"|no use, distribution or reproduction is permitted which does not comply with these terms\.?"
    r"|free of all copyright,|even commercially"
)
TOKEN = re.compile(
    rf"(?P<link>(?<![\w.@/-])(?:https?:)?(?://)?(?:www\.)?creativecommons\.org[^\s()<>\[\]\"',;]*)"
    r"|(?P<holder>(?:copyright:? ?)?(?:©|\(c\)|copyright):? ?(?:\d{4},? )?(?:the )?author(?:s|\(s\))?(?![a-z])"
    r"(?:,? \d{4}(?!\d))?)"
    rf"|(?P<zero>(?<![a-z])(?:cc|creative ?commons){GAP}(?:cc{GAP})?(?:0|zero)(?![a-z\d]|\.\d)"
    rf"(?:{GAP}{VERSION.format('zero_version')})?)"
    rf"|(?P<code>(?<![a-z])(?P<kind>creative ?commons{GAP}cc|creative ?commons|cc){GAP}(?P<parts>(?:(?:{PART}){GAP})+)"
    rf"(?:{VERSION.format('version')}(?:{GAP}(?P<port>{PORT})(?![a-z]))?)?)"
    r"|(?P<public>in(?:to)? the public domain|public domain (?:mark|dedication))"
    rf"|(?P<more>(?<![a-z])(?:{'|'.join(RESTRICTIONS.values())}))"
    r"|(?P<fine>creative commons|legal code|igo(?![a-z])|(?:version |v\.? ?)?[1-4]\.[015](?![\d.]*\d))"
    r"|(?P<word>[a-z]+)"
    r"|(?P<gap>[\s\-_/.,():;\[\]\"'&]+)"
)  # fmt: skip
LINK = re.compile(
    r"(?:https?:)?(?://)?(?:www\.)?creativecommons\.org(?::\d{1,5})?/"
    r"(?:licen[cs]es/(?P<parts>[a-z]{2}(?:-[a-z]{2}){0,2})|publicdomain/(?P<free>zero|mark))"
    rf"(?:/(?P<version>\d\.\d)(?:/(?P<port>{'|'.join(PORTS)}))?)?"
    r"(?:/(?:legalcode|deed)(?:[.-][a-z_-]{2,8})?(?:\.txt|\.html)?)?/?(?:\?ref=[\w-]+)?",
)
# in an article whose address names an open licence, its words may not have these beside what is known
LIMITS = re.compile(
    r"\b(?:reserved|not|no|non|nor|neither|never|only|solely|except|excluding|unless|without|prohibit\w*|forbid\w*|"
    r"permission|restrict\w*|limited|personal|private|education\w*|embargo\w*|copyrighted|commerc\w*|kommerz\w*|"
    r"comerc\w*|deriv\w*|subscri\w*|purchase\w*|nicht|pas|sans|sin|ohne)\b"
)
