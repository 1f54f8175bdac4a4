"""Sentences and clauses that publishers add to the name of a licence, each known as a whole.

`licenses.py` reads them in one piece; a word such as "if", "may" or "not" is understood inside of them alone. Patterns
are for text in lower case with one kind of hyphens and blanks.
"""

import re

LIC = r"licen[cs]e"
CC = rf"(?:the |a )?creative commons {LIC}"
ADDRESS = r"\(?https?://(?:www\.)?{0}[\w./-]*\)?"
AUTHOR = r"authors?(?:\(s\))?"
NONCOMMERCIAL = r"non-?commercial"
MEDIUM = r"(?: in any (?:medium|media)(?: or format)?(?:,? (?:and )?for any purpose,?(?: even commercially)?)?)?"
ACT = (r"(?:re-?use|use|sharing|adaptation|re-?distribution|distribution|reproduction|copying|remixing"
       r"|transformation|building upon)")  # fmt: skip
ACTS = rf"{ACT}(?:(?:, and|, or|,| and| or|/) ?{ACT})*"
DO = r"(?:copy|share|distribute|redistribute|reproduce|remix|transform|tweak|adapt|build up ?on|use|download)"
DOES = rf"{DO}(?:(?:, and|, or|,| and| or) {DO})*"
CREDITED = r"(?:(?:properly|appropriately|duly|correctly) )?(?:cited|credited|attributed|acknowledged|referenced)"
JMIR = r"(?:the journal of medical internet research|jmir(?: [a-z]+){1,6}|interactive journal of medical research)"
WORK = (rf"(?:the )?(?:original )?(?:(?:work|article|publication)(?:, first published in {JMIR},)?"
        rf"|{AUTHOR}(?:,? and (?:the )?(?:original )?(?:publication )?"
        r"(?:source|copyright owners?(?:\(s\))?))?|it)")  # fmt: skip
GIVE = (rf"(?:you )?give appropriate credit to the original {AUTHOR} and the source,? provide a link to {CC},? and "
        r"indicate if (?:changes were made|you modified the licensed material)")  # fmt: skip
MORE_OF_CREDIT = (
    r"(?: and that the original publication in this journal is cited,? in accordance with accepted academic practice"
    r"|,? a link to the licen[cs]e is given,? and (?:an )?indication of whether changes were made(?: is given)?"
    r"|,? appropriate credit is given,? any changes made (?:are )?indicated,? and the use is non-?commercial"
    r"|,? the use is non-?commercial and no modifications or adaptations are made"
    r"|,? (?:and )?(?:is )?not used for commercial purposes)?"
)
PROVIDED = rf"(?:,? (?:provided|as long as)(?: that)? (?:{GIVE}|{WORK} (?:is|are) {CREDITED}{MORE_OF_CREDIT}))"
TO_OTHERS = (rf"(?:others |anyone |users )?to {DOES}(?: (?:this|the) (?:work|article))?(?:,? for any purpose"
             rf"|,? for commercial use|,? {NONCOMMERCIAL}ly)?")  # fmt: skip

