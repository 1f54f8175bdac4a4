"""Marks of retraction in metadata and lines: what is not understood counts as retracted."""

import re
from collections.abc import Mapping
from typing import Any

NO, YES = ("false", "no", "0"), ("true", "yes", "1")
MARK = re.compile(r"retract|withdr[ae]w|removal", re.IGNORECASE)  # in the kinds of articles and of their relations
# of titles; "Retraction pockets of the ear" is a study
TITLE = re.compile(r"RETRACTED\b|WITHDRAWN\s*:|RETRACTION( NOTICE| NOTE)?( OF\b|\s*:|$)")


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
    return TITLE.match(title.upper()) is not None or any(MARK.search(kind) for kind in kinds)
