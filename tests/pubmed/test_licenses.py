"""Licences from codes, links and words; a restriction is never lost, and what does not parse is not open."""

import pytest
from helpers.running import code_and_text

from blip.errors import InputError
from blip.pubmed.licenses import FAMILIES, UNKNOWN, article_license, license_name, selected_families, short_license
from blip.pubmed.retractions import names_retraction
from blip.pubmed.rules import BuildError, Rules


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("https://creativecommons.org/licenses/by-nc-sa/3.0/", "CC-BY-NC-SA-3.0"),
        ("http://creativecommons.org/publicdomain/zero/1.0/", "CC0-1.0"),
        ("Creative Commons Attribution NonCommercial License. The Creative Commons Public Domain Dedication waiver "
         "applies to the data", "CC-BY-NC"),
        ("CC BY-NC 4.0; the CC0 waiver applies to the data", "CC-BY-NC-4.0"),
        ("This work is not in the public domain. All rights reserved", ""),
        ("CC BY\u2010NC 4.0", "CC-BY-NC-4.0"),
        ("CC BY\u2013NC\u2013ND", "CC-BY-NC-ND"),
        ("CC-BY_NC", "CC-BY-NC"),
        ("CC BY/NC", "CC-BY-NC"),
        ("Creative Commons Attribution 4.0 Non-Commercial", "CC-BY-NC"),
        ("Creative Commons Non-Commercial Attribution licence", "CC-BY-NC"),
        ("Creative Commons Attribution License, which permits non-commercial use. It is free.", "CC-BY-NC"),
        ("Creative Commons Attribution License.", "CC-BY"),
        ("This article is in the public domain.", "CC0"),
        ("\u00a9 2010 Elsevier. All rights reserved.", ""),
    ],
)  # fmt: skip
def test_words(text: str, name: str) -> None:
    assert license_name(text) == name


@pytest.mark.parametrize(
    ("code", "family"),
    [("CC BY", "CC-BY"), ("cc by-nc 4.0", "CC-BY-NC"), ("CC BY 3.0 IGO", "CC-BY"), ("CC0 1.0 Universal", "CC0"),
     ("CC-BY-ND-NC", "CC-BY-NC-ND"), ("CC BY-NC-SA", "CC-BY-NC-SA"), ("TDM", "TDM"), ("NO-CC CODE", "NO-CC-CODE"),
     ("", ""), ("CC-BY-4.0", "CC-BY"), ("CC0-1.0", "CC0")],
)  # fmt: skip
def test_codes(code: str, family: str) -> None:
    assert short_license(code) == family
    assert (family in FAMILIES) == family.startswith("CC")


# ---- a table of spellings --------------------------------------------------------------------------------------------

