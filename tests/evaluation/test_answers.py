"""Scores of answers and rankings against numbers worked out by hand and against plain loops."""

import hashlib
import json
import math
import random

import numpy as np
import pytest
from scipy import stats

from benchmarks.intervals import Rates, sampled_coverage
from blip.evaluation import answers, bootstrap, ranking
from blip.evaluation.bootstrap import MetricError
from blip.evaluation.quantiles import student_quantile


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("  The Left   Lung. ", "the left lung"),
        ("X-ray", "xray"),
        ("x ray of the chest, x-rays", "xray of the chest xrays"),
        ("xr - plain film", "xr-plain film"),
        ("Two lesions; none (left)", "2 lesions 0 left"),
        ("0.5 mm", "05 mm"),
        ('it\'s *not* #1: ~a "b"?!', "its not 1 a b"),
        ("t2-weighted w/ contrast", "t2-weighted w/ contrast"),
        ("matrix rays", "matrix rays"),
        ("7", "7"),
        ("...", ""),
    ],
)
def test_normalise_answer(text: str, expected: str) -> None:
    assert answers.normalise_answer(text) == expected
    assert answers.normalise_answer(expected) == expected


def test_answer_scores_by_hand() -> None:
    # shared: left, lung; the answer has 3 words, the references 4 and 2
    answer, references = "left lung mass", ["The left upper lung", "right pleura"]
    assert answers.exact_match(answer, references) == 0.0
    assert answers.token_recall(answer, references) == pytest.approx(2 / 4)
    assert answers.token_f1(answer, references) == pytest.approx(2 * (2 / 3) * (2 / 4) / (2 / 3 + 2 / 4))
    assert answers.bleu1(answer, references) == pytest.approx(2 / 3 * math.exp(1 - 4 / 3))
    assert answers.bleu1("the left upper lung mass", references) == pytest.approx(4 / 5)  # longer: no penalty
    assert answers.exact_match("LEFT LUNG MASS.", ["no", "left lung mass"]) == 1.0
    assert answers.bleu1("ct ct ct", ["ct"]) == pytest.approx(1 / 3)  # a repeated word counts as often as it is there
    assert answers.token_recall("no", ["no no"]) == pytest.approx(1 / 2)


def test_the_best_reference_counts_by_itself() -> None:
    references = ["a b c d", "e f"]
    assert answers.token_recall("e f", references) == 1.0
    assert answers.token_f1("e f", references) == 1.0
    assert answers.bleu1("a e", references) == pytest.approx(1 / 2)  # half of it in either, never in both together


def test_scores_agree_with_naive_code() -> None:
    rng = random.Random(0)
    for _ in range(200):
        answer = [rng.choice("abcd") for _ in range(rng.randint(0, 6))]
        references = [[rng.choice("abcd") for _ in range(rng.randint(1, 6))] for _ in range(rng.randint(1, 3))]
        recalls, f1s, bleus = [], [], []
        for reference in references:
            left, shared = list(reference), 0
            for word in answer:
                if word in left:
                    left.remove(word)
                    shared += 1
            precision = shared / len(answer) if answer else 0.0
            recall = shared / len(reference)
            recalls.append(recall)
            f1s.append(2 * precision * recall / (precision + recall) if shared else 0.0)
            short = 1.0 if len(answer) >= len(reference) else math.exp(1 - len(reference) / max(1, len(answer)))
            bleus.append(precision * short)
        texts = [" ".join(reference) for reference in references]
        assert answers.token_recall(" ".join(answer), texts) == pytest.approx(max(recalls))
        assert answers.token_f1(" ".join(answer), texts) == pytest.approx(max(f1s))
        assert answers.bleu1(" ".join(answer), texts) == pytest.approx(max(bleus))


@pytest.mark.parametrize("score", list(answers.ANSWER_SCORES.values()))
def test_empty_answers_score_zero_and_references_must_exist(score) -> None:
    assert score("", ["left"]) == 0.0
    assert score("?", ["left", "."]) == 0.0
    assert score("left", ["..."]) == 0.0
    with pytest.raises(MetricError, match="at least one reference"):
        score("left", [])
    with pytest.raises(MetricError, match="not one text"):
        score("left", "left")


