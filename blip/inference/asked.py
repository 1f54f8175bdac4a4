"""Which texts a command asks of which images: those of its command line, or those of the records themselves."""

from collections.abc import Sequence
from typing import Any

from blip.data.places import Found, find_records, is_source, items_of
from blip.data.sources import source_of
from blip.errors import InputError


def questions_of(places: Sequence[str], questions: Sequence[str], how: dict[str, Any]) -> list[Found]:
    """Every question about every image; without questions those of the records of the places, which may be none.

    `how` are options of `find_records`, whose errors apply.
    """
    if questions:
        return [Found(paths, question=question) for paths in items_of(places, **how) for question in questions]
    return [record for record in _records(places, how) if record.question]


def captions_of(places: Sequence[str], how: dict[str, Any]) -> list[tuple[list[str], str]]:
    """(paths of an item, text) of each caption, or statement about one image, of the records of the places; of those
    there may be none.

    Raises:
        InputError: a statement is about two images. Further errors as in `find_records`.
    """
    records = _records(places, how)
    if two := next((record for record in records if len(record.items) > 1), None):
        raise InputError(f"{two.place}: has {len(two.images)} images, and a text is matched with one")
    texts = [(record.images, record.captions or [record.statement]) for record in records]
    return [(images, text) for images, several in texts for text in several if text.strip()]


def _records(places: Sequence[str], how: dict[str, Any]) -> list[Found]:
    """The records of those places that have annotations."""
    sources = [place for place in places if is_source(source_of(place, **how))]
    return [record for place in sources for record in find_records(place, **how)]
