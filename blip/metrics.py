"""Scores of answers and rankings, and how sure we are of them: functions of strings and numbers, nothing else of ours.

Answers are scored as in the medical literature (`normalise_answer`, several references, the best counts) or as in
VQA v2 (`vqa_accuracy`). All scores are shares, 0 to 1. N values, G groups, R repeats of the bootstrap, K columns.
"""

import dataclasses
import math
import re
import statistics
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from blip.errors import BlipError

Floats = NDArray[np.float64]


class MetricError(BlipError):
    """Nothing to score, or lists that do not belong together."""


# ---- answers -----------------------------------------------------------------------------------------------------

# as in the public VQA evaluation, where "none" counts as a number too
NUMBERS = "none:0 zero:0 one:1 two:2 three:3 four:4 five:5 six:6 seven:7 eight:8 nine:9 ten:10"
NUMBER_WORDS = dict(pair.split(":") for pair in NUMBERS.split())
DELETED = str.maketrans("", "", ",.'!?\"()*#:;~")
X_RAY = re.compile(r"\bx[ -]ray")


def normalise_answer(text: str) -> str:
    """Medical VQA's form of an answer: lower-case, `,.'!?"()*#:;~` deleted, `xray`, ` - ` closed up, numbers as digits.

    "0.5" becomes "05" on both sides of a comparison, as in the published scores. Source: MEDICAL.md, VQA scoring.
    """
    text = " ".join(text.lower().translate(DELETED).split()).replace(" - ", "-")
    return " ".join(NUMBER_WORDS.get(word, word) for word in X_RAY.sub("xray", text).split())


def exact_match(answer: str, references: Sequence[str]) -> float:
    """1 if the normalised answer is one of the normalised references; an empty answer never is."""
    answer = normalise_answer(answer)
    return float(answer != "" and answer in [normalise_answer(reference) for reference in _some(references)])


def token_recall(answer: str, references: Sequence[str]) -> float:
    """Share of a reference's words, repeats counted, that the answer has; the best over the references."""
    return max(shared / max(1, there) for shared, _, there in _overlaps(answer, references))


def token_f1(answer: str, references: Sequence[str]) -> float:
    """Harmonic mean of the words' precision and recall; the best over the references."""
    return max(2 * shared / max(1, here + there) for shared, here, there in _overlaps(answer, references))


def bleu1(answer: str, references: Sequence[str]) -> float:
    """Precision of the answer's words times BLEU's penalty for being shorter; the best over single references."""
    overlaps = _overlaps(answer, references)
    return max(
        shared / here * math.exp(min(0.0, 1 - there / here)) if here else 0.0 for shared, here, there in overlaps
    )


def _overlaps(answer: str, references: Sequence[str]) -> list[tuple[int, int, int]]:
    """For each reference: words shared, words of the answer, words of the reference."""
    here = Counter(normalise_answer(answer).split())
    there = [Counter(normalise_answer(reference).split()) for reference in _some(references)]
    return [((here & other).total(), here.total(), other.total()) for other in there]


def _some(references: Sequence[str]) -> Sequence[str]:
    if isinstance(references, str):
        raise MetricError(f"references are a list of answers, not one text: {references!r}")
    if not references:
        raise MetricError("an answer needs at least one reference")
    return references


ANSWER_SCORES: dict[str, Callable[[str, Sequence[str]], float]] = {
    "exact_match": exact_match,
    "token_recall": token_recall,
    "token_f1": token_f1,
    "bleu1": bleu1,
}


# ---- VQA v2 ------------------------------------------------------------------------------------------------------

VQA_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
# the VQA evaluation restores an apostrophe that an annotator left out, one of them at a time
CONTRACTIONS = """ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't
he'd he'd've he's how'd how'll how's i'd've i'm i've isn't it'd it'd've it'll let's ma'am mightn't mightn't've might've
mustn't must've needn't not've o'clock oughtn't shan't she'd've should've shouldn't shouldn't've somebody'd've
somebody'll somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll that's
there'd there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll
what're what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't
would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've"""
APOSTROPHES = {w[: i.start()] + w[i.end() :]: w for w in CONTRACTIONS.split() for i in re.finditer("'", w)}


