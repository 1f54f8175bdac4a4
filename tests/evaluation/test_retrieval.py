"""Re-ranking grouped by image equals scoring pair by pair; its metrics equal counting by hand; two processes agree."""

import json
import statistics
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.retrieval_set import CASES, SETS, SPECIALS, build, evaluate, make_set, process, source
from helpers.running import start_two
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from blip.evaluation import ranking as ranks
from blip.evaluation import retrieval
from blip.hardware.profile import PROFILES
from blip.models.retrieval import RetrievalModel
from blip.network.packing import Rows

CPU = torch.device("cpu")


def one(length: int) -> Rows:
    return Rows(torch.tensor([length]), length, CPU)


@torch.no_grad()
def slow_scores(model: RetrievalModel, pixels: Tensor, texts: retrieval.Texts) -> tuple[Tensor, Tensor]:
    """Every image with every text, one pair at a time: cosines and cosine + match logit, (I, M) each."""
    model.eval()
    cosines, scores = torch.zeros(2, len(pixels), len(texts.ids))
    for i, image in enumerate(pixels):
        states = model.image_encoder(image[None])
        for t, (row, length) in enumerate(zip(texts.ids, texts.lengths.tolist(), strict=True)):
            ids = row[None, :length].clone()
            alone = model.text_encoder.text(ids, one(length))[:1]
            ids[0, 0] = SPECIALS.enc
            seen = model.text_encoder.multimodal(ids, one(length), model.text_encoder.image_keys(states))[:1]
            image_feature = F.normalize(model.image_proj(states[:, 0]), dim=-1)
            cosines[i, t] = (image_feature * F.normalize(model.text_proj(alone), dim=-1)).sum()
            scores[i, t] = cosines[i, t] + model.itm_head(seen)[0, 1]
    return cosines, scores


def slow_order(cosines: Tensor, scores: Tensor, k: int) -> list[int]:
    """All candidates of one query: the k with the largest cosine by score, then the others by cosine."""
    by_cosine = sorted(range(len(cosines)), key=lambda c: -cosines[c].item())
    return sorted(by_cosine[:k], key=lambda c: -scores[c].item()) + by_cosine[k:]


@pytest.mark.parametrize("k", [1, 3, 7, 100])
def test_grouped_equals_pair_by_pair(k: int) -> None:
    pixels, texts = make_set(*SETS["uneven"])
    cosines, scores = slow_scores(build(), pixels, texts)
    found = evaluate("uneven", k)
    both = [(found.image_to_text, cosines, scores), (found.text_to_image, cosines.T, scores.T)]
    for ranking, expected_cosines, expected in both:
        candidates = expected.shape[1]
        assert ranking.candidates.shape == (len(expected), min(k, candidates))
        for query, row in enumerate(ranking.candidates.tolist()):
            assert row == slow_order(expected_cosines[query], expected[query], k)[: len(row)]
        assert_close(ranking.scores, expected.gather(1, ranking.candidates), rtol=0, atol=1e-5)


@pytest.mark.parametrize("k", [1, 3, 100])
def test_metrics_equal_counting_by_hand(k: int) -> None:
    pixels, texts = make_set(*SETS["uneven"])
    cosines, scores = slow_scores(build(), pixels, texts)
    metrics = evaluate("uneven", k).metrics
    right = torch.zeros_like(cosines, dtype=torch.bool)
    for t, several in enumerate(texts.images):
        right[several, t] = True
    assert right.sum(dim=1).tolist()[-1] == 0, "an image without text must be in this test"
    assert right.sum(dim=0).max() == 2, "a text of two images must be in this test"
    for way, turned in (("i2t", False), ("t2i", True)):
        cosine, score, answer = (x.T if turned else x for x in (cosines, scores, right))
        queries = [q for q in range(len(answer)) if answer[q].any()]
        for name in ("itc", "itm"):
            orders = {q: slow_order(cosine[q], score[q] if name == "itm" else cosine[q], k) for q in queries}
            places = [min(p for p, c in enumerate(orders[q]) if answer[q, c]) for q in queries]
            recalls = [sum(p < n for p in places) / len(places) for n in (1, 5, 10)]
            found = [metrics[f"{name}_{way}_r{n}"] for n in (1, 5, 10)]
            assert found == pytest.approx(recalls)
            assert metrics[f"{name}_{way}_r_mean"] == pytest.approx(sum(recalls) / 3)
            assert metrics[f"{name}_{way}_median_rank"] == statistics.median(places) + 1
        assert metrics[f"{way}_candidates"] == answer.shape[1]
        assert metrics[f"{way}_chance_r1"] == pytest.approx(answer[queries].float().mean().item())
    assert metrics["itm_r_mean"] == pytest.approx((metrics["itm_i2t_r_mean"] + metrics["itm_t2i_r_mean"]) / 2)


