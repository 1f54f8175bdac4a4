"""What is wrong with a value of `--set`, in words: above all with brackets and quotation marks, which shells read."""

import re
import shlex
from collections.abc import Sequence

TYPOGRAPHIC = "\u2018\u2019\u201a\u201c\u201d\u201e\u2032\u2033\u00ab\u00bb"  # quotation marks of texts, not of shells
QUOTED = "a value with blanks, brackets or braces stands in quotation marks"


def quoted(key: str, value: str) -> str:
    """An override as it is typed in any shell: --set 'train_file=[captions.json]'.

    Example:
        >>> quoted("train_file", "[captions.json]")
        "--set 'train_file=[captions.json]'"
    """
    return f"--set {shlex.quote(f'{key}={value}')}"


def advice(override: str) -> str:
    """What to do about an override that cannot be read, "" where nothing about it is known.

    Args:
        override: `key=value`, as it arrived from the shell.
    """
    key, _, value = override.partition("=")
    if any(mark in override for mark in TYPOGRAPHIC):
        return f"it has typographic quotation marks: type plain ones, such as {quoted(plain(key), plain(value))}"
    if key[:1] in "'\"" or "\\" in key:
        return f"the quotation marks arrived as part of the name: type {quoted(plain(key), plain(value))}"
    if unbalanced(value):
        return f"{QUOTED}, since shells divide words at blanks: {quoted(key, closed(value))}"
    return ""


def list_advice(key: str, value: object, *, on_command_line: bool) -> str:
    """How a list is written that was given as one value."""
    inside = plain(str(value)).strip("[] ")
    return (
        f"it takes a list: {quoted(key, f'[{inside}]')}" if on_command_line else f"it takes a list: {key}: [{inside}]"
    )


def stray_words(words: Sequence[str], overrides: Sequence[str]) -> str:
    """The message about words of a command line that belong to no option.

    Args:
        words: these words, in their order.
        overrides: the values of `--set`; one that has an open bracket is the likely origin of the words.
    """
    open_ones = [one for one in overrides if unbalanced(one)]
    if not open_ones:
        return f"{words[0]!r} belongs to no option; {QUOTED}: --set 'train_file=[a.json, b.json]'"
    whole = " ".join([open_ones[-1], *words])
    key, _, value = whole.partition("=")
    return f"the shell divided a value at its blanks, and {words[0]!r} belongs to no option: type {quoted(key, value)}"


def plain(text: str) -> str:
    """Without quotation marks of any kind and without backslashes before brackets."""
    return re.sub(rf"\\(?=[][{{}}])|['\"{TYPOGRAPHIC}]", "", text)


def unbalanced(text: str) -> bool:
    """Whether brackets or braces stay open."""
    return text.count("[") != text.count("]") or text.count("{") != text.count("}")


def closed(text: str) -> str:
    """The text with its open brackets closed."""
    return text + "]" * (text.count("[") - text.count("]")) + "}" * (text.count("{") - text.count("}"))
