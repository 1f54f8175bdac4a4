"""Which pairs go into a data set, and into which of its parts."""

import hashlib
import math
import re
from dataclasses import dataclass, field
from typing import Any

from blip.errors import BlipError
from blip.pubmed.licenses import FAMILIES, selected_families, short_license
from blip.pubmed.retractions import is_retracted

NAMES = ("train", "val", "test")


class BuildError(BlipError):
    """A data set that cannot be built."""


@dataclass
class Rules:
    """What goes into the data set."""

    split_shares: tuple[float, float, float] = (0.8, 0.1, 0.1)  # of train, val and test, by article
    licenses: list[str] = field(default_factory=list)  # such as CC-BY, CC0; empty: any of Creative Commons
    retracted: bool = False  # also retracted articles
    unlicensed: bool = False  # also articles that name no licence of Creative Commons
    min_confidence: float = 0.5  # of a pair
    keep_whole: bool = True  # also compound figures that were not divided
    min_side: int = 64  # pixels of the shorter side
    max_aspect: float = 5.0  # longer side divided by the shorter one
    min_words: int = 3  # of a caption
    max_words: int = 300  # of a caption
    words: list[str] = field(default_factory=list)  # a caption has one of these, such as MRI; empty: any
    not_words: list[str] = field(default_factory=list)  # a caption has none of these
    duplicates: bool = False  # also repeated pictures
    seed: int = 0  # of the division

    def check(self) -> None:
        """BuildError where the shares do not add up to 1, or a limit is no number; InputError for unknown licences."""
        shares = self.split_shares
        # no comparison with NaN is true
        if not (all(share >= 0 for share in shares) and abs(sum(shares) - 1) <= 1e-6):
            raise BuildError(f"the shares {' '.join(map(str, shares))} of train, val and test do not add up to 1")
        for name in ("min_confidence", "max_aspect"):
            if math.isnan(getattr(self, name)):
                raise BuildError(f"{name} is nan: give a number")
        selected_families(self.licenses)

    def rejection(self, line: dict[str, Any]) -> str:
        """Why a pair is left out, "" if it is not; `size_rejection` checks what needs the image."""
        license, caption = short_license(line.get("license")), line.get("caption")
        if not isinstance(caption, str):
            return "no caption"
        count = len(caption.split())
        retracted, odd = is_retracted(line, "retracted")
        if retracted and not self.retracted:
            return "mark of retraction that is not understood" if odd else "retracted"
        if self.licenses and license not in selected_families(self.licenses):
            return "licence"
        if license not in FAMILIES and not self.unlicensed and not self.licenses:
            return "no open licence named"
        if not line.get("image"):
            return "no file"
        if not _confidence(line) >= self.min_confidence:
            return "confidence"
        if not self.keep_whole and line.get("how") == "whole" and _several(line.get("panels")):
            return "compound figure that stayed whole"
        if count < self.min_words:
            return "caption too short"
        if count > self.max_words:
            return "caption too long"
        if self.words and not _any_word(self.words, caption):
            return "none of the words"
        return "word that is not wanted" if self.not_words and _any_word(self.not_words, caption) else ""

    def size_rejection(self, size: tuple[int, int]) -> str:
        """Why an image of this width and height in pixels is left out, "" if it is not."""
        if min(size) < self.min_side:
            return "too small"
        return "too long and narrow" if max(size) > self.max_aspect * min(size) else ""

    def part(self, article: str) -> str:
        """The part of an article: "train", "val" or "test"."""
        digest = hashlib.sha256(f"{self.seed} {article}".encode("utf-8", "surrogatepass")).digest()
        place = int.from_bytes(digest[:8], "big") / 2**64
        bounds = (self.split_shares[0], self.split_shares[0] + self.split_shares[1])
        return NAMES[(place >= bounds[0]) + (place >= bounds[1])]


def _confidence(line: dict[str, Any]) -> float:
    """The confidence of a pair: 1 where it has none, NaN where it is no number, which no limit accepts."""
    value = line.get("confidence")
    if value is None:
        return 1.0
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan


def _several(panels: object) -> bool:
    return isinstance(panels, list) and len(panels) > 1


def _any_word(words: list[str], text: str) -> bool:
    return any(re.search(rf"(?<!\w){re.escape(word)}(?!\w)", text, re.IGNORECASE) for word in words)
