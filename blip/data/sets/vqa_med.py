"""VQA-Med 2019 as published: lines of text with fields between `|`; categories in files of their own."""

import re
from pathlib import Path

from blip.data.columns import Columns, without_columns
from blip.data.formats import AnnotationError, Records, checked, iter_lines

OPTIONAL = re.compile(r"\(([^()]*)\)")
MAX_OPTIONAL = 6  # each doubles the variants of an alternative


def vqa_med_file(path: Path, root: str, columns: Columns) -> Records:
    """`image|question|answer`, or in the reference of the test set `image|category|question|answer`.

    Where the line has no category it is that of the file's name, or of the files in `QAPairsByCategory/` beside it.
    """
    without_columns(path, columns)
    categories = {}
    for file in sorted((path.parent / "QAPairsByCategory").glob("C*_*_*.txt")):
        for _, line in iter_lines(file):
            categories[tuple(line.split("|")[:2])] = file.stem.split("_")[1]
    own = re.match(r"C\d_([A-Za-z]+)_", path.stem)
    for place, line in checked(path, iter_lines):
        fields = [text.strip() for text in line.split("|")]
        if len(fields) not in (3, 4):
            problem = f"{len(fields)} fields; a line is image|question|answer or image|category|question|answer"
            raise AnnotationError(path, place, problem)
        category = own[1] if own else categories.get(tuple(line.split("|")[:2]), "")
        test = len(fields) == 4
        record = {
            "image": fields[0] and f"{fields[0]}.jpg",
            "category": fields[1] if test else category,
            "question": fields[-2],
            "answer": alternatives(fields[-1]) if test else fields[-1],
        }
        yield place, record


def alternatives(answer: str) -> list[str]:
    """Answers that a reference of the test set allows: separated by `#`, each with and without any part in ( ).

    "ct (with contrast)#cta" gives "ct with contrast", "ct" and "cta". Optional parts beyond the sixth are kept. Only
    for files that use these marks: elsewhere they are part of the answer.
    """
    variants: list[str] = []
    for part in answer.split("#"):
        choices = [part]
        for _ in range(MAX_OPTIONAL):  # innermost parts first, so that nested ones work
            if not OPTIONAL.search(choices[-1]):
                break
            choices = [OPTIONAL.sub(kept, choice, count=1) for choice in choices for kept in (r" \1 ", " ")]
        variants += [" ".join(OPTIONAL.sub(r" \1 ", choice).split()) for choice in choices]
    return [text for text in dict.fromkeys(variants) if text]