SPELLINGS = {
    "CC-BY": [
        "CC BY", "CC-BY", "cc by", "CCBY", "Cc-By", "CC_BY", "CC BY 4.0", "CC-BY-4.0", "CC BY 3.0 US", "CC BY 2.0 UK",
        "CC BY 3.0 IGO", "CC BY 3.0 Germany", "CC BY v4.0", "CC BY 4", "(CC BY)", "(CC BY 4.0)", "CC  BY", " CC BY ",
        "CC\u00a0BY", "CC\u2011BY", "CC\u2010BY\u20104.0", "CC\u2212BY", "\uff23\uff23 \uff22\uff39",
        "CC BY license", "CC BY licence", "CC-BY 4.0 International", "Creative Commons Attribution",
        "Creative Commons Attribution License", "Creative Commons Attribution 4.0 International Public License",
        "Creative Commons: Attribution", "Creative Commons Attribution (CC BY) license",
        "the Creative Commons Attribution 3.0 Unported License", "Attribution 4.0 International (CC BY 4.0)",
        "https://creativecommons.org/licenses/by/4.0/", "http://creativecommons.org/licenses/by/4.0",
        "http://creativecommons.org/licenses/by/2.0/uk/", "https://creativecommons.org/licenses/by/3.0/igo/",
        "https://www.creativecommons.org/licenses/by/4.0/", "https://creativecommons.org:443/licenses/by/4.0/",
        "creativecommons.org/licenses/by/3.0", "//creativecommons.org/licenses/by/3.0/",
        "https://creativecommons.org/licenses/by/4.0/legalcode", "https://creativecommons.org/licenses/by/4.0/deed.en",
        "HTTPS://CREATIVECOMMONS.ORG/LICENSES/BY/4.0/", "https://creativecommons.org/licenses/by/4.0/?ref=chooser-v1",
        "http://creativecommons.org/licenses/by/3.0/us/deed.en_US",
        "This is an open access article distributed under the terms of the Creative Commons Attribution License, which "
        "permits unrestricted use, distribution, and reproduction in any medium, provided the original work is "
        "properly cited.",
        "This article is licensed under a Creative Commons Attribution 4.0 International License, which permits use, "
        "sharing, adaptation, distribution and reproduction in any medium or format, as long as you give appropriate "
        "credit to the original author(s) and the source, provide a link to the Creative Commons licence, and indicate "
        "if changes were made. The images or other third party material in this article are included in the "
        "article\u2019s Creative Commons licence, unless indicated otherwise in a credit line to the material. If "
        "material is not included in the article's Creative Commons licence and your intended use is not permitted by "
        "statutory regulation or exceeds the permitted use, you will need to obtain permission directly from the "
        "copyright holder. To view a copy of this licence, visit http://creativecommons.org/licenses/by/4.0/.",
        "© The Author(s) 2019. This article is distributed under the terms of the Creative Commons Attribution 4.0 "
        "International License (http://creativecommons.org/licenses/by/4.0/). The Creative Commons Public Domain "
        "Dedication waiver (http://creativecommons.org/publicdomain/zero/1.0/) applies to the data made available in "
        "this article, unless otherwise stated.",
    ],
    "CC-BY-NC": [
        "CC BY-NC", "CC BY NC", "CCBYNC", "CCBY-NC", "CC BY-NonCommercial", "CC BY Non-Commercial", "CC BY (NC)",
        "CC BY [NC]", "CC BY, NC", "CC BY.NC", "CC BY\u00a0NC", "CC BY\u202fNC", "CC BY\u2003NC",
        "CC BY\u00a0-\u00a0NC",
        "CC BY\u2014NC", "CC\u2011BY\u2011NC", "CC BY\u200b-NC", "CC BY\u00ad-NC", "CC NC BY", "CC BY 4.0-NC",
        "CC BY 4.0 (non-commercial)", "CC-BY-NC-4.0", "CC BY-NC 2.5 CA", "CC BY, no commercial use",
        "CC BY, not for commercial purposes", "Creative Commons Attribution-NonCommercial 4.0 International",
        "Creative Commons Attribution Non Commercial (CC BY NC 4.0) license",
        "https://creativecommons.org/licenses/by-nc/4.0/", "http://creativecommons.org/licenses/by-nc/3.0/de",
        "Creative Commons Attribution License, for noncommercial use",
    ],
    "CC-BY-ND": ["CC BY-ND", "CCBYND", "CC BY-NoDerivs 3.0", "CC BY no derivatives", "CC BY, no modifications",
                 "Creative Commons Attribution-NoDerivatives", "https://creativecommons.org/licenses/by-nd/4.0/"],
    "CC-BY-SA": ["CC BY-SA", "CCBYSA", "CC BY ShareAlike", "Creative Commons Attribution-Share Alike 3.0",
                 "https://creativecommons.org/licenses/by-sa/3.0/"],
    "CC-BY-NC-ND": [
        "CC BY-NC-ND", "CCBYNCND", "CC BY 4.0-NC-ND", "CC BY-ND-NC", "CC BY NC/ND", "cc by-nc-nd 4.0",
        "CC BY (NC) (ND)", "Creative Commons Attribution-NonCommercial-NoDerivs License",
        "Creative Commons Attribution Non-Commercial No Derivatives", "CC BY-NC, no derivative works",
        "https://creativecommons.org/licenses/by-nc-nd/4.0/", "http://creativecommons.org/licenses/by-nd-nc/1.0/",
    ],
    "CC-BY-NC-SA": ["CC BY-NC-SA", "CCBYNCSA", "CC BY-SA-NC", "CC BY-NC-SA 3.0 IGO",
                    "https://creativecommons.org/licenses/by-nc-sa/4.0/deed.fr"],
    "CC0": [
        "CC0", "CC-0", "CC 0", "cc0 1.0", "CC0-1.0", "CC Zero", "CCZero", "CC0 1.0 Universal", "Creative Commons Zero",
        "Creative Commons CC0 public domain dedication", "CC0 1.0 Universal (CC0 1.0) Public Domain Dedication",
        "https://creativecommons.org/publicdomain/zero/1.0/",
        "http://creativecommons.org/publicdomain/zero/1.0/legalcode",
    ],
    UNKNOWN: [
        "CC BY data", "CC0 (all rights reserved)", "data (CC0); the article is copyrighted",
        "CC BY (all rights reserved)",
        "CC-BYY", "CCBYY", "CC B", "CC", "BY", "BY-NC", "CC-NC", "CC NC ND", "CC BY-ND-SA", "CC BY-XX", "CC BY+",
        "CC BY*",
        "CC BY?", "CC BY or CC BY-NC", "CC BY and CC0", "CC BY / CC0", "CC0 / CC BY-NC", "CC BY-NC or CC BY",
        "not CC BY",
        "not CC0", "CC BY except figures", "CC BY, figures excluded", "CC BY for the text", "CC BY after 12 months",
        "CC BY (personal use only)", "CC BY for educational use", "CC BY 5.0", "CC BY 4.0.1", "CC BY 3.7", "CC BY 40",
        "CC BY 4.0 US", "CC0 2.0", "CC BY-NC-ND-SA", "CC SAMPLING", "CC Sampling Plus 1.0", "CC BY-SAMPLING",
        "CC DevNations", "Creative Commons", "Creative Commons License", "Creative Commons non-commercial",
        "Creative Commons License, by the authors", "open access", "Open Access CC", "public domain", "MIT", "GPL-3.0",
        "other", "unknown", "none", "n/a", "?", "-", "Elsevier user license", "CC BY with restrictions",
        "\u0421\u0421 BY", "CC \u0412Y", "CC BY \u041dC", "CC BY\x00NC", "CC BY\x1b[31m",
        "CC BY nicht kommerziell", "CC BY pas d'utilisation commerciale", "CC BY sin uso lucrativo",
        "CC BY sin fines de lucro",
        "Namensnennung - Nicht kommerziell 4.0 International", "Creative Commons Namensnennung 4.0",
        "Attribution - Pas d'Utilisation Commerciale", "Licence Creative Commons Paternit\u00e9",
        "Reconocimiento-NoComercial",
        "Creative Commons Reconocimiento 4.0", "Creative Commons Atribución", "署名-非商业性使用", "CC 表示",
        "https://creativecommons.org/licenses/", "https://creativecommons.org/licenses/nc/1.0/",
        "https://creativecommons.org/licenses/by-by/4.0/", "https://creativecommons.org/licenses/by/9.0/",
        "https://creativecommons.org/licenses/by/4.0/us/", "https://creativecommons.org/licenses/by/4.0/x/y",
        "https://creativecommons.org/licenses/by%2Dnc/4.0/", "https://creativecommons.org/licenses/sampling+/1.0/",
        "https://creativecommons.org.example.com/licenses/by/4.0/", "https://notcreativecommons.org/licenses/by/4.0/",
        "https://example.com/creativecommons.org/licenses/by/4.0/", "https://creativecommons.org@example.com/by/4.0/",
        "https://creativecommons.org/licenses/by/4.0/#nc", "https://creativecommons.org/licenses/by/4.0/ not",
        "https://creativecommons.org/licenses/by-nd-sa/4.0/", "https://creativecommons.org/about",
        "Creative Commons Attribution License (http://creativecommons.org/licenses/by-nc/4.0/)",
        "CC BY 4.0 (https://creativecommons.org/licenses/by/3.0/)", "CC BY " + "x" * 30_000, "CC BY " * 5_000,
        "This article is not in the public domain and not CC BY", "The CC0 waiver applies to the data",
    ],
}  # fmt: skip