def normalise_vqa(text: str) -> str:
    """An answer as the public VQA evaluation compares it: punctuation, number words, articles, contractions.

    A mark is deleted where any one of its kind stands beside a blank, or where the text has a thousands comma; it
    becomes a blank otherwise. A full stop goes unless a digit follows.
    """
    result = text = " ".join(text.split())
    thousands = re.search(r"\d,\d", text) is not None
    for mark in VQA_PUNCTUATION:
        beside_a_blank = mark + " " in text or " " + mark in text
        result = result.replace(mark, "" if beside_a_blank or thousands else " ")
    result = re.sub(r"\.(?!\d)", "", result)
    words = [NUMBER_WORDS.get(word, word) for word in result.lower().split()]
    return " ".join(APOSTROPHES.get(word, word) for word in words if word not in ("a", "an", "the"))


def vqa_accuracy(answer: str, ten_answers: Sequence[str]) -> float:
    """VQA v2's accuracy: min(1, matches / 3), averaged over the subsets that leave one annotator out.

    Both sides are always normalised; the public script does not where all ten annotators agree to the letter.
    Fewer than four answers are an error: they could not add up to 1.
    """
    if isinstance(ten_answers, str) or len(ten_answers) < 4:
        raise MetricError(f"VQA v2's accuracy compares with ten answers, not with {ten_answers!r}")
    wanted, count = normalise_vqa(answer), len(ten_answers)
    matches = sum(normalise_vqa(other) == wanted for other in ten_answers)
    left_out_agrees, left_out_differs = min(1.0, (matches - 1) / 3), min(1.0, matches / 3)
    return (matches * left_out_agrees + (count - matches) * left_out_differs) / count


# ---- uncertainty -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Interval:
    """A score over `count` values, and the bounds of its bootstrap interval."""

    mean: float
    low: float
    high: float
    count: int


