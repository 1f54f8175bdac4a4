"""Licences from codes, links and words; a restriction is never lost."""

import pytest

from blip.pubmed.licenses import FAMILIES, license_name, short_license


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