@pytest.mark.parametrize(("text", "family"), [(t, family) for family, texts in SPELLINGS.items() for t in texts])
def test_spellings(text: str, family: str) -> None:
    assert short_license(text) == family
    name = license_name(text)
    assert name == UNKNOWN if family == UNKNOWN else name.startswith(family) and short_license(name) == family


def test_the_table_is_long_enough() -> None:
    texts = [text for several in SPELLINGS.values() for text in several]
    assert len(texts) == len(set(texts)) >= 200


@pytest.mark.parametrize("code", [None, 0, 1.5, True, ["CC BY"], {"code": "CC BY"}, b"CC BY", float("nan")])
def test_codes_of_other_types(code: object) -> None:
    assert short_license(code) == ("" if code is None else UNKNOWN)


# ---- articles --------------------------------------------------------------------------------------------------------

BY, NC, ZERO = (f"https://creativecommons.org/{path}/" for path in ("licenses/by/4.0", "licenses/by-nc/4.0",
                                                                    "publicdomain/zero/1.0"))  # fmt: skip


@pytest.mark.parametrize(
    ("links", "statement", "holder", "name"),
    [
        ([BY], "", "", "CC-BY-4.0"),
        ([BY], "", "© 2010 Nobody", "CC-BY-4.0"),
        ([BY, "", "https://doi.org/10.1/x"], "An article with words of its own.", "", UNKNOWN),
        ([BY, "", "https://doi.org/10.1/x"], "This is an open access article.", "", "CC-BY-4.0"),
        ([BY], "Creative Commons Attribution License", "", "CC-BY-4.0"),
        ([NC], "For reuse please contact the publisher.", "", "CC-BY-NC-4.0"),
        ([BY, NC], "", "", UNKNOWN),
        ([BY, ZERO], "", "", UNKNOWN),
        ([BY, ZERO], "Open Access. The Creative Commons Public Domain Dedication waiver applies to the data", "",
         "CC-BY-4.0"),
        ([BY], "Creative Commons Attribution-NonCommercial License", "", UNKNOWN),
        ([BY], "Odd words; for non-commercial use", "", UNKNOWN),
        ([BY], "Odd words: no derivatives", "", UNKNOWN),
        ([BY], "For personal use only", "", UNKNOWN),
        ([BY], "All rights reserved", "", UNKNOWN),
        ([BY], "", "© 2010 Nobody. All rights reserved.", UNKNOWN),
        ([BY], "Nicht kommerziell", "", UNKNOWN),
        ([BY], "x" * 30_000, "", UNKNOWN),
        (["https://creativecommons.org/licenses/by-xx/4.0/"], "", "", UNKNOWN),
        ([BY, "https://creativecommons.org/licenses/"], "", "", UNKNOWN),
        ([], "Creative Commons Attribution License", "", "CC-BY"),
        ([], "Odd words", "", UNKNOWN),
        ([], "", "© 2010 Elsevier. All rights reserved.", ""),
        ([], "", "", ""),
    ],
)  # fmt: skip
def test_articles(links: list[str], statement: str, holder: str, name: str) -> None:
    """The link decides, unless the words beside it restrict more."""
    assert article_license(links, statement, holder) == name


