"""Scores of answers, as in medical VQA and as in VQA v2, with bootstrap intervals.

Medical VQA normalises answers (`normalise_answer`) and takes the best of several references; VQA v2 compares with ten
annotators (`vqa_accuracy`). All scores are shares, 0 to 1.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence

from blip.evaluation.bootstrap import Interval, MetricError, bootstrap

# ---- answers -----------------------------------------------------------------------------------------------------

# as in the public evaluation code of VQA v2, where "none" counts as a number too
NUMBERS = "none:0 zero:0 one:1 two:2 three:3 four:4 five:5 six:6 seven:7 eight:8 nine:9 ten:10"
NUMBER_WORDS = dict(pair.split(":") for pair in NUMBERS.split())
DELETED = str.maketrans("", "", ",.'!?\"()*#:;~")
X_RAY = re.compile(r"\bx[ -]ray")


def normalise_answer(text: str) -> str:
    """Medical VQA's form of an answer: lower-case, `,.'!?"()*#:;~` deleted, `xray`, ` - ` closed up, numbers as digits.

    "0.5" becomes "05" on both sides of a comparison, as in the published scores. The rules are those of the
    published code of MUMC (Li et al. 2023, arXiv 2307.05314), with the number words of the evaluation code of VQA v2.
    """
    text = " ".join(text.lower().translate(DELETED).split()).replace(" - ", "-")
    return " ".join(NUMBER_WORDS.get(word, word) for word in X_RAY.sub("xray", text).split())


def exact_match(answer: str, references: Sequence[str]) -> float:
    """1 if the normalised answer is one of the normalised references; an empty answer never is."""
    answer = normalise_answer(answer)
    return float(answer != "" and answer in [normalise_answer(reference) for reference in _some(references)])


def token_recall(answer: str, references: Sequence[str]) -> float:
    """Share of the words of a reference, repeats counted, that the answer contains; the best over the references."""
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


AnswerScore = Callable[[str, Sequence[str]], float]
Written = Callable[[str], str]  # a text in the spelling of a tokenizer, such as `Tokenizer.written`
ANSWER_SCORES: dict[str, AnswerScore] = {
    "exact_match": exact_match,
    "token_recall": token_recall,
    "token_f1": token_f1,
    "bleu1": bleu1,
}


def score_as_written(score: AnswerScore, answer: str, references: Sequence[str], written: Written | None) -> float:
    """The better of two scores: of the texts as given, and with references in the spelling of the model's tokenizer.

    Tokens do not tell whether blanks stood beside a punctuation mark: a model writes "0. 5 mm" and "10 %" for the
    references "0.5 mm" and "10%". Without the second score no generated answer could agree with these.
    """
    best = score(answer, references)
    if written is not None and best < 1:
        spelt = [written(reference) for reference in references]
        best = max(best, score(answer, spelt), score(written(answer), spelt))
    return best


# ---- VQA v2 ------------------------------------------------------------------------------------------------------

VQA_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
# The VQA evaluation restores an apostrophe that an annotator left out, one of them at a time. Its table has "Im",
# "Ive", "Id've" and "I'dve" too, but answers are in lower case when they are compared with it: "im" stays as it is.
CONTRACTIONS = """ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't
he'd he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've
mustn't must've needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've
somebody'll somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll that's
there'd there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll
what're what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't
would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've"""
APOSTROPHES = {w[: i.start()] + w[i.end() :]: w for w in CONTRACTIONS.split() for i in re.finditer("'", w)}
APOSTROPHES["somebody'd"] = "somebodyd"  # the one entry of the public table that goes the other way


def normalise_vqa(text: str) -> str:
    """An answer normalised as in the public code of VQA v2: punctuation, number words, articles, contractions.

    All marks of a kind are deleted if one of them is next to a blank or the text has a thousands comma; otherwise they
    become blanks. A full stop is deleted unless a digit follows.
    """
    result = text = text.replace("\n", " ").replace("\t", " ").strip()
    thousands = re.search(r"\d,\d", text) is not None
    for mark in VQA_PUNCTUATION:
        beside_a_blank = mark + " " in text or " " + mark in text
        result = result.replace(mark, "" if beside_a_blank or thousands else " ")
    result = re.sub(r"\.(?!\d)", "", result)
    words = [NUMBER_WORDS.get(word, word) for word in result.lower().split()]
    return " ".join(APOSTROPHES.get(word, word) for word in words if word not in ("a", "an", "the"))


def vqa_accuracy(answer: str, ten_answers: Sequence[str], written: Written | None = None) -> float:
    """VQA v2's accuracy: min(1, matches / 3), averaged over the subsets that leave one annotator out.

    Both sides are always normalised; the public code skips this where all ten annotators gave the same string. Fewer
    than four answers raise MetricError: they cannot reach a score of 1. With `written`, see `score_as_written`, an
    answer also agrees with an annotator whose answer the tokenizer spells like that.
    """
    if isinstance(ten_answers, str) or len(ten_answers) < 4:
        raise MetricError(f"VQA v2's accuracy compares with ten answers, not with {ten_answers!r}")
    count = len(ten_answers)
    matches = sum(score_as_written(_agree, answer, [other], written) for other in ten_answers)
    left_out_agrees, left_out_differs = min(1.0, (matches - 1) / 3), min(1.0, matches / 3)
    return (matches * left_out_agrees + (count - matches) * left_out_differs) / count


def _agree(answer: str, others: Sequence[str]) -> float:
    return float(normalise_vqa(answer) in [normalise_vqa(other) for other in others])


# ---- all scores of a set -----------------------------------------------------------------------------------------


def score_answers(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    answer_types: Sequence[str],
    *,
    groups: Sequence[Hashable] | None = None,
    seed: int = 0,
    written: Written | None = None,
    scores: Mapping[str, AnswerScore] = ANSWER_SCORES,
) -> dict[str, dict[str, Interval]]:
    """Every answer score by answer type: result["token_f1"]["open"] is an interval with its number of answers.

    Args:
        predictions: (N,) answers.
        references: (N,) lists of at least one answer.
        answer_types: (N,) the names of the data set ("CLOSED " is read as "closed"); an answer of type "attrib+pres"
            counts under both, one of "" under none. A type that does not occur is left out; "all" is every answer.
        groups: (N,) image or patient of each answer, see `bootstrap`.
        seed: of the bootstrap, where a score needs one.
        written: the spelling of the model's tokenizer, see `score_as_written`.
        scores: which ones, by their names.

    Raises:
        MetricError: lists of different lengths, nothing to score, an answer without reference.
    """
    lengths = {"predictions": len(predictions), "references": len(references), "answer types": len(answer_types)}
    lengths |= {} if groups is None else {"groups": len(groups)}
    if len(set(lengths.values())) > 1:
        raise MetricError("lists differ in length: " + ", ".join(f"{count} {name}" for name, count in lengths.items()))
    kinds = [{name.strip() for name in kind.lower().split("+")} - {""} for kind in answer_types]
    members = {kind: [i for i, own in enumerate(kinds) if kind in own] for kind in sorted(set[str]().union(*kinds))}
    members["all"] = list(range(len(kinds)))
    result: dict[str, dict[str, Interval]] = {}
    for name, score in scores.items():
        pairs = zip(predictions, references, strict=True)
        values = [score_as_written(score, answer, several, written) for answer, several in pairs]
        result[name] = {}
        for kind, rows in members.items():
            of_kind = None if groups is None else [groups[i] for i in rows]
            result[name][kind] = bootstrap([values[i] for i in rows], of_kind, seed=seed)
    return result