def test_contractions_are_those_of_the_public_table() -> None:
    """The public VQA evaluation (vqaEval.py) has 116 entries in lower case; its others never match a lower-cased word.

    A hash of them, one "SPELLING CONTRACTION" a line in the order of spellings, stands for the table. Two of them map
    a word to itself.
    """
    table = {**answers.APOSTROPHES, "let's": "let's", "she's": "she's"}
    listed = "".join(f"{spelling} {table[spelling]}\n" for spelling in sorted(table))
    assert len(table) == 116
    assert (
        hashlib.sha256(listed.encode()).hexdigest()
        == "562cfb88ef27a33b6a31e9f57bfcd0395b671baa0381e30304d5e4ed74b8f408"
    )


@pytest.mark.parametrize("word", ["im", "Im", "IVE", "ive", "id've", "i'dve", "lets"])
def test_capitalised_entries_of_the_public_table_never_match(word: str) -> None:
    assert answers.normalise_vqa(word) == word.lower()


def public_normal_form(text: str) -> str:
    """The steps of the public VQA evaluation, one after the other."""
    given = text.replace("\n", " ").replace("\t", " ").strip()
    result = given
    for mark in [*";/[]", '"', *"{}()=+\\_-><@`,?!"]:
        delete = mark + " " in given or " " + mark in given or any(
            given[i].isdigit() and given[i + 1] == "," and given[i + 2].isdigit() for i in range(len(given) - 2)
        )  # fmt: skip
        result = "".join(("" if delete else " ") if letter == mark else letter for letter in result)
    followed = [*result[1:], ""] if result else []
    result = "".join(a for a, b in zip(result, followed, strict=True) if a != "." or b.isdigit())
    names = ["none", "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
    digits = dict(zip(names, [0, 0, *range(1, 11)], strict=True))
    words = [str(digits.get(word, word)) for word in result.lower().split()]
    words = [word for word in words if word not in ("a", "an", "the")]
    return " ".join(answers.APOSTROPHES.get(word, word) for word in words)


def test_normalise_vqa_against_the_public_steps() -> None:
    rng = random.Random(0)
    parts = [*"ab12.,;/-'?! \t", "dont", "Im", "the", "None", "ow's'at", "somebody'd", "1,000", "\u00a0"]
    for _ in range(20_000):
        text = "".join(rng.choice(parts) for _ in range(rng.randint(0, 9)))
        assert answers.normalise_vqa(text) == public_normal_form(text), repr(text)


def test_answers_in_the_spelling_of_a_tokenizer() -> None:
    apart = {"0.5 mm": "0. 5 mm", "10%": "10 %", "l4/l5": "l4 / l5", "1,000": "1, 000"}

    def written(text: str) -> str:
        return apart.get(text, text)

    for text, generated in apart.items():
        scores = answers.score_answers([generated], [[text]], [""], written=written)
        assert {name: kinds["all"].mean for name, kinds in scores.items()} == dict.fromkeys(answers.ANSWER_SCORES, 1)
        assert answers.vqa_accuracy(generated, [text] * 10, written) == 1
    # what agreed without it still does, also where the tokenizer's spelling would not
    assert answers.vqa_accuracy("1,000", ["1000"] * 10, written) == 1
    assert answers.score_answers(["1,000"], [["1000"]], [""], written=written)["exact_match"]["all"].mean == 1
    assert answers.score_answers(["0. 5 mm"], [["0.6 mm"]], [""], written=written)["exact_match"]["all"].mean == 0
    assert answers.score_answers(["0. 5 mm"], [["0.5 mm"]], [""])["exact_match"]["all"].mean == 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A dog", "dog"),
        ("the  two\tdogs\n", "2 dogs"),
        ("dont know", "don't know"),
        ("couldntve", "couldntve"),  # the public table knows one missing apostrophe, not two
        ("couldnt've", "couldn't've"),
        ("oclock", "o'clock"),
        ("red/blue", "red blue"),  # no blank beside the mark: it becomes one
        ("red / blue", "red blue"),  # with one: it goes
        ("t-shirt - red", "tshirt red"),  # and then all of its kind go
        ("1,000", "1000"),
        ("1,000 t-shirts", "1000 tshirts"),
        ("yes.", "yes"),
        ("3.5", "3.5"),
        ("none", "0"),
        ("?", ""),
    ],
)
def test_normalise_vqa(text: str, expected: str) -> None:
    assert answers.normalise_vqa(text) == expected