def test_a_pair_is_scored_once_and_an_image_projected_once(monkeypatch: pytest.MonkeyPatch) -> None:
    scored: list[int] = []
    match_texts = retrieval.match_texts

    def counting(model: Any, keys: Any, texts: Any, *, chosen: Tensor, device: Any) -> Tensor:
        assert len(chosen.unique()) == len(chosen)
        scored.append(len(chosen))
        return match_texts(model, keys, texts, chosen=chosen, device=device)

    monkeypatch.setattr(retrieval, "match_texts", counting)
    found = evaluate("uneven", 3)
    pairs = {(i, t) for i, row in enumerate(found.image_to_text.candidates.tolist()) for t in row}
    wanted = found.image_to_text.candidates.numel() + found.text_to_image.candidates.numel()
    pairs |= {(i, t) for t, row in enumerate(found.text_to_image.candidates.tolist()) for i in row}
    assert sum(scored) == len(pairs) < wanted
    assert len(scored) == len({i for i, _ in pairs})


@pytest.mark.parametrize("tokens", [1, 12, 40])
def test_texts_of_an_image_may_come_in_parts(tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = evaluate("uneven", 5)
    monkeypatch.setitem(PROFILES, "cpu", replace(PROFILES["cpu"], tokens_at_once=tokens, texts_at_once=2))
    parts = evaluate("uneven", 5)
    assert torch.equal(parts.image_to_text.candidates, whole.image_to_text.candidates)
    assert_close(parts.text_to_image.scores, whole.text_to_image.scores, rtol=0, atol=1e-5)


def test_states_are_not_kept() -> None:
    """No more than the batch at work and the next one exist at a time."""
    pixels, texts = make_set(*SETS["uneven"])
    model, alive, most = build(), [], 0

    def watch(_: Any, __: Any, states: Tensor) -> None:
        nonlocal most
        alive.append(weakref.ref(states))
        most = max(most, sum(ref() is not None for ref in alive))

    model.image_encoder.register_forward_hook(watch)
    retrieval.evaluate_retrieval(model, source(pixels), len(pixels), texts=texts, device=CPU, k=5, batch_size=1)
    assert len(alive) == 2 * len(pixels)  # for the features, then for matching
    assert most <= 2


def test_training_mode_is_kept_and_dropout_is_off() -> None:
    pixels, texts = make_set(*SETS["uneven"])
    model = build().train()
    found = retrieval.evaluate_retrieval(model, source(pixels), len(pixels), texts=texts, device=CPU, k=3)
    assert model.training
    assert torch.equal(found.image_to_text.candidates, evaluate("uneven", 3).image_to_text.candidates)


@pytest.mark.parametrize("rows", [1, 2, 100])
def test_ranking_a_few_queries_at_a_time_changes_nothing(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a sort of everything at once, with many equal similarities and a query without right answers."""
    monkeypatch.setitem(PROFILES, "cpu", replace(PROFILES["cpu"], rows_at_once=rows))
    queries, candidates = torch.randint(-1, 2, (7, 3)).float(), torch.randint(-1, 2, (20, 3)).float()
    answers = [[3], [19, 0, 7], [], [5, 6], [1], [2, 2], [18]]
    found, places = retrieval.by_contrast(queries, candidates, 6, answers=answers)
    similarity = queries @ candidates.T
    right = torch.zeros(7, 20, dtype=torch.bool)
    for query in range(7):
        order = sorted(range(20), key=lambda c: (-similarity[query, c].item(), c))
        assert found.candidates[query].tolist() == order[:6]
        assert found.scores[query].tolist() == similarity[query, order[:6]].tolist()
        assert places[query] == min((order.index(a) for a in answers[query]), default=20)
        right[query, answers[query]] = True
    by_hand = {k: sum(place < k for place in places.tolist()) / 7 for k in (1, 5, 10)}
    assert ranks.recall_at(similarity, right) == by_hand
    assert ranks.recall_of_set(queries, candidates, right.__getitem__) == by_hand


def test_equal_similarities_keep_their_order() -> None:
    queries, candidates = torch.ones(1, 4), torch.ones(5, 4)
    ranking, ranks = retrieval.by_contrast(queries, candidates, 3, answers=[[4, 2]])
    assert ranking.candidates.tolist() == [[0, 1, 2]]
    assert ranks.tolist() == [2]
    assert retrieval.ranks_after(
        retrieval.Ranking(torch.tensor([[2, 0, 1]]), ranking.scores), ranks, [[4, 2]]
    ).tolist() == [0]
    assert retrieval.ranks_after(ranking, torch.tensor([4]), [[4]]).tolist() == [4]


def test_lists_can_be_written(tmp_path: Path) -> None:
    found = evaluate("uneven", 3)
    (tmp_path / "lists.json").write_text(json.dumps(found.as_json()))
    read = json.loads((tmp_path / "lists.json").read_text())
    assert read["metrics"] == found.metrics
    assert read["text_to_image"][4]["candidates"] == found.text_to_image.candidates[4].tolist()
    assert read["image_to_text"][0]["scores"] == pytest.approx(found.image_to_text.scores[0].tolist(), abs=1e-6)


def test_two_processes_find_the_same(tmp_path: Path) -> None:
    alone = [evaluate(name, k) for name, k in CASES]
    for found in start_two(process, tmp_path):
        for mine, expected in zip(found, alone, strict=True):
            assert mine.metrics == expected.metrics
            for ranking, other in (
                (mine.image_to_text, expected.image_to_text),
                (mine.text_to_image, expected.text_to_image),
            ):
                assert torch.equal(ranking.candidates, other.candidates)
                assert_close(ranking.scores, other.scores, rtol=0, atol=1e-5)


BAD = {
    "no candidates": (dict(k=0), "7 images and k is 0"),
    "no images": (dict(count=0), "0 images and k is 3"),
    "unknown image": (dict(count=3), "describes image 3, but the images are numbered from 0 to 2"),
    "too few images": (dict(source=lambda numbers: iter([])), "fewer than were asked for: they gave 0 results of 7"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_sets_are_named(case: str) -> None:
    changed, message = BAD[case]
    pixels, texts = make_set(*SETS["uneven"])
    arguments = {"k": 3, "count": 7, "source": source(pixels), **changed}
    with pytest.raises(ValueError, match=message):
        retrieval.evaluate_retrieval(
            build(), arguments["source"], arguments["count"], texts=texts, device=CPU, k=arguments["k"]
        )


def test_states_that_end_early_are_noticed() -> None:
    pixels, texts = make_set(*SETS["uneven"])
    model, pairs = build().eval(), torch.tensor([[0, 0], [1, 0], [1, 3]])
    states = retrieval.image_states(model, source(pixels), CPU)

    def short(numbers: Any) -> Any:
        return list(states(numbers))[:1]

    with torch.no_grad(), pytest.raises(ValueError, match="they gave 1 results of 3"):
        retrieval.match_pairs(model, short, texts, pairs=pairs, device=CPU, batch_size=1)


@pytest.mark.parametrize(
    ("count", "lengths", "images", "message"),
    [(0, 0, 0, "there are no texts"), (3, 2, 3, "3 texts, 2 lengths"), (3, 3, 2, "2 lists of images")],
)
def test_texts_belong_together(count: int, lengths: int, images: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        retrieval.Texts(torch.ones(count, 4), torch.ones(lengths), [[0]] * images)
