"""Errors of exchanges with servers and of single articles, in texts that are safe to show and to record."""

from blip.errors import BlipError


class FetchError(BlipError):
    """A request that did not succeed, or an article that cannot be used.

    Attributes:
        lasting: another attempt would fail too.
        shared: requests for other addresses may fail too, because the server or the network is at fault.
    """

    def __init__(self, message: str, *, lasting: bool = False, shared: bool = False) -> None:
        super().__init__(shown_part(message))
        self.lasting, self.shared = lasting, shared


class Absent(FetchError):
    """The server says that nothing exists at an address (404 or 410)."""


class OddRecord(FetchError):
    """What a catalogue records of one article cannot be used."""


def shown_part(text: str, most: int = 1000) -> str:
    """The beginning of a text, with escapes for control characters and whatever cannot be written."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text[:most])