def test_vqa_accuracy_against_brute_force() -> None:
    for matches in range(11):
        ten = ["yes"] * matches + ["no"] * (10 - matches)
        per_subset = []
        for left_out in range(10):
            others = [other for i, other in enumerate(ten) if i != left_out]
            per_subset.append(min(1.0, sum(other == "yes" for other in others) / 3))
        assert answers.vqa_accuracy("Yes.", ten) == pytest.approx(sum(per_subset) / 10)
    assert answers.vqa_accuracy("yes", ["yes"] * 3 + ["no"] * 7) == pytest.approx(0.9)  # as every table of VQA v2 says


def test_vqa_accuracy_normalises_both_sides_and_checks() -> None:
    assert answers.vqa_accuracy("the two dogs", ["2 dogs", "two dogs.", "a 2 dogs", "2  dogs"] + ["cat"] * 6) == 1.0
    with pytest.raises(MetricError, match="ten answers"):
        answers.vqa_accuracy("yes", ["yes"])
    with pytest.raises(MetricError, match="ten answers"):
        answers.vqa_accuracy("yes", "yes yes yes")


def test_bootstrap_of_independent_values() -> None:
    values = np.random.default_rng(1).normal(2.0, 1.0, size=400)
    interval = bootstrap.bootstrap(values, repeats=2000)
    assert interval.mean == pytest.approx(values.mean()) and interval.count == 400
    half = 1.96 * values.std() / math.sqrt(400)  # the normal approximation
    assert interval.low == pytest.approx(values.mean() - half, abs=0.15 * half)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.15 * half)
    wider, narrower = bootstrap.bootstrap(values, level=0.99), bootstrap.bootstrap(values, level=0.5)
    assert wider.low < interval.low < narrower.low < narrower.high < interval.high < wider.high
    assert bootstrap.bootstrap(values) == bootstrap.bootstrap(values)
    assert bootstrap.bootstrap(values) != bootstrap.bootstrap(values, seed=1)


def test_bootstrap_draws_whole_groups() -> None:
    """Ten equal answers on each of 40 images tell no more than one: the interval is that of 40 values."""
    per_image = np.random.default_rng(2).random(40)
    values, groups = per_image.repeat(10), [f"image {i}" for i in range(40) for _ in range(10)]
    grouped = bootstrap.bootstrap(values, groups)
    single = bootstrap.bootstrap(per_image)
    # a little wider, since 40 groups show less certainly how much their answers agree
    assert (grouped.low, grouped.high) == pytest.approx((single.low, single.high), abs=0.003)
    assert grouped.low < single.low and grouped.high > single.high
    naive = bootstrap.bootstrap(values)
    assert grouped.high - grouped.low > 2.5 * (naive.high - naive.low)
    assert grouped.mean == pytest.approx(values.mean()) and grouped.count == 400