STANDARD = [  # of PLOS, BMC, Springer Nature, Frontiers, MDPI, eLife, JMIR, Wiley, Elsevier, OUP, BMJ, SAGE, PeerJ
    "This is an open-access article distributed under the terms of the Creative Commons Attribution License, which "
    "permits unrestricted use, distribution, and reproduction in any medium, provided the original author and "
    "source are credited.",
    "This article is published under license to BioMed Central Ltd. This is an Open Access article distributed "
    "under the terms of the Creative Commons Attribution License (http://creativecommons.org/licenses/by/4.0), "
    "which permits unrestricted use, distribution, and reproduction in any medium, provided the original work is "
    "properly credited. The Creative Commons Public Domain Dedication waiver "
    "(http://creativecommons.org/publicdomain/zero/1.0/) applies to the data made available in this article, unless "
    "otherwise stated.",
    "Open Access This article is distributed under the terms of the Creative Commons Attribution 4.0 International "
    "License (http://creativecommons.org/licenses/by/4.0/), which permits unrestricted use, distribution, and "
    "reproduction in any medium, provided you give appropriate credit to the original author(s) and the source, "
    "provide a link to the Creative Commons license, and indicate if changes were made.",
    "This work is licensed under a Creative Commons Attribution 4.0 International License. The images or other "
    "third party material in this article are included in the article\u2019s Creative Commons license, unless "
    "indicated otherwise in the credit line; if the material is not included under the Creative Commons license, "
    "users will need to obtain permission from the license holder to reproduce the material. To view a copy of this "
    "license, visit http://creativecommons.org/licenses/by/4.0/",
    "This is an open-access article distributed under the terms of the Creative Commons Attribution License (CC "
    "BY). The use, distribution or reproduction in other forums is permitted, provided the original author(s) and "
    "the copyright owner(s) are credited and that the original publication in this journal is cited, in accordance "
    "with accepted academic practice. No use, distribution or reproduction is permitted which does not comply with "
    "these terms.",
    "Licensee MDPI, Basel, Switzerland. This article is an open access article distributed under the terms and "
    "conditions of the Creative Commons Attribution (CC BY) license (https://creativecommons.org/licenses/by/4.0/).",
    "This article is distributed under the terms of the Creative Commons Attribution License, which permits "
    "unrestricted use and redistribution provided that the original author and source are credited.",
    "This is an open-access article distributed under the terms of the Creative Commons Attribution License "
    "(https://creativecommons.org/licenses/by/4.0/), which permits unrestricted use, distribution, and reproduction "
    "in any medium, provided the original work, first published in the Journal of Medical Internet Research, is "
    "properly cited. The complete bibliographic information, a link to the original publication on "
    "https://www.jmir.org/, as well as this copyright and license information must be included.",
    "This is an open access article under the terms of the http://creativecommons.org/licenses/by/4.0/ License, "
    "which permits use, distribution and reproduction in any medium, provided the original work is properly cited.",
    "This is an open access article under the CC BY license (http://creativecommons.org/licenses/by/4.0/).",
    "This is an Open Access article distributed under the terms of the Creative Commons Attribution License "
    "(http://creativecommons.org/licenses/by/4.0/), which permits unrestricted reuse, distribution, and "
    "reproduction in any medium, provided the original work is properly cited.",
    "This is an open access article distributed in accordance with the Creative Commons Attribution 4.0 Unported "
    "(CC BY 4.0) license, which permits others to copy, redistribute, remix, transform and build upon this work for "
    "any purpose, provided the original work is properly cited, a link to the licence is given, and indication of "
    "whether changes were made. See: https://creativecommons.org/licenses/by/4.0/.",
    "This article is distributed under the terms of the Creative Commons Attribution 4.0 License "
    "(http://www.creativecommons.org/licenses/by/4.0/) which permits any use, reproduction and distribution of the "
    "work without further permission provided the original work is attributed as specified on the SAGE and Open "
    "Access page (https://us.sagepub.com/en-us/open-access-at-sage).",
    "Published by the Royal Society under the terms of the Creative Commons Attribution License "
    "http://creativecommons.org/licenses/by/4.0/, which permits unrestricted use, provided the original author and "
    "source are credited.",
    "This is an open access article distributed under the terms of the Creative Commons Attribution License, which "
    "permits unrestricted use, distribution, reproduction and adaptation in any medium and for any purpose provided "
    "that it is properly attributed. For attribution, the original author(s), title, publication source (PeerJ) and "
    "either DOI or URL of the article must be cited.",
]
RESTRICTED = {
    "CC-BY-NC": [
        "This is an Open Access article distributed under the terms of the Creative Commons Attribution "
        "Non-Commercial License (http://creativecommons.org/licenses/by-nc/4.0/), which permits non-commercial "
        "re-use, distribution, and reproduction in any medium, provided the original work is properly cited. For "
        "commercial re-use, please contact journals.permissions@oup.com",
        "This is an open access article distributed in accordance with the Creative Commons Attribution Non "
        "Commercial (CC BY-NC 4.0) license, which permits others to distribute, remix, adapt, build upon this work "
        "non-commercially, and license their derivative works on different terms, provided the original work is "
        "properly cited, appropriate credit is given, any changes made indicated, and the use is non-commercial. "
        "See: http://creativecommons.org/licenses/by-nc/4.0/.",
        "This work is published and licensed by Dove Medical Press Limited. The full terms of this license are "
        "available at https://www.dovepress.com/terms.php and incorporate the Creative Commons Attribution \u2013 "
        "Non Commercial (unported, v3.0) License (http://creativecommons.org/licenses/by-nc/3.0/). By accessing the "
        "work you hereby accept the Terms. Non-commercial uses of the work are permitted without any further "
        "permission from Dove Medical Press Limited, provided the work is properly attributed. For permission for "
        "commercial use of this work, please see paragraphs 4.2 and 5 of our Terms "
        "(https://www.dovepress.com/terms.php).",
        "This is an open access article under the terms of the Creative Commons Attribution-NonCommercial License, "
        "which permits use, distribution and reproduction in any medium, provided the original work is properly "
        "cited and is not used for commercial purposes.",
    ],
    "CC-BY-NC-ND": [
        "This is an open access article under the terms of the Creative Commons Attribution-NonCommercial-NoDerivs "
        "License, which permits use and distribution in any medium, provided the original work is properly cited, "
        "the use is non-commercial and no modifications or adaptations are made.",
        "This is an open-access article distributed under the terms of the Creative Commons Attribution-Non "
        "Commercial-No Derivatives License 4.0 (CCBY-NC-ND), where it is permissible to download and share the work "
        "provided it is properly cited. The work cannot be changed in any way or used commercially without "
        "permission from the journal.",
    ],
}


