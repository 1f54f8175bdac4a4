"""What a folder of shards holds once each: the different images of some records, and their items of several pictures.

An image that stands in several items is stored in each of them, since a sample of a stream is a whole item.
"""

import os
from array import array
from collections.abc import Iterator, Sequence

import numpy as np

from blip.data.compact import TextLists, Texts
from blip.data.sets.captions import Captioned
from blip.data.sets.questions import Question
from blip.data.sets.statements import Statement
from blip.data.sources import Opened
from blip.hashing import stable_hash

Record = Captioned | Question | Statement


class Items:
    """The different items of some records, in the order of the records, and what these give each of them.

    An item is one image, or all pictures of a record of several; a statement about two images has two items.
    """

    def __init__(self, records: Iterator[Opened]) -> None:
        self.paths, self.given = TextLists(), TextLists()  # of its pictures: in full, and as in the annotations
        self.ids, self.sources = Texts(), Texts()  # of the first record; "": none
        self.whole = bytearray()  # 1 for drawings of three boxes, which are told by their size
        self._numbers: dict[int, int] = {}  # hash of the paths -> number of the item
        self._captions, owners = Texts(), array("q")
        for opened in records:
            record = opened.record()
            for given in given_items(record):
                number = self._add(opened, given, record)
            if isinstance(record, Captioned):
                for caption in record.captions:
                    self._captions.append(caption)
                    owners.append(number)
        self._of_item = np.argsort(np.asarray(owners, np.int64), kind="stable")
        self._ends = np.bincount(np.asarray(owners, np.int64), minlength=len(self)).cumsum()
        stems = {stable_hash(_stem(self.given[number][0])) for number in range(len(self))}
        self.stems_differ = len(stems) == len(self)

    def _add(self, opened: Opened, given: list[str], record: Record) -> int:
        paths = full_paths(opened, given)
        number = self._numbers.setdefault(stable_hash(*paths), len(self.paths))
        if number == len(self.paths):
            self.paths.append(paths)
            self.given.append(given)
            self.ids.append(str(getattr(record, "image_id", None) or ""))
            self.sources.append(getattr(record, "source", ""))
            self.whole.append(isinstance(record, Statement) and isinstance(record.images, str))
        return number

    def __len__(self) -> int:
        return len(self.paths)

    def number(self, paths: Sequence[str]) -> int:
        return self._numbers[stable_hash(*paths)]

    def captions(self, number: int) -> list[str]:
        first = int(self._ends[number - 1]) if number else 0
        return [self._captions[int(place)] for place in self._of_item[first : int(self._ends[number])]]

    def name(self, number: int) -> str:
        """What identifies the item where its record has no `image_id`: the name of its first file, if no other has the
        same."""
        given = self.given[number]
        return _stem(given[0]) if self.stems_differ else "|".join(given)


def given_items(record: Record) -> list[list[str]]:
    """The items of a record: of each, the paths of its pictures as they stand in the annotations."""
    return [[path] for path in record.image_paths] if isinstance(record, Statement) else [record.image_paths]


def full_paths(opened: Opened, given: Sequence[str]) -> list[str]:
    return [os.path.normpath(os.path.join(opened.file.root, path)) for path in given]


def _stem(path: str) -> str:
    return os.path.splitext(os.path.basename(path))[0]
