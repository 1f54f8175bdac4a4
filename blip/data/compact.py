"""Lists of strings in a few flat buffers, without an object for each string.

Forked workers share the pages of the buffers. Objects would be copied, since reading one changes its reference count.
"""

from array import array
from collections.abc import Iterable, Sequence


class Texts:
    """A list of strings of any characters: their UTF-8 bytes, and where each one ends."""

    def __init__(self) -> None:
        self.bytes = bytearray()
        self.ends = array("q")

    def append(self, text: str) -> None:
        self.bytes += text.encode("utf-8", "surrogatepass")  # names of files may be no UTF-8: every string comes back
        self.ends.append(len(self.bytes))

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> str:
        start = self.ends[index - 1] if index else 0
        return self.bytes[start : self.ends[index]].decode("utf-8", "surrogatepass")

    @property
    def nbytes(self) -> int:
        return len(self.bytes) + len(self.ends) * self.ends.itemsize


class TextLists:
    """A list of lists of strings."""

    def __init__(self) -> None:
        self.texts = Texts()
        self.ends = array("q")  # of each list: where it ends in `texts`

    def append(self, texts: list[str]) -> None:
        for text in texts:
            self.texts.append(text)
        self.ends.append(len(self.texts))

    def append_late(self, texts: Sequence[str], before: int) -> None:
        """Adds a list behind `before` others, of which all are left out as long as all are empty."""
        if texts and not self.ends:
            self.ends.extend([0] * before)
        if texts or self.ends:
            self.append(list(texts))

    def __len__(self) -> int:
        return len(self.ends)

    def span(self, index: int) -> tuple[int, int]:
        """Where list `index` starts and ends in `texts`."""
        return (self.ends[index - 1] if index else 0), self.ends[index]

    def __getitem__(self, index: int) -> list[str]:
        return [self.texts[i] for i in range(*self.span(index))]

    @property
    def nbytes(self) -> int:
        return self.texts.nbytes + len(self.ends) * self.ends.itemsize


class Labels:
    """A list of strings with few different values, such as the types of answers."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.numbers = array("i")
        self._known: dict[str, int] = {}

    def append(self, name: str) -> None:
        number = self._known.setdefault(name, len(self.names))
        if number == len(self.names):
            self.names.append(name)
        self.numbers.append(number)

    def extend(self, names: Iterable[str]) -> None:
        """Adds several."""
        for name in names:
            self.append(name)

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> str:
        return self.names[self.numbers[index]]

    @property
    def nbytes(self) -> int:
        return len(self.numbers) * self.numbers.itemsize
