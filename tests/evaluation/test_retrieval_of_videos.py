"""Retrieval of items of several pictures against the published evaluation of videos, written out plainly.

Of each video: the projected CLS of its frames, their mean, scaled (ITC); the tokens of all frames in one sequence, to
which a text attends, match logit plus cosine for the k nearest (ITM).
"""

from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch
from helpers.retrieval_set import SPECIALS, build
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from blip.evaluation import retrieval
from blip.evaluation.pretraining import match_each_and_shifted
from blip.models.scorers import scorer_of
from blip.network.packing import Rows
from blip.network.pictures import Pictures, beside_one_another, encode

VIDEOS, K = 30, 6


@pytest.fixture(scope="module")
def videos() -> list[Tensor]:
    """Of one to five frames each."""
    g = torch.Generator().manual_seed(1)
    return [torch.randn(1 + i % 5, 3, 32, 32, generator=g) for i in range(VIDEOS)]


@pytest.fixture(scope="module")
def texts() -> retrieval.Texts:
    """Row i belongs to video i."""
    g = torch.Generator().manual_seed(2)
    lengths = torch.randint(3, 10, (VIDEOS,), generator=g)
    ids = torch.randint(1, 48, (VIDEOS, 9), generator=g).masked_fill(torch.arange(9) >= lengths[:, None], SPECIALS.pad)
    return retrieval.Texts(ids, lengths, [[i] for i in range(VIDEOS)])


@torch.no_grad()
def published(videos: list[Tensor], texts: retrieval.Texts) -> tuple[Tensor, Tensor]:
    """(cosines of texts (30) to videos (30), their scores after matching, -100 where nothing was matched)."""
    model = build().eval()
    video_feats, video_embeds = [], []
    for frames in videos:
        embeds = model.image_encoder(frames)  # (F, N, D)
        feats = model.image_proj(embeds[:, 0, :]).mean(dim=0)
        video_feats.append(F.normalize(feats, dim=-1))
        video_embeds.append(embeds.reshape(1, -1, embeds.shape[-1]))
    text_feats, rows = [], []
    for ids, length in zip(texts.ids, texts.lengths.tolist(), strict=True):
        one = Rows(torch.tensor([length]), length, ids.device)
        text_feats.append(F.normalize(model.text_proj(model.text_encoder.text(ids[None, :length], one)[0]), dim=-1))
        rows.append((ids[None, :length].clone(), one))
        rows[-1][0][0, 0] = SPECIALS.enc
    sims = torch.stack(text_feats) @ torch.stack(video_feats).T
    scores = torch.full_like(sims, -100.0)
    for t, (ids, one) in enumerate(rows):
        topk_sim, topk_idx = sims[t].topk(K)
        for sim, v in zip(topk_sim, topk_idx.tolist(), strict=True):
            output = model.text_encoder.multimodal(ids, one, model.text_encoder.image_keys(video_embeds[v]))
            scores[t, v] = model.itm_head(output[:1])[0, 1] + sim
    return sims, scores


def ranks_of(scores: Tensor) -> np.ndarray:
    """The place of video i in the list of text i, as published."""
    found = np.zeros(VIDEOS)
    for index, score in enumerate(scores.numpy()):
        inds = np.argsort(score)[::-1]
        found[index] = np.where(inds == index)[0][0]
    return found


def test_text_to_video(videos: list[Tensor], texts: retrieval.Texts) -> None:
    sims, scores = published(videos, texts)
    held: list[int] = []

    def images(numbers: Sequence[Sequence[int]]) -> Iterator[Tensor | Pictures]:
        for batch in numbers:
            held.append(len(batch))
            yield beside_one_another([videos[i][0] if len(videos[i]) == 1 else videos[i] for i in batch])

    found = retrieval.evaluate_retrieval(
        build(), images, VIDEOS, texts=texts, device=torch.device("cpu"), k=K, batch_size=4
    )
    assert max(held) == 4  # videos in memory
    ranking = found.text_to_image
    assert_close(ranking.scores, scores.gather(1, ranking.candidates), rtol=0, atol=1e-5)
    assert torch.equal(ranking.candidates.sort(dim=1).values, sims.topk(K).indices.sort(dim=1).values)
    itm, itc = ranks_of(scores), ranks_of(sims)
    kept = scores.diagonal() > -100  # a right video that was not matched ranks behind those that were
    assert 3 < int(kept.sum()) < VIDEOS
    for name, places in (("itm", np.where(kept, itm, itc)), ("itc", itc)):
        for n in (1, 5, 10):
            assert found.metrics[f"{name}_t2i_r{n}"] == pytest.approx((places < n).mean())
        assert found.metrics[f"{name}_t2i_median_rank"] == np.median(places) + 1


def test_validation_of_pre_training(videos: list[Tensor], texts: retrieval.Texts) -> None:
    """Every item with its own text and with its neighbour's, in a batch as alone."""
    model = build().eval()
    scorer, other = scorer_of(model), torch.arange(4).roll(1)
    some = beside_one_another([videos[i] for i in (1, 0, 4, 2)])
    ids, lengths = texts.ids[:4], texts.lengths[:4]
    with torch.no_grad():
        seen = scorer.see(encode(model.image_encoder, some))
        matched, shifted = match_each_and_shifted(scorer, seen.keys, ids, lengths=lengths, other=other)
        for row, video in enumerate((1, 0, 4, 2)):
            keys = scorer.image_keys(encode(model.image_encoder, videos[video][None]))
            for found, text in ((matched, row), (shifted, int(other[row]))):
                alone = scorer.match_logits(ids[text : text + 1], lengths[text : text + 1], keys)
                assert_close(found[row : row + 1], alone, rtol=0, atol=1e-5)
