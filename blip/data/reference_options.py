"""The options of references, which stand behind #: KEY=VALUE, several of them joined by &.

An option that is misspelt, stands twice, is empty or out of its range would otherwise choose other pictures than the
person meant. Each error says which option it is, and what it may be.
"""

import math
import re
from collections.abc import Mapping

from blip.errors import InputError, did_you_mean

LONGEST = 40  # characters of what was written that an error repeats
NUMBER = re.compile(r"([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,3})?")


def options_of(text: str, known: Mapping[str, str], of: str) -> dict[str, str]:
    """The options of a reference as they are written.

    Args:
        text: what stands behind #.
        known: the options that there are, and how each of them is written, such as {"slices": "slices=N"}.
        of: what they are of, for errors: "a video".

    Raises:
        InputError: there is none, an unknown one, or one twice.
    """
    if not text.strip():
        raise InputError(f"nothing stands behind #: there can be {_listed(known)}")
    options: dict[str, str] = {}
    for part in text.strip().split("&"):
        key, _, value = part.partition("=")
        if key not in known:
            meant = did_you_mean(key, known, 1, cutoff=0.6)
            raise InputError(f"{_short(key)} is no option of {of}{' (' + meant + ')' if meant else ''}: there can be "
                             f"{_listed(known)}")  # fmt: skip
        if key in options:
            raise InputError(f"{key} stands twice, as {_short(options[key])} and {_short(value)}: leave one out")
        options[key] = value
    return options


def whole_number(key: str, value: str, least: int, most: int) -> int:
    """A number of digits alone; InputError for anything else, and below `least` or above `most`."""
    digits = value.lstrip("0") or value[:1]
    if not (value.isascii() and value.isdigit()) or len(digits) > 18 or not least <= int(digits) <= most:
        raise InputError(f"{key} is {_short(value)}; it has to be a whole number from {least} to {most:,}")
    return int(digits)


def number(key: str, value: str, least: float, most: float, *, unit: str) -> float:
    """A number that may have a point; InputError as in `whole_number`."""
    found = float(value) if NUMBER.fullmatch(value) else math.nan
    if not least <= found <= most:
        raise InputError(f"{key} is {_short(value)}; it has to be a number from {least:g} to {most:g}, {unit}")
    return found


def one_of(key: str, value: str, choices: tuple[str, ...]) -> str:
    """One of `choices`; InputError for anything else."""
    if value not in choices:
        raise InputError(f"{key} is {_short(value)}; it can be {', '.join(choices)}")
    return value


def _listed(known: Mapping[str, str]) -> str:
    return ", ".join(known.values())


def _short(text: str) -> str:
    return repr(text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}...")