def test_bootstrap_of_unequal_groups_against_a_loop() -> None:
    """Means that are no shares: the wider of expanded percentiles and studentised ones, by plain loops."""
    rng = random.Random(3)
    groups = [rng.randrange(12) for _ in range(30)]
    values = [math.exp(rng.gauss(0, 1)) for _ in groups]
    members = [[v for v, g in zip(values, groups, strict=True) if g == name] for name in dict.fromkeys(groups)]
    count, mean = len(members), sum(values) / len(values)
    without = []  # the mean of all but one group
    for left_out in range(count):
        rest = [value for i, group in enumerate(members) if i != left_out for value in group]
        without.append(sum(rest) / len(rest))
    influence = [(count - 1) * (sum(without) / count - one) for one in without]
    generator, means, student = np.random.default_rng(7), [], []
    error = np.std(influence)
    for _ in range(300):
        drawn = generator.integers(count, size=count)
        several = [value for i in drawn for value in members[i]]
        means.append(sum(several) / len(several))
        student.append((means[-1] - mean) / np.std([influence[i] for i in drawn]))
    tail = stats.norm.cdf(-stats.t.ppf(0.975, count - 1) * math.sqrt(count / (count - 1)))
    low = min(np.quantile(means, tail), mean - np.quantile(student, 0.975) * error)
    high = max(np.quantile(means, 1 - tail), mean - np.quantile(student, 0.025) * error)
    interval = bootstrap.bootstrap(values, groups, repeats=300, seed=7)
    assert interval.low == pytest.approx(max(low, min(means))) and interval.low < np.quantile(means, 0.025)
    assert interval.high == pytest.approx(min(high, max(means))) and interval.high > np.quantile(means, 0.975)
    assert interval.mean == pytest.approx(mean)


def test_two_groups_give_no_wider_interval_than_their_draws() -> None:
    values, groups = [3.0, 5.0, 4.0, 9.0], ["a", "a", "b", "b"]
    interval = bootstrap.bootstrap(values, groups)
    assert (interval.low, interval.mean, interval.high) == (4.0, 5.25, 6.5)


@pytest.mark.parametrize("level", [0.9, 0.95, 0.99])
@pytest.mark.parametrize(("right", "count"), [(0, 60), (1, 60), (30, 60), (59, 60), (60, 60), (2, 2)])
def test_rates_without_groups_have_wilsons_interval(right: int, count: int, level: float) -> None:
    """Solved as it is defined: the rates whose distance from the observed one is z standard errors of their own."""
    z = stats.norm.ppf((1 + level) / 2)
    observed = right / count
    roots = np.roots([1 + z**2 / count, -2 * observed - z**2 / count, observed**2])
    interval = bootstrap.bootstrap([1] * right + [0] * (count - right), level=level)
    assert (interval.low, interval.high) == pytest.approx((min(roots), max(roots)), abs=1e-7)


def test_groups_that_agree_count_as_one_answer_each() -> None:
    """Near the rate of one answer a group; at 0 and 1, too, where nothing shows whether groups agree."""
    for right in (0, 3, 10, 15):
        each = [1.0] * right + [0.0] * (15 - right)
        grouped = bootstrap.bootstrap(np.repeat(each, 4), np.repeat(np.arange(15), 4).tolist())
        wilson = bootstrap.bootstrap(each)
        assert grouped.low <= wilson.low + 1e-12 and grouped.high >= wilson.high - 1e-12
        assert grouped.high - grouped.low < 1.12 * (wilson.high - wilson.low)


@pytest.mark.parametrize(
    ("values", "shares"),
    [([0.25, 0.5, 0.75], None), ([0.0, 1.0, 1.0], True), ([0.0, 1.0, 1.0], None)],
)
def test_shares_stay_between_0_and_1(values: list[float], shares: bool | None) -> None:
    interval = bootstrap.bootstrap(values, shares=shares)
    assert 0 <= interval.low < interval.mean < interval.high <= 1
    assert interval != bootstrap.bootstrap(values, shares=False)


def test_values_between_0_and_1_that_vary_less_than_right_and_wrong() -> None:
    values = np.random.default_rng(1).uniform(0.4, 0.6, size=100)
    interval = bootstrap.bootstrap(values)
    half = 1.96 * values.std() / 10  # the normal approximation
    assert (interval.low, interval.high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.03 * half)