@pytest.mark.parametrize("statement", STANDARD)
def test_standard_statements_of_open_publishers(statement: str) -> None:
    assert license_name(statement).startswith("CC-BY") and short_license(statement) == "CC-BY"
    links = [BY, ZERO] if "waiver" in statement else [BY]
    assert article_license(links, statement) == "CC-BY-4.0"
    assert article_license([NC], statement) == UNKNOWN
    assert article_license([BY], f"{statement} Figures are excluded.") == UNKNOWN


@pytest.mark.parametrize(("family", "statement"), [(f, s) for f, several in RESTRICTED.items() for s in several])
def test_standard_statements_of_restricted_licences(family: str, statement: str) -> None:
    link = f"https://creativecommons.org/licenses/{family[3:].lower()}/4.0/"
    assert short_license(statement) == family and article_license([link], statement) == f"{family}-4.0"
    assert article_license([BY], statement) == UNKNOWN


@pytest.mark.parametrize("words", [
    "CC BY n.c.", "This article cannot be reused.", "for academic use", "Elsevier user license",
    "Alle Rechte vorbehalten", "tous droits r\u00e9serv\u00e9s", "derechos reservados", "noncomm.",
    "The licence has been revoked", "\u7248\u6743\u6240\u6709", "Figures are excluded",
    "The licence applies from 2030", "Reuse requires payment of a fee", "embargo",
    "which permits non-commercial use, distribution and reproduction, provided the original work is properly cited",
    "You do not have permission under this licence to share adapted material derived from this article or parts of it",
])  # fmt: skip
def test_words_beside_an_open_address_are_all_understood(words: str) -> None:
    for link, statement in ((BY, words), (BY, f"This is an open access article. {words}"), (ZERO, words)):
        assert article_license([link], statement) == UNKNOWN


