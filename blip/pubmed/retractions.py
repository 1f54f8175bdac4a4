"""Marks of retraction in metadata and lines: what is not understood counts as retracted."""

import re
import unicodedata
from collections.abc import Mapping
from typing import Any

NO, YES = ("false", "no", "0"), ("true", "yes", "1")
# in the kinds of articles and of their relations
MARK = re.compile(r"retract|withdr[ae]w|remov(?:al|ed)", re.IGNORECASE)
# of titles, without signs before the first letter. "Retraction pockets of the ear", "Withdrawal of ventilation" and
# "Removal of stents" are studies: only "retraction" counts before "of", the others count before a colon or a dash
NOTICE = r"(?:notice|note|notification|statement|announcement|letter)"
# of whom, or beside what else: "Publisher's retraction", "Correction and retraction", "Editor's note: retraction of"
BEFORE = (
    r"(?:(?:editorial|partial|authors?|publishers?|editors?|duplicate|journal)(?:['\u2019]s?)?(?:[\s-]+initiated)?"
    r"|(?:correction|corrigendum|erratum|expression of concern)\s+and|(?:editor|publisher)['\u2019]s note:)"
)
WHO = r"by\s+(?:the\s+)?(?:authors?|editors?|publisher)"
AFTER = r"\s*(?::|[\u2012-\u2015]|\s-\s|\.\s|$)"
TITLE = re.compile(
    r"retracted\b"
    r"|(?-i:WITHDRAWN\b|REMOVED\b)"
    rf"|(?:withdrawn|removed)(?:\s+(?:article|paper|publication|{WHO}))?(?:{AFTER}|\s*[\])])"
    rf"|(?:{BEFORE}[\s-]+)*r[e\u00e9]tract(?:at)?ion(?:\s+{NOTICE}|\s*\(in part\)|\s+(?:and|with)\s+re\w+)?"
    rf"(?:\s+(?:of|to|for|{WHO})\b|{AFTER}|\s*[\])])"
    rf"|(?:(?:temporary|permanent|article|partial)\s+)*(?:withdrawal|removal)(?:\s+{NOTICE}\b|{AFTER}|\s*[\])])"
    rf"|{NOTICE}\s+of\s+(?:[a-z]+\s+)?(?:retraction|withdrawal|removal)\b(?!\s+(?:effects|symptoms|syndrome))"
    r"|(?:article|paper|publication)\s+retraction\b"
    r"|(?:this\s+)?(?:article|paper|publication)\s+(?:(?:has\s+been|was|is)\s+)?(?:retracted|withdrawn)\b",
    re.IGNORECASE,
)
IN_BRACKETS = re.compile(
    r"[\[(]\s*(?:this\s+)?(?:(?:article|paper)\s+)?(?:has\s+been\s+)?(?:retracted|retraction)"
    r"(?:\s+(?:article|paper|notice))?"
    r"(?:[\s,.:;]+(?:in\s+)?(?:19|20)\d\d|[.:;]\s[^\[\]()]*)?"
    r"\s*[\])]|[\[(]\s*withdrawn(?:\s+(?:article|paper))?\s*[\])]\W*$"
    r"|(?:\s-|[:.\u2012-\u2015])\s*(?:retracted(?:\s+(?:article|paper))?|retraction\s+not(?:e|ice))\W*$",
    re.IGNORECASE,
)
BEFORE_TITLES = re.compile(r"^[\W_]+")


def is_retracted(record: Mapping[str, Any], key: str) -> tuple[bool, str]:
    """Whether a record is marked as retracted under a key, and why a mark that is not understood counts as one.

    No key, false, 0, "no" and the like mean that it is not; true, 1, "yes" that it is; all else is not understood.
    """
    if key not in record:
        return False, ""
    mark = record[key]
    text = mark.strip().lower() if isinstance(mark, str) else None
    if text in NO or (isinstance(mark, int | float) and mark == 0):
        return False, ""
    if text in YES or (isinstance(mark, int | float) and mark == 1):
        return True, ""
    shown = repr(mark[:40]) if isinstance(mark, str) else type(mark).__name__
    return True, f"its mark of retraction ({shown}) is not understood and counts as retracted"


def names_retraction(title: str, kinds: set[str]) -> bool:
    """Whether a title, or one of the kinds of an article and of its relations to others, speaks of a retraction."""
    text = "".join(c for c in unicodedata.normalize("NFKC", title) if unicodedata.category(c) != "Cf")
    named = TITLE.match(BEFORE_TITLES.sub("", text)) or IN_BRACKETS.search(text)
    return named is not None or any(MARK.search(kind) for kind in kinds)