@pytest.mark.parametrize("value", [0.5, 0.1, 0.3, 0.999])
@pytest.mark.parametrize(("count", "size"), [(3, 1), (7, 1), (60, 4)])
def test_equal_values_do_not_make_the_mean_certain(value: float, count: int, size: int) -> None:
    """They show no variance. Wilson's interval of as many observations as groups; wider where groups are few."""
    interval = bootstrap.bootstrap([value] * count, [i // size for i in range(count)])
    groups = count // size
    centre, square = value + 1.96**2 / (2 * groups), 1.96**2 / groups
    half = 1.96 * np.sqrt(value * (1 - value) / groups + 1.96**2 / (4 * groups**2))
    low, high = (centre - half) / (1 + square), (centre + half) / (1 + square)
    assert interval.mean == pytest.approx(value)
    if size == 1:
        assert (interval.low, interval.high) == pytest.approx((low, high), abs=1e-3)
    assert 0 <= interval.low <= low + 1e-3 and high - 1e-3 <= interval.high <= 1


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 5, 14, 59, 300, 301, 1000])
@pytest.mark.parametrize("level", [0.5, 0.9, 0.95, 0.99])
def test_students_quantiles(freedom: int, level: float) -> None:
    assert student_quantile(level, freedom) == pytest.approx(stats.t.ppf((1 + level) / 2, freedom), rel=1e-6)


def test_coverage_of_rates_near_0_and_1_and_of_few_groups() -> None:
    """Exact, over all outcomes: from 93 to 97 of 100 intervals enclose the true rate."""
    alone, grouped = Rates(60, 1), Rates(15, 4)
    found = {("alone", rate): alone.coverage(rate) for rate in (0.02, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 0.98)}
    for rate in (0.02, 0.05, 0.2, 0.3, 0.5, 0.7, 0.8, 0.95, 0.98):
        for correlation in (0.0, 0.1, 0.3, 0.5):
            found[rate, correlation] = grouped.coverage(rate, correlation)
    assert len(found) == 44
    assert {key: value for key, value in found.items() if not 0.93 <= value <= 0.97} == {}
    # the percentile bootstrap, as it was
    percentile = Rates(15, 4, percentile=True)
    assert percentile.coverage(0.98, 0.1) < 0.75 and percentile.coverage(0.1, 0.1) < 0.93


@pytest.mark.parametrize(("kind", "groups", "size"), [("mostly zero", 15, 4), ("ratio", 15, 4), ("normal", 60, 1)])
def test_coverage_of_other_scores(kind: str, groups: int, size: int) -> None:
    """250 random sets; `benchmarks/intervals.py` has thousands."""
    interval, percentile = sampled_coverage(kind, groups, size, sets=250, repeats=300)
    assert 0.92 <= interval <= 0.98 and interval > percentile


def test_bootstrap_of_one_group_has_no_spread() -> None:
    assert bootstrap.bootstrap([0.0, 1.0], ["x", "x"]) == bootstrap.Interval(0.5, 0.5, 0.5, 2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"values": []}, "no values"),
        ({"values": [1.0, 2.0], "groups": ["a"]}, "2 values but 1 groups"),
        ({"values": [1.0, math.nan]}, "value 1 is not a finite number"),
        ({"values": np.zeros((2, 2))}, "shape"),
        ({"values": [1.0], "repeats": 0}, "repeats"),
        ({"values": [1.0], "level": 95}, "level"),
    ],
)
def test_bootstrap_refuses(arguments: dict, message: str) -> None:
    with pytest.raises(MetricError, match=message):
        bootstrap.bootstrap(**arguments)