@pytest.mark.parametrize(("holder", "names"), [
    ("\xa9 2017, Kovalenko O., Chizhukova M.", True),
    ("Copyright \xa92011 Dennehy and Wang; licensee BioMed Central Ltd.", True),
    ("Copyright: \xa9 2018 Tai et al.", True), ("\xa9 The Author(s) 2019", True), ("\xa9 2020 by the authors.", True),
    ("\xa9 2020 The Authors. Published by Elsevier Ltd on behalf of the Society of X", True),
    ("\xa9Ana d'Oliveira, Jan van der Berg. Originally published in JMIR (http://www.jmir.org), 12.03.2018.", True),
    ("\xa9 Author(s) (or their employer(s)) 2020. Re-use permitted under CC BY. Published by BMJ.", True),
    ("\xa9 2012 X. This is an open access article distributed under the Creative Commons Attribution License.", True),
    ("\xa9 Author(s) 2020. Re-use permitted under CC BY-NC. No commercial re-use. See rights and permissions.", False),
    ("Tous droits r\xe9serv\xe9s", False), ("TOUS DROITS R\xc9SERV\xc9S", False),
    ("\xa9 2020 X. Alle Rechte vorbehalten", False), ("Elsevier. All rights reserved.", False),
    ("re\xadserved", False), ("all rights retained", False), ("\u7248\u6743\u6240\u6709", False),
    ("\u0412\u0441\u0435 \u043f\u0440\u0430\u0432\u0430", False), ("\xa9 2020 X, no reuse", False),
    ("The Authors, under exclusive licence to X", False),
])  # fmt: skip
def test_lines_of_copyright_are_names(holder: str, names: bool) -> None:
    assert article_license([BY], "", holder) == ("CC-BY-4.0" if names else UNKNOWN)


