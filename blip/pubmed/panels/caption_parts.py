"""What a caption is divided into: the words of each panel, and those that all panels share."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Shared = Literal["all", "own"]


@dataclass
class Part:
    """The text of one or several panels.

    Attributes:
        span: where the label stands in the caption; (0, 0) where that is not known.
        behind: whether the label stands behind its text.
    """

    labels: list[str]
    text: str
    span: tuple[int, int] = (0, 0)
    behind: bool = False


@dataclass
class Split:
    """A caption in parts.

    Attributes:
        lead: words before the parts, which belong to all of them; the whole caption where there are no parts.
        parts: own words, in the order of the caption. A part of several labels belongs to each of these.
        style: the form of the labels; `Left:` for places.
        confidence: 0 to 1, that labels and words are right.
        whole: the original caption.
        tail: words behind the parts, which belong to all of them, such as `Scale bars, 10 \u00b5m.`
    """

    lead: str
    parts: list[Part]
    style: str = ""
    confidence: float = 0.0
    whole: str = ""
    tail: str = ""

    @property
    def labels(self) -> list[str]:
        """Each label once, in order."""
        return list(dict.fromkeys(name for part in self.parts for name in part.labels))

    def own(self, label: str) -> str:
        """The words of one panel alone; "" for an unknown label."""
        return " ".join(part.text for part in self.parts if label in part.labels)

    def of(self, label: str, shared: Shared = "all") -> str:
        """The caption of one panel, with the words that it shares unless `shared` is `own`; "" for an unknown label."""
        if not any(label in part.labels for part in self.parts):
            return ""
        own = self.own(label)
        if shared == "own":
            return own
        if self.tail[:1].isupper() and own and own[-1] not in ".!?;:,":
            own += "."
        return " ".join(text for text in (self.lead, own, self.tail) if text)

    def sentence(self, label: str, shared: Shared = "all") -> str:
        """`of` with a capital at its beginning and a full stop at its end. Texts split elsewhere stay as they are."""
        text = self.of(label, shared)
        return text if self.style == "given" else as_sentence(text)


Splitter = Callable[[str], Split]  # may replace the default: a learned splitter, or a service


def as_sentence(text: str) -> str:
    """A text with a capital at its beginning and a full stop at its end.

    A first word that has capitals, digits or signs in it, such as `pH`, stays as it is.
    """
    text = text.strip().rstrip(" ;:,")
    first = text.split(" ", 1)[0].strip("(,;:.")
    if first.isalpha() and first.islower():
        at = text.index(first[0])
        text = text[:at] + text[at].upper() + text[at + 1 :]
    return text if not text or text[-1] in ".!?\u3002" else text + "."
