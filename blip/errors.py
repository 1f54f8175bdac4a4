"""The root of the errors that a user can mend, its two most common kinds, and text from outside in messages."""

import difflib
import os
import re
import sys
from collections.abc import Iterable
from functools import cache
from typing import Any


class BlipError(Exception):
    """What is wrong, in which file, record or option, and what to do. Commands print it without a traceback.

    Every other exception that reaches a command is a defect of the package and is shown with its traceback.
    """

    def __reduce__(self) -> tuple:
        # a subclass may make its message of several values: a copy in another process is made without calling it
        return _copy_of, (type(self), self.args, self.__dict__)


def _copy_of(kind: type[BlipError], args: tuple, state: dict[str, Any]) -> BlipError:
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(state)
    return error


class InputError(BlipError, ValueError):
    """A value, an option or the content of a file that cannot be used."""


class MissingFile(BlipError, FileNotFoundError):
    """A file or folder that does not exist."""


def did_you_mean(name: object, known: Iterable[object], count: int = 3, *, cutoff: float = 0.0) -> str:
    """The nearest names for one that is not known: "did you mean 'vqa', 'nlvr' or 'caption'?"; "" where none is near.

    Args:
        known: the names that there are.
        count: of them at most.
        cutoff: similarity that a name needs, from 0 to 1.

    Example:
        >>> did_you_mean("vqq", ["vqa", "nlvr"], 1)
        "did you mean 'vqa'?"
    """
    near = difflib.get_close_matches(str(name), sorted(map(str, known)), n=count, cutoff=cutoff)
    if not near:
        return ""
    *most, last = map(repr, near)
    return f"did you mean {', '.join(most)} or {last}?" if most else f"did you mean {last}?"


def note(text: str) -> None:
    """Prints lines on standard error; of several processes of one run, the first alone prints them."""
    if os.environ.get("RANK", "0") == "0":
        print(printable(text), file=sys.stderr, flush=True)


# ---- text that UTF-8 cannot hold, or that changes how the text round it is shown -------------------------------------

# control characters, separators of lines, changes of the direction of writing, lone surrogates
UNSHOWN = "\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff"


def printable(text: object) -> str:
    """A text as a terminal or a log shows it and never obeys it; line ends and tabs stay. See `visible`."""
    return visible(str(text), keep="\n\t")


def visible(text: str, keep: str = "") -> str:
    r"""Text in which characters that cannot be shown, or that change how others are shown, are `\x00` or `\ud800`.

    The text can be restored: backslashes before such a form, and before what only reads like one, are doubled.

    Args:
        keep: control characters that stay as they are.
    """
    return _pattern(keep).sub(_shown, text)


@cache
def _pattern(keep: str) -> re.Pattern[str]:
    # each run of backslashes is matched from its beginning, and at once, so that the time grows with the length alone
    unshown = f"(?![{keep}])[{UNSHOWN}]" if keep else f"[{UNSHOWN}]"
    return re.compile(rf"(?<!\\)(?:(\\*+)({unshown})|(\\++)(?=x[0-9a-f]{{2}}|u[0-9a-f]{{4}}))")


def _shown(found: re.Match[str]) -> str:
    before, character, literal = found.groups()
    if literal:
        return literal * 2
    code = ord(character)
    return before * 2 + (f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}")