@pytest.mark.parametrize("text", [
    "CC BY if the authors permit", "licensed otherwise; CC BY", "may be licensed under CC BY",
    "to be published under CC BY", "used to be CC BY", "CC0 BY", "CC0 Attribution 4.0 International", "was CC BY",
    "CC BY was changed to", "The link is CC BY", "available to authors under CC BY", "CC BY provided",
    "the public can access CC BY", "CC BY for original authors",
    "not CC BY, which permits use, provided the original work is properly cited", "CC BY as long as", "CC BY \u00a7",
])  # fmt: skip
def test_conditions_and_other_times_are_not_open(text: str) -> None:
    assert license_name(text) == UNKNOWN == short_license(text)


@pytest.mark.parametrize(("kind", "open_"), [("open-access", True), ("", True), ("OpenAccess", True), ("cc-by", True),
                                             ("creativeCommonsBy", True), ("CC BY 4.0", True), ("cc-by-nc", False),
                                             ("creativeCommonsBy-nc-nd", False), ("subscription", False)])  # fmt: skip
def test_kinds_of_licences_agree(kind: str, open_: bool) -> None:
    assert article_license([BY], "", kinds=[kind]) == ("CC-BY-4.0" if open_ else UNKNOWN)


def test_a_waiver_for_data_is_no_licence_of_the_article() -> None:
    waiver = "The Creative Commons Public Domain Dedication waiver applies to the data made available in this article."
    assert article_license([ZERO], waiver) == UNKNOWN


# ---- what a user selects ---------------------------------------------------------------------------------------------


def test_selected_licences_have_known_names() -> None:
    assert selected_families(["CC-BY", "cc0", "CC BY-NC-ND 4.0", "TDM"]) == {"CC-BY", "CC0", "CC-BY-NC-ND", "TDM"}
    for name, nearest in (
        ("CC-BYY", "CC-BY?"),
        ("CC-BY-NX", "did you mean CC-BY-N"),
        ("CCO", "CC0?"),
        ("unknown", "Known are"),
    ):
        with pytest.raises(InputError, match=nearest.replace("?", r"\?")):
            selected_families(["CC0", name])
    with pytest.raises(InputError, match="''"):
        selected_families([""])


@pytest.mark.parametrize("command", [["fetch", "."], ["build", "pairs.jsonl", "--out", "dataset"]])
@pytest.mark.parametrize(("licenses", "message"), [("CC-BYY", "did you mean CC-BY?"), (",", "names no licence")])
def test_commands_refuse_unknown_licences(
    command: list[str], licenses: str, message: str, tmp_path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pairs.jsonl").write_text("{}\n")
    code, text = code_and_text("pubmed", *command, "--licenses", licenses)
    assert code == 1 and message in text and "Traceback" not in text
    assert [path.name for path in tmp_path.iterdir()] == ["pairs.jsonl"]


# ---- retractions -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mark", "rejection"),
    [(False, ""), (0, ""), (0.0, ""), ("false", ""), ("No", ""), ("0", ""),
     (True, "retracted"), (1, "retracted"), (1.0, "retracted"), ("yes", "retracted"), (" TRUE ", "retracted"),
     *((odd, "mark of retraction that is not understood") for odd in
       ([True], [], {}, {"is": False}, 2, -1, 0.5, float("nan"), None, "", "maybe", "nein", "partial"))],
)  # fmt: skip
def test_marks_that_are_not_understood_count_as_retracted(mark: object, rejection: str) -> None:
    line = {"image": "a.png", "caption": "Axial MRI of the brain.", "license": "CC-BY", "retracted": mark}
    assert Rules().rejection(line) == rejection
    assert Rules(retracted=True).rejection(line) == ""


