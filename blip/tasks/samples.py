"""The validation records that a run shows after each evaluation, the same ones each time: lines of `samples.jsonl`."""

from collections.abc import Sequence
from typing import Any

from blip.data.sets.questions import Question
from blip.data.sets.statements import Statement
from blip.evaluation.answers import Written, exact_match, score_as_written

SHOWN = 16  # records


def chosen(count: int) -> set[int]:
    """The numbers of the records that are shown, of `count`: spread evenly, since neighbours often resemble."""
    return {count * number // SHOWN for number in range(SHOWN)} if count else set()


def sample(
    index: int, image: str | Sequence[str], *, truth: str, output: str, text: str = "", **more: float | int | None
) -> dict[str, Any]:
    """A line: the number of a record, the path of its image (or images), a question or statement, what is true and
    what the model makes of it; `more`: such as the probability of the output."""
    paths = image if isinstance(image, str) or len(image) > 1 else image[0]
    return {"index": index, "image": paths, "text": text, "truth": truth, "output": output, **more}


def of_item(paths: Sequence[str]) -> dict[str, Any]:
    """The images of a line of results, as annotations have them: `image`, or `images` of an item of several."""
    return {"image": paths[0]} if len(paths) == 1 else {"images": list(paths)}


def of_questions(
    count: int, asked: Sequence[Question], given: Sequence[tuple[int, str, float]]
) -> list[dict[str, Any]]:
    """Of `count` questions: those that were `asked`, and of each its number, the answer and its probability."""
    shown = chosen(count)
    return [
        sample(
            index, question.image_paths, text=question.question, truth=main_answer(question), output=text, probability=p
        )
        for question, (index, text, p) in zip(asked, given, strict=True)
        if index in shown
    ]


def main_answer(question: Question) -> str:
    """The answer with the largest weight, "" where none is known."""
    weights = dict(zip(question.answers, question.weights, strict=True))
    return max(weights, key=weights.__getitem__, default="")


def about_answer(question: Question, answer: str, written: Written) -> dict[str, Any]:
    """What answers are chosen by when they are shown: the type and category of the question where the data name them,
    and whether the answer is right. `written`: see `score_as_written`."""
    about = {"answer_type": question.answer_type, "category": question.category}
    found: dict[str, Any] = {name: value for name, value in about.items() if value}
    if references := question.references or question.answers:
        found["right"] = score_as_written(exact_match, answer, references, written) == 1
    return found


def of_statement(index: int, statement: Statement, probability: float) -> dict[str, Any]:
    """A line; `probability` is that of the statement being true."""
    images = statement.images if isinstance(statement.images, str) else list(statement.images)
    truth, output = (str(value).lower() for value in (statement.label, probability > 0.5))
    return sample(index, images, text=statement.sentence, truth=truth, output=output, probability=probability)
