"""The results that models write, as items: of `blip caption`, `answer` and `match`, and of a run's evaluations.

What a file holds is known by the keys of its first record, so that a renamed file can be shown as well.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from blip.errors import InputError
from blip.evaluation.answers import exact_match, token_f1
from blip.files import JSON_DECODER, ReadError, open_regular, read_json, read_json_lines
from blip.reports.items import Item

OVERLAP = "words in common with the closest reference (F1)"
SAMPLES = "samples.jsonl"
NAMES = ("answers", "captions", "judgements", "retrieval")  # of the files of an evaluation, with _SPLIT.json
Record = dict[str, Any]


def files_of_run(folder: Path, split: str = "") -> list[Path]:
    """The files of results in the folder of a run or an evaluation, those of validation first; then its samples, which
    are of the validation."""
    splits = {"": ("val", "test"), "validation": ("val",)}.get(split, (split,))
    names = [f"{name}_{part}.json" for part in splits for name in NAMES] + ([SAMPLES] if "val" in splits else [])
    return [folder / name for name in names if (folder / name).is_file()]


def results_in(path: Path) -> list[Item] | None:
    """The items of a file of results; None where it is another kind of file, such as annotations.

    Raises:
        ReadError: the file is damaged, or one of its records.
        InputError: the file holds results, but no images.
    """
    if path.suffix.lower() == ".jsonl":
        return _samples(path)
    if path.suffix.lower() != ".json":
        return None
    if _begins_like_data(path):
        return None
    try:
        content = read_json(path, list[Record] | Record)  # type: ignore[arg-type]
    except ReadError:
        return None  # the reader of annotations says what is wrong, record by record
    if isinstance(content, dict):
        return list(_retrieved(path, content)) if {"images", "texts", "image_to_text"} <= content.keys() else None
    make = _form_of(path, content[0]) if content else None
    return None if make is None else [_made(make, path, number, record) for number, record in enumerate(content, 1)]


def _begins_like_data(path: Path) -> bool:
    """Whether the first record is none of a model's results, known without reading a large file of annotations."""
    with open_regular(path) as file:
        text = file.read(1 << 16).decode("utf-8-sig", "replace").lstrip()
    if not text.startswith("["):
        return not text.startswith("{")
    try:
        first, _ = JSON_DECODER.raw_decode(text[1:].lstrip())
    except ValueError:  # a very long record, or none
        return False
    return not isinstance(first, dict) or _form_of(path, first) is None


def _form_of(path: Path, first: Record) -> Callable[[Record], Item] | None:
    """The function that makes items of records like the first one; None for annotations."""
    keys = first.keys()
    if {"question", "answer", "probability"} <= keys:
        return answered
    if {"caption", "log_prob"} <= keys:
        return captioned
    if "match_probability" in keys:
        return matched
    if {"sentence", "label", "probability"} <= keys:
        return judged
    if {"image_id", "caption"} == set(keys):
        raise InputError(
            f"{path} holds results for a server, without paths of images: show the file of captions that was written "
            "beside it"
        )
    return None


def _made(make: Callable[[Record], Item], path: Path, number: int, record: Record) -> Item:
    try:
        item = make(record)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ReadError(
            path, f"record {number}", f"is not like the first one ({type(error).__name__}: {error})"
        ) from error
    item.name = item.name or str(number)
    return item


# ---- records ---------------------------------------------------------------------------------------------------------


def answered(record: Record) -> Item:
    """An answer to a question; with `references` where the data have them."""
    references = _texts(record.get("references"))
    answer = str(record["answer"])
    right = None
    if references:
        right = bool(record["right"]) if "right" in record else exact_match(answer, references) == 1
    kind = str(record.get("answer_type") or "")
    if references and not kind:  # as sets are read that do not name it
        kind = "closed" if {one.lower() for one in references} <= {"yes", "no"} else "open"
    candidates = [f"{text} ({float(p):.3f})" for text, p in record.get("candidates") or []]
    return Item(
        _texts(record["image"] if "image" in record else record["images"]),
        str(record.get("question_id") or ""),
        str(record["question"]),
        list(dict.fromkeys(references)),
        answer,
        float(record["probability"]),
        "probability",
        right,
        kind,
        str(record.get("category") or ""),
        [("candidates", "; ".join(candidates))] if candidates else [],
        text_name="question",
    )