# on what the licence lets one do, and on its conditions, which are those of Creative Commons
GRANTS = (
    rf"(?:which|that|it|this {LIC}) (?:permits|allows) (?:an )?(?:unrestricted |any |free |immediate )?"
    rf"(?:{NONCOMMERCIAL} )?{ACTS}{MEDIUM}{PROVIDED}",
    rf"(?:which|that) (?:permits|allows) {TO_OTHERS}{MEDIUM}(?:,? and {LIC} their derivative works on different "
    rf"terms)?{PROVIDED}",
    r"which (?:permits|allows) others to remix, tweak,? and build upon the work non-?commercially,? as long as "
    r"(?:appropriate credit is given|the author is credited) and the new creations are licensed under the "
    r"identical terms",
    r"which (?:permits|allows) any use, reproduction and distribution of the work without further permission provided "
    rf"the original work is attributed as specified on the sage and open access pages?"
    rf"(?: {ADDRESS.format('(?:[a-z]+[.])?sagepub[.]com')})?",
    rf"(?:the )?{ACTS} in other forums is permitted{PROVIDED}",
    rf"no {ACTS} is permitted which does not comply with these terms",
    r"free of all copyright, and may be freely reproduced, distributed, transmitted, modified, built upon, or "
    r"otherwise used by anyone for any lawful purpose",
    r"for attribution, the original author\(s\), title, publication source \(peerj\) and either doi or url of the "
    r"article must be cited",
    rf"the complete bibliographic information, a link to the original publication on "
    rf"{ADDRESS.format('(?:[a-z]+[.])?jmir[.]org')},? as well as this copyright and {LIC} information must be included",
)
# on material of others, which the licence does not claim to cover
OF_OTHERS = (
    r"(?:the )?images or other third[ -]party material in this article are included in the (?:article'?s )?creative "
    rf"commons {LIC},? unless indicated otherwise in (?:a|the) credit line(?: to the material)?",
    rf"if (?:the )?material is not included (?:in|under) the (?:article'?s )?creative commons {LIC}"
    r"(?: and your intended use is not permitted by statutory regulation or exceeds the permitted use)?,? "
    rf"(?:you|users) will need to obtain permission (?:directly )?from the (?:copyright|{LIC}) holder"
    r"(?: to reproduce the material)?",
)
# on where the terms are, who published, and what takes nothing back
OF_PLACES = (
    rf"to view a copy of (?:this|the) {LIC},? (?:please )?(?:visit|see)",
    rf"see (?:the )?{LIC} (?:for|at)(?: details)?",
    r"(?:distributed |published |licensed |made available )?in accordance with(?: the terms of)?",
    r"(?:this article is )?published (?:under licen[cs]e to|by) (?:biomed central|bmj|the royal society|elsevier|mdpi|"
    r"oxford university press|john wiley & sons|springer nature|plos|frontiers)(?:,? (?:ltd|inc|llc|b\.v))?",
    r"licensee (?:mdpi,? basel,? switzerland|biomed central(?: ltd)?)",
    r"the terms on which this article has been published allow the posting of the accepted manuscript in a repository "
    r"by the author\(s\) or with their consent",
    r"re-?use permitted under|it is free",
    r"this work is published and licensed by dove medical press limited",
    rf"the full terms of this {LIC} are available at {ADDRESS.format('dovepress[.]com/terms')}(?: and incorporate)?",
    r"by accessing the work you hereby accept the terms",
)
# of the licences without commercial use or changed versions; where they stand they restrict
NC_SENTENCES = (
    r"non-?commercial uses of the work are permitted without any further permission from dove medical press limited, "
    r"provided the work is properly attributed",
    r"for permission for commercial use of this work, please see paragraphs 4\.2 and 5 of our terms"
    rf"(?: {ADDRESS.format('dovepress[.]com/terms')})?",
    r"no commercial re-?use(?:\. see rights and permissions)?",
    r"for (?:commercial )?re-?use,? please contact (?:the publisher|[a-z.]+@(?:oup|oupjournals)\.(?:com|org))"
    r"(?: for reprints and translation rights for reprints)?",
    r"all other permissions can be obtained through our rightslink service via the permissions link on the article "
    r"page on our site ?- ?for further information please contact journals\.permissions@oup\.com",
)
ND_SENTENCES = (
    rf"you do not have permission under this {LIC} to share adapted material derived from this article or parts of it",
)
NC_ND_SENTENCES = (
    r"where it is permissible to download and share the work provided it is properly cited\. the work cannot be "
    r"changed in any way or used commercially without permission from the journal",
)


def _any_of(name: str, sentences: tuple[str, ...]) -> str:
    return f"(?P<{name}>{'|'.join(sentences)})"


SENTENCE = re.compile(
    r"(?<![a-z\d-])(?:"
    + "|".join([
        _any_of("nc_nd", NC_ND_SENTENCES), _any_of("nd", ND_SENTENCES), _any_of("nc", NC_SENTENCES),
        _any_of("plain", (*GRANTS, *OF_OTHERS, *OF_PLACES)),
    ])
    + r")(?![a-z\d-])"
)  # fmt: skip