def bootstrap(
    values: Sequence[float] | Floats,
    groups: Sequence[Hashable] | None = None,
    repeats: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """The mean of N values and its percentile bootstrap interval.

    Args:
        values: (N,) numbers.
        groups: (N,) what each value belongs to (image, patient, article). Whole groups are drawn, since values that
            share an image are not independent; without it each value is its own group. One group has no spread.
        level: the share of resampled means between the bounds.

    Equal seeds and groups draw the same groups, so that scores of two models can be compared repeat by repeat.
    Errors: no values, values that are not finite numbers, `groups` of another length.
    """
    column = np.asarray(values, dtype=np.float64)
    if column.ndim != 1:
        raise MetricError(f"values form a list of numbers, not an array of shape {column.shape}")
    columns = np.stack([column, np.ones_like(column)], axis=1)
    return bootstrap_sums(columns, lambda sums: sums[:, 0] / sums[:, 1], groups, repeats, seed, level)


def bootstrap_sums(
    columns: Floats,
    statistic: Callable[[Floats], Floats],
    groups: Sequence[Hashable] | None = None,
    repeats: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """The same for a score that is a function of sums over the set, as corpus BLEU is of n-gram counts.

    Args:
        columns: (N, K) what is summed; `statistic` turns sums (R, K) into scores (R,). `mean` is the score of all.
    """
    if len(columns) == 0:
        raise MetricError("there are no values to average")
    if groups is not None and len(groups) != len(columns):
        raise MetricError(f"{len(columns)} values but {len(groups)} groups: each value needs the name of its group")
    if not np.isfinite(columns).all():
        raise MetricError(f"value {int(np.argmin(np.isfinite(columns).all(axis=1)))} is not a finite number")
    if repeats < 1 or not 0 < level < 1:
        raise MetricError(f"repeats ({repeats}) are at least 1 and level ({level}) lies between 0 and 1")
    names = range(len(columns)) if groups is None else groups
    code = {name: i for i, name in enumerate(dict.fromkeys(names))}
    per_group = np.zeros((len(code), columns.shape[1]))
    np.add.at(per_group, [code[name] for name in names], columns)  # (G, K)
    generator, size = np.random.default_rng(seed), len(per_group)
    # one repeat at a time: a table of all draws would need R·G numbers
    draws = (np.bincount(generator.integers(size, size=size), minlength=size) for _ in range(repeats))
    scores = statistic(np.stack([times @ per_group for times in draws]))  # (R, K) -> (R,)
    low, high = np.quantile(scores, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(statistic(columns.sum(axis=0, keepdims=True))[0]), float(low), float(high), len(columns))


def score_answers(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    answer_types: Sequence[str],
    groups: Sequence[Hashable] | None = None,
    seed: int = 0,
) -> dict[str, dict[str, Interval]]:
    """Every answer score by answer type: result["token_f1"]["open"] is an interval with its number of answers.

    `answer_types` are the data set's names ("CLOSED " is read as "closed"); an answer of "attrib+pres" counts under
    both, one of "" under none. A type that does not occur is left out, "all" is everything. Errors: lists of different
    lengths, nothing to score, an answer without reference.
    """
    lengths = {"predictions": len(predictions), "references": len(references), "answer types": len(answer_types)}
    lengths |= {} if groups is None else {"groups": len(groups)}
    if len(set(lengths.values())) > 1:
        raise MetricError("lists differ in length: " + ", ".join(f"{count} {name}" for name, count in lengths.items()))
    kinds = [{name.strip() for name in kind.lower().split("+")} - {""} for kind in answer_types]
    members = {kind: [i for i, own in enumerate(kinds) if kind in own] for kind in sorted(set[str]().union(*kinds))}
    members["all"] = list(range(len(kinds)))
    result: dict[str, dict[str, Interval]] = {}
    for name, score in ANSWER_SCORES.items():
        values = [score(answer, several) for answer, several in zip(predictions, references, strict=True)]
        result[name] = {}
        for kind, rows in members.items():
            of_kind = None if groups is None else [groups[i] for i in rows]
            result[name][kind] = bootstrap([values[i] for i in rows], of_kind, seed=seed)
    return result


def as_json(scores: Any) -> Any:
    """The same with plain dictionaries, lists and numbers in place of dataclasses and arrays."""
    if dataclasses.is_dataclass(scores) and not isinstance(scores, type):
        return as_json(dataclasses.asdict(scores))
    if isinstance(scores, dict):
        return {str(name): as_json(value) for name, value in scores.items()}
    if isinstance(scores, list | tuple):
        return [as_json(value) for value in scores]
    return scores.tolist() if isinstance(scores, np.ndarray | np.generic) else scores


# ---- retrieval ---------------------------------------------------------------------------------------------------


def ranking_scores(
    ranks: Sequence[int] | NDArray[np.integer],
    candidates: int,
    ks: Sequence[int] = (1, 5, 10),
    positives: Sequence[int] | None = None,
) -> dict[str, float]:
    """R@k ("r1" ...), median rank counted from 1, number of candidates and chance of R@1, for one direction.

    Shares are floats and counts ints, by which who prints them tells them apart; a median between two ranks has a half.

    Args:
        ranks: (N,) place of each query's best right answer among the candidates, counted from 0.
        candidates: how many there are; k may exceed it.
        positives: (N,) right answers of each query, for the chance level; one each unless said.
    """
    places = [int(rank) for rank in ranks]
    if not places:
        raise MetricError("there are no queries to score")
    if wrong := [rank for rank in places if not 0 <= rank < candidates]:
        raise MetricError(f"rank {wrong[0]} does not exist among {candidates} candidates, counted from 0")
    if positives is not None and len(positives) != len(places):
        raise MetricError(f"{len(places)} ranks but {len(positives)} numbers of right answers")
    scores = {f"r{k}": sum(rank < k for rank in places) / len(places) for k in ks}
    right = 1.0 if positives is None else sum(positives) / len(positives)
    median = statistics.median(places) + 1
    median = int(median) if median == int(median) else median
    return scores | {"median_rank": median, "candidates": candidates, "chance_r1": right / candidates}