@pytest.mark.parametrize(
    "title",
    [
        "[Retracted] x",
        "(Retracted) x",
        "Withdrawal: x",
        "WITHDRAWN x",
        "Withdrawn: x",
        "[Withdrawn] x",
        "RETRACTION",
        "Retracted: x",
        "Statement of retraction: x",
        "Notice of Retraction: x",
        "Retraction to: x",
        "Retraction of: x",
        "Retraction for X et al.",
        "Retraction Note to: x",
        "x (retracted)",
        "x [RETRACTED ARTICLE]",
        "x (withdrawn)",
        "Removal notice: x",
        "REMOVED: x",
        "Temporary removal: x",
        "Retraction\u2014x",
        "Retraction - x",
        "Editorial retraction: x",
        "Withdrawal notice to x",
        "\u200bRETRACTED: x",
        "RE\u00adTRACTED x",
        "*Retracted* x",
        "This article has been retracted: x",
        "x - Retracted article",
        "Retraction statement: x",
        "Partial retraction: x",
        "x (RETRACTED ARTICLE. See vol. 3, pg 4, 2020)",
        "x [Retracted: 2020]",
        "x (retracted in 2021)",
        "x. Retracted",
        "Correction and retraction: x",
        "Publisher\u2019s Retraction: x",
        "Author-initiated retraction: x",
        "Editor's note: retraction of x",
        "Retraction (in part): x",
        "Retraction and republication: x",
        "Retraction by the authors: x",
        "Withdrawn by the author: x",
        "Article retraction: x",
        "R\u00e9tractation : x",
    ],
)
def test_titles_of_retractions(title: str) -> None:
    assert names_retraction(title, set())


@pytest.mark.parametrize(
    "title",
    [
        "Retraction pockets of the ear",
        "Withdrawal of ventilation in intensive care",
        "Removal of ureteral stents",
        "Brain retraction",
        "Withdrawal symptoms after opioids",
        "Drugs: withdrawn",
        "Removed teeth and what became of them",
        "A note of withdrawal symptoms",
        "Rofecoxib (withdrawn) and the heart",
        "Statement of principles",
        "Muscle retraction (in tears)",
        "Clot retraction: a study",
        "Retraction by sutures of the eyelid",
        "Withdrawn medicines in Europe",
        "",
    ],
)
def test_titles_of_studies(title: str) -> None:
    assert not names_retraction(title, set())


def test_lines_of_odd_types_are_left_out() -> None:
    good = {"image": "a.png", "caption": "Axial MRI of the brain.", "license": "CC-BY"}
    assert Rules().rejection(good) == ""
    for change, why in (({"license": ["CC-BY"]}, "no open licence named"), ({"license": 1}, "no open licence named"),
                        ({"confidence": float("nan")}, "confidence"), ({"confidence": "0.9"}, "confidence"),
                        ({"confidence": True}, "confidence"), ({"caption": None}, "no caption")):  # fmt: skip
        assert Rules().rejection(good | change) == why
    assert Rules(keep_whole=False).rejection(good | {"how": "whole", "panels": 7}) == ""
    assert Rules().rejection({}) == "no caption"


@pytest.mark.parametrize("rules", [Rules(split_shares=(float("nan"),) * 3), Rules(split_shares=(2.0, -1.0, 0.0)),
                                   Rules(min_confidence=float("nan")), Rules(max_aspect=float("nan"))])  # fmt: skip
def test_rules_that_are_no_numbers(rules: Rules) -> None:
    with pytest.raises(BuildError):
        rules.check()