def captioned(record: Record) -> Item:
    """A caption; its score is the overlap of words with `references`, or without any its log-probability."""
    references, caption = _texts(record.get("references")), str(record["caption"])
    several = [str(one["text"]) for one in record.get("captions") or []][1:]
    more = [("log-probability", f"{float(record['log_prob']):.2f}")] if references else []
    return Item(
        _texts(record["image"] if "image" in record else record["images"]),
        truth=references,
        output=caption,
        score=token_f1(caption, references) if references else float(record["log_prob"]),
        score_name=OVERLAP if references else "log-probability",
        more=more + ([("other captions", "; ".join(several))] if several else []),
    )


def matched(record: Record) -> Item:
    """How well an image and a text match."""
    return Item(
        _texts(record["image"] if "image" in record else record["images"]),
        text=str(record["text"]),
        output="match" if record["match_probability"] > 0.5 else "no match",
        score=float(record["match_probability"]),
        score_name="match probability",
        more=[("cosine (ITC)", f"{float(record['itc_score']):.3f}")] if "itc_score" in record else [],
    )


def judged(record: Record) -> Item:
    """A statement that is true or false of its images."""
    said, truth = record["probability"] > 0.5, bool(record["label"])
    return Item(
        _texts(record.get("images")),
        str(record.get("id") or ""),
        str(record["sentence"]),
        [str(truth).lower()],
        str(said).lower(),
        float(record["probability"] if said else 1 - record["probability"]),
        "probability",
        said == truth,
        text_name="statement",
        problem="" if record.get("images") else "this file of an earlier version has no paths of images",
    )


def _retrieved(path: Path, content: Record) -> Iterator[Item]:
    """The best text of each image; the score is its cosine plus its match logit."""
    lines: list[str] = _texts(content["texts"])
    own: dict[int, list[str]] = {}
    for text, owners in zip(lines, content.get("owners") or [], strict=False):
        for owner in owners:
            own.setdefault(owner, []).append(text)
    for number, (image, ranked) in enumerate(zip(content["images"], content["image_to_text"], strict=False)):
        try:
            texts = [lines[i] for i in ranked["candidates"][:5]]
            scores = ranked["scores"][:5]
        except (KeyError, TypeError, IndexError) as error:
            raise ReadError(path, f"image {number}", f"its candidates cannot be read ({error})") from error
        truth = own.get(number, [])
        rank = next((r for r, i in enumerate(ranked["candidates"], 1) if lines[i] in truth), None)
        place = (
            [("rank of the right text", str(rank) if rank else f"above {len(ranked['candidates'])}")] if truth else []
        )
        next_ones = [("next", "; ".join(texts[1:3]))] if len(texts) > 1 else []
        yield Item(
            _texts(image),
            str(number),
            truth=truth,
            output=texts[0] if texts else "",
            score=float(scores[0]) if scores else None,
            score_name="cosine + match logit",
            right=(rank == 1) if truth else None,
            more=[*place, *next_ones],
        )


def _samples(path: Path) -> list[Item] | None:
    """The samples of a run's last evaluation."""
    items: list[Item] = []
    step = None
    for _, record in read_json_lines(path, Record):
        if not {"step", "image", "output"} <= record.keys():
            return None
        if record["step"] != step:
            items, step = [], record["step"]
        truth, output, question = _texts(record.get("truth")), str(record["output"]), str(record.get("text") or "")
        item = Item(_texts(record["image"]), str(record.get("index", "")), question, truth, output)
        if question:
            item.text_name = "statement" if len(item.images) == 2 and truth in (["true"], ["false"]) else "question"
        if truth and question:
            item.right = exact_match(output, truth) == 1
        elif truth:
            item.score, item.score_name = token_f1(output, truth), OVERLAP
        items.append(item)
    return items or None


def _texts(value: Any) -> list[str]:
    """A text or a list of texts as a list; numbers become text."""
    several: Sequence[Any] = value if isinstance(value, list) else [] if value is None else [value]
    return [str(one) for one in several]