def test_score_answers() -> None:
    predictions = ["yes", "no", "left lung", "", "two"]
    references = [["Yes"], ["yes"], ["left upper lung", "chest"], ["mass"], ["2"]]
    types = ["CLOSED ", "closed", "OPEN", "open", "open"]
    scores = answers.score_answers(predictions, references, types, groups=["a", "a", "b", "c", "c"], seed=3)
    assert {name: set(kinds) for name, kinds in scores.items()} == {
        name: {"closed", "open", "all"} for name in ("exact_match", "token_recall", "token_f1", "bleu1")
    }
    exact = scores["exact_match"]
    assert [exact[kind].mean for kind in ("closed", "open", "all")] == pytest.approx([1 / 2, 1 / 3, 2 / 5])
    assert [exact[kind].count for kind in ("closed", "open", "all")] == [2, 3, 5]
    assert scores["token_recall"]["open"].mean == pytest.approx((2 / 3 + 0 + 1) / 3)
    assert exact["closed"].low == exact["closed"].high == 0.5  # both answers are on image a
    assert exact["open"] == bootstrap.bootstrap([0.0, 0.0, 1.0], ["b", "c", "c"], seed=3)
    loaded = json.loads(json.dumps(bootstrap.as_json(scores)))
    assert loaded["exact_match"]["all"] == {
        "mean": 0.4,
        "low": exact["all"].low,
        "high": exact["all"].high,
        "count": 5,
    }


def test_score_answers_refuses() -> None:
    with pytest.raises(MetricError, match="2 predictions, 1 references, 2 answer types"):
        answers.score_answers(["a", "b"], [["a"]], ["open", "open"])
    with pytest.raises(MetricError, match="1 groups"):
        answers.score_answers(["a", "b"], [["a"], ["b"]], ["open", "open"], groups=["x"])
    with pytest.raises(MetricError, match="no values"):
        answers.score_answers([], [], [])


def test_an_answer_of_several_categories_counts_under_each() -> None:
    given = ["yes", "no", "left", "4"], [["yes"], ["yes"], ["left"], ["5"]]
    scores = answers.score_answers(*given, ["PRES ", "attrib+pres", "attrib", ""], groups=["a", "a", "b", "b"], seed=3)
    exact = scores["exact_match"]
    assert {kind: (x.mean, x.count) for kind, x in exact.items()} == {
        "attrib": (0.5, 2), "pres": (0.5, 2), "all": (0.5, 4),
    }  # fmt: skip
    assert exact["attrib"] == bootstrap.bootstrap([0, 1], ["a", "b"], seed=3)


def test_as_json_of_arrays_and_tuples() -> None:
    mixed = {1: (np.float64(0.5), np.arange(2)), "none": None}
    assert json.loads(json.dumps(bootstrap.as_json(mixed))) == {"1": [0.5, [0, 1]], "none": None}


def test_ranking_scores_by_hand() -> None:
    scores = ranking.ranking_scores([0, 4, 5, 0, 19, 9], candidates=20)
    assert scores == pytest.approx(
        {"r1": 2 / 6, "r5": 3 / 6, "r10": 5 / 6, "median_rank": 5.5, "candidates": 20, "chance_r1": 1 / 20}
    )
    median = ranking.ranking_scores([2, 0, 1], 3)["median_rank"]
    assert median == 2 and isinstance(median, int), "a count, not a share"
    kinds = {name: type(value) for name, value in ranking.ranking_scores([0, 4], 20).items()}
    assert kinds == {"r1": float, "r5": float, "r10": float, "median_rank": int, "candidates": int, "chance_r1": float}
    assert ranking.ranking_scores([2, 0, 1], 3)["r10"] == 1.0  # k beyond the candidates


def test_chance_is_what_a_random_order_scores() -> None:
    rng = np.random.default_rng(0)
    candidates, right = 6, 2
    ranks = [int(rng.permutation(candidates)[:right].min()) for _ in range(20_000)]
    scores = ranking.ranking_scores(np.array(ranks), candidates, positives=[right] * len(ranks))
    assert scores["chance_r1"] == pytest.approx(1 / 3)
    assert scores["r1"] == pytest.approx(scores["chance_r1"], abs=0.015)


@pytest.mark.parametrize(
    ("ranks", "positives", "message"),
    [([], None, "no queries"), ([3], None, "rank 3"), ([-1], None, "rank -1"), ([0], [1, 1], "1 ranks but 2")],
)
def test_ranking_scores_refuses(ranks: list[int], positives: list[int] | None, message: str) -> None:
    with pytest.raises(MetricError, match=message):
        ranking.ranking_scores(ranks, candidates=3, positives=positives)
