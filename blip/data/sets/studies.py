"""What sets of radiology reports share: which sections of a report are the text, which pictures of a study are read.

A study is one examination: its pictures, views from several sides, and one report. Its record has `image`, or `images`
where there are several, `caption`, the patient and the part of the set.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from blip.data.formats import AnnotationError, Records, checked, iter_json_object, kind_of
from blip.errors import InputError, note

SECTIONS = ("findings", "impression")
FRONTAL, LATERAL, OTHER = VIEWS = ("frontal", "lateral", "other")
# words of the headings of a report's sections; other lines in capitals that end in a colon, such as LUNGS:, are text
HEADINGS = (
    "FINDING", "IMPRESSION", "CONCLUSION", "EXAM", "INDICATION", "TECHNIQUE", "COMPARISON", "HISTORY", "CLINICAL",
    "REASON", "RECOMMENDATION", "NOTIFICATION", "WET READ", "ADDENDUM", "FINAL REPORT", "STUDY", "PROCEDURE", "CONTEXT",
)  # fmt: skip
MEANT = {"findings": ("FINDING",), "impression": ("IMPRESSION", "CONCLUSION")}
HEADING = re.compile(r"^[ \t]*([A-Z][A-Z /&(),'-]{2,60}|Findings?|Impressions?|Conclusions?)[ \t]*:", re.MULTILINE)


@dataclass(frozen=True)
class StudyOptions:
    """The options `sections`, `views` and `priors` of a configuration.

    Args:
        sections: of a report, that are its text, in this order; those that a report lacks are left out of it.
        views: of a study, whose pictures are read, in this order.
        priors: earlier studies of the patient, whose pictures come before those of a study.
        part: of the set: train, validation or test; "" for all.
        silent: nothing is printed about what is left out, as where the same files are read once more.
    """

    sections: tuple[str, ...] = SECTIONS
    views: tuple[str, ...] = VIEWS
    priors: int = 0
    part: str = ""
    silent: bool = field(default=False, compare=False)

    def __post_init__(self) -> None:
        """Raises InputError where one of them is not known."""
        for name, given, known in (("sections", self.sections, SECTIONS), ("views", self.views, VIEWS)):
            if not given or not set(given) <= set(known) or len(set(given)) < len(given):
                raise InputError(f"{name} is [{', '.join(given)}]; it can be some of {', '.join(known)}, each once")


def sections_of(report: str) -> dict[str, str]:
    """Section -> its text on one line, of a report as it is printed; sections that it lacks are absent."""
    found: dict[str, list[str]] = {}
    headings = [one for one in HEADING.finditer(report) if any(word in one[1].upper() for word in HEADINGS)]
    ends = [*(one.start() for one in headings), len(report)][1:]
    for heading, end in zip(headings, ends, strict=True):
        text = " ".join(report[heading.end() : end].split())
        for section, words in MEANT.items():
            if text and any(word in heading[1].upper() for word in words):
                found.setdefault(section, []).append(text)
    return {section: " ".join(texts) for section, texts in found.items()}


class Counted:
    """Reports without what is asked for, counted as they are read; said once, at the end."""

    def __init__(self, path: Path, options: StudyOptions):
        self.path, self.options = path, options
        self.kept = self.without_report = self.without_pictures = self.without_text = 0
        self.lacking = dict.fromkeys(options.sections, 0)

    def text(self, sections: Mapping[str, str] | None) -> str:
        """The text of a report, "" where it has none of the sections, or is None: there is no report."""
        if sections is None:
            self.without_report += 1
            return ""
        given = [sections[name] for name in self.options.sections if sections.get(name)]
        if not given:
            self.without_text += 1
            return ""
        self.kept += 1
        for name in self.lacking:
            self.lacking[name] += not sections.get(name)
        return " ".join(dict.fromkeys(given))  # one section may be findings and impression

    def say(self) -> None:
        """Prints how many studies are left out, and of the others, how many lack a section, unless they are silent."""
        of = f"{self.options.part} " if self.options.part else ""
        names = " and no ".join(self.options.sections)
        left_out = {f"no {names}": self.without_text, "no report": self.without_report}
        left_out[f"no picture of the views {', '.join(self.options.views)}"] = self.without_pictures
        parts = [f"{count:,} with {why}" for why, count in left_out.items() if count]
        lines = [f"left out: {', '.join(parts)}"] if parts else []
        if len(self.lacking) > 1:
            lines += [f"{count:,} without {name}" for name, count in self.lacking.items() if count]
        if lines and not self.options.silent:
            note(f"{self.path}: {self.kept:,} {of}studies; {'; '.join(lines)}")


def record_of(pictures: Sequence[str], text: str, *, study: str, patient: str, part: str) -> dict[str, Any]:
    """The record of a study in the generic form."""
    images = {"image": pictures[0]} if len(pictures) == 1 else {"images": list(pictures)}
    return {**images, "caption": text, "image_id": study, "patient": patient, "split": part}


def annotated(path: Path, options: StudyOptions) -> Records:
    """The studies of an `annotation.json`: an object of lists train, val and test, as is common for generating reports.

    The reports are whole texts there, and pictures have no dates and no views.
    """
    if options.sections != SECTIONS or options.views != VIEWS or options.priors:
        raise InputError(f"{path} has whole reports, without sections, views and dates: leave out sections, views and "
                         "priors, or read the set as distributed")  # fmt: skip
    counted, numbers = Counted(path, options), dict.fromkeys(("train", "val", "test"), 0)
    for part, item in checked(path, iter_json_object):
        if part not in numbers:
            continue
        numbers[part] += 1
        place = f"{part} {numbers[part]}"
        if not isinstance(item, dict):
            raise AnnotationError(
                path, place, f"a study is an object with id, report and image_path, not {kind_of(item)}"
            )
        pictures = item.get("image_path")
        if not isinstance(pictures, list) or not pictures or not all(isinstance(one, str) for one in pictures):
            raise AnnotationError(path, place, "its image_path is no list of paths of images")
        report, name = item.get("report"), str(item.get("id", ""))
        if not isinstance(report, str) or not name:
            raise AnnotationError(path, place, "has no text as report, or no id")
        text = " ".join(report.split())
        if not text:
            counted.without_report += 1
            continue
        counted.kept += 1
        study, patient = str(item.get("study_id", name)), str(item.get("subject_id", name.split("_")[0]))
        yield place, record_of(pictures, text, study=study, patient=patient, part=part)
    if not any(numbers.values()):
        raise AnnotationError(path, "", "has none of the lists train, val and test")
    counted.say()


def in_views(pictures: Sequence[tuple[str, str]], options: StudyOptions, *, each: int | None = None) -> list[str]:
    """Of (view, picture) those of the asked views in their order; at most `each` of a view."""
    return [
        picture
        for view in options.views
        for picture in [one for own, one in pictures if own == view][:each]
    ]  # fmt: skip
