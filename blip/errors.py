"""The root of the errors that a user can mend, and its two most common kinds."""

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


def printable(text: object) -> str:
    """A text in a form that a terminal, a page or a log shows and never obeys.

    Control characters, marks that turn the direction of writing, and bytes of a file name that are not UTF-8 become
    escapes, such as `\\x1b`. Line ends and tabs stay.
    """
    return "".join(c if c == "\n" or c == "\t" or c.isprintable() else _escape(c) for c in str(text))


def _escape(character: str) -> str:
    number = ord(character)
    if 0xDC80 <= number <= 0xDCFF:  # `surrogateescape`: a byte that is not UTF-8
        number -= 0xDC00
    return f"\\x{number:02x}" if number < 256 else f"\\u{number:04x}" if number < 65536 else f"\\U{number:08x}"
