"""Image-text retrieval over a whole set: contrast finds k candidates for each query, matching puts them in order.

The published evaluation (Li et al. 2022, section 5.1), with the same scores: raw cosine plus match logit. Only the
order of work differs. The candidate pairs of both directions are joined and grouped by image: a pair that occurs in
both is scored once, the keys of an image are projected once, and its texts lie side by side on the query axis. Images
are streamed, so that no more than one batch of states is in memory.

Shapes: I images, M texts, E embedding width, T text tokens, N image tokens, D width, Q queries, C candidates to choose
from, k chosen ones, P pairs, B images of a batch.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from blip import distributed
from blip.distributed import share
from blip.errors import InputError
from blip.evaluation.losses import contrast_of_set
from blip.evaluation.ranking import ranking_scores
from blip.evaluation.retrieval_losses import Scored, matching_of_set, positives_of
from blip.evaluation.retrieval_set import Batches, Ranking, Retrieval, Texts, by_contrast, ranks_after
from blip.hardware.profile import profile_of
from blip.models.scorers import AnyMatcher, scorer_of
from blip.network.cross_attention import ProjectedKeys
from blip.network.packing import Rows
from blip.network.pictures import States, encode

# ---- the whole evaluation --------------------------------------------------------------------------------------------


@torch.no_grad()
def evaluate_retrieval(
    model: AnyMatcher,
    images: Batches,
    count: int,
    *,
    texts: Texts,
    device: torch.device,
    k: int = 128,
    batch_size: int = 16,
    losses: bool = False,
) -> Retrieval:
    """Retrieval in both directions, by contrast alone (`itc_...`) and after matching (`itm_...`).

    Texts or images that are not among the k candidates rank after them, in the order of contrast. Images without text
    and texts without image are wrong answers to other queries, but are no queries.

    Args:
        images: pixels of batches of images, called with the numbers that this process needs; see `Batches`.
        count: I, the images of the set.
        texts: all texts of the set, in every process.
        k: candidates of a query that matching puts in order; all, if there are fewer.
        batch_size: images encoded at once.
        losses: adds the losses `loss`, `itc` and `itm`; see `contrast_of_set` and `matching_of_set`.

    Returns:
        In every process, R@1, R@5, R@10 (`itc_i2t_r1`, `itm_t2i_r5` ...), the mean of the three of a direction and of
        all six (`itm_i2t_r_mean`, `itm_r_mean`), `itm_i2t_median_rank`, and `i2t_candidates` and `i2t_chance_r1`, which
        do not depend on the model.

    Raises:
        InputError: no images or candidates, a text of an unknown image, fewer images than `count`.
    """
    if count < 1 or k < 1:
        raise InputError(f"there are {count} images and k is {k}: both must be 1 or more")
    image_answers, text_answers = _right_answers(texts, count)
    sizes: dict[str, Any] = {"device": device, "batch_size": batch_size}
    training = model.training  # type: ignore[union-attr]
    model.eval()  # type: ignore[union-attr]
    try:
        image_features, text_features = retrieval_features(model, images, count, texts=texts, **sizes)
        forward, forward_ranks = by_contrast(image_features, text_features, k, answers=image_answers)
        backward, backward_ranks = by_contrast(text_features, image_features, k, answers=text_answers)
        states = image_states(model, images, device)
        by: dict[str, Any] = {"image_to_text": forward, "text_to_image": backward}
        scored = score_candidates(model, states, texts, **by, **sizes)
        itm = matching_of_set(
            scored, texts, **by, answers=(image_answers, text_answers),
            score=lambda pairs: match_pairs(model, states, texts, pairs=pairs, **sizes),
        ) if losses else 0.0  # fmt: skip
        forward, backward = in_order(scored, len(texts.ids), **by)
    finally:
        model.train(training)  # type: ignore[union-attr]
    metrics = _direction("i2t", forward, forward_ranks, answers=image_answers, candidates=len(texts.ids))
    metrics |= _direction("t2i", backward, backward_ranks, answers=text_answers, candidates=count)
    metrics |= {f"{n}_r_mean": (metrics[f"{n}_i2t_r_mean"] + metrics[f"{n}_t2i_r_mean"]) / 2 for n in ("itc", "itm")}
    positives = positives_of(image_answers, len(texts.ids))
    contrast = contrast_of_set(image_features, text_features, positives, float(model.temperature))
    if losses:
        metrics |= {"loss": contrast.loss + itm, "itc": contrast.loss, "itm": itm}
    return Retrieval(metrics, forward, backward, ranks_after(forward, forward_ranks, image_answers), contrast.histogram)


def _right_answers(texts: Texts, count: int) -> tuple[list[list[int]], list[list[int]]]:
    """The texts of each of `count` images, and the images of each text."""
    if stray := [i for several in texts.images for i in several if not 0 <= i < count]:
        raise InputError(f"a text describes image {stray[0]}, but the images are numbered from 0 to {count - 1}")
    images_of = [sorted(set(several)) for several in texts.images]
    texts_of: list[list[int]] = [[] for _ in range(count)]
    for number, images in enumerate(images_of):
        for image in images:
            texts_of[image].append(number)
    return texts_of, images_of


def _direction(
    way: str, ranking: Ranking, ranks: Tensor, *, answers: Sequence[Sequence[int]], candidates: int
) -> dict[str, float]:
    """The scores of one direction: `ranks` (Q,) by contrast, `ranking` after matching."""
    metrics: dict[str, float] = {}
    queries = [q for q, right in enumerate(answers) if right]
    for name, places in (("itc", ranks), ("itm", ranks_after(ranking, ranks, answers))):
        positives = [len(answers[q]) for q in queries]
        scores = ranking_scores(places[queries].tolist(), candidates, positives=positives)
        for shared in ("candidates", "chance_r1"):
            metrics[f"{way}_{shared}"] = scores.pop(shared)
        scores["r_mean"] = (scores["r1"] + scores["r5"] + scores["r10"]) / 3
        metrics |= {f"{name}_{way}_{key}": value for key, value in scores.items()}
    return metrics


def retrieval_features(
    model: AnyMatcher, images: Batches, count: int, *, texts: Texts, device: torch.device, batch_size: int = 16
) -> tuple[Tensor, Tensor]:
    """Features of unit length of all images (I, E), of BLIP-2 (I, Q, E), and texts (M, E); each process encodes its
    share."""
    own = range(*share(count))
    numbers = [list(own[first : first + batch_size]) for first in range(0, len(own), batch_size)]
    scorer = scorer_of(model)
    image_parts = [scorer.image_features(pixels.to(device, non_blocking=True)) for pixels in images(numbers)]
    order = texts.lengths.argsort(stable=True)  # texts of similar length together need little padding
    text_parts = []
    for chosen in _split(order[slice(*share(len(order)))], profile_of(device).texts_at_once):
        ids, rows = _laid_out(texts, chosen, device)
        text_parts.append(scorer.text_features(ids, rows))
    image_features, text_features = _gathered(image_parts, count), _gathered(text_parts, len(order))
    text_features = torch.empty_like(text_features).index_copy_(0, order, text_features)
    return image_features.to(device), text_features.to(device)


# ---- matching --------------------------------------------------------------------------------------------------------


@torch.no_grad()
def rerank(
    model: AnyMatcher,
    states: Batches,
    texts: Texts,
    *,
    image_to_text: Ranking,
    text_to_image: Ranking,
    device: torch.device,
    batch_size: int = 16,
) -> tuple[Ranking, Ranking]:
    """Both rankings with score = cosine + match logit, in the order of that score.

    Args:
        states: of batches of images, see `Batches` and `image_states`.
        texts: all texts of the set.
        image_to_text, text_to_image: candidates by contrast, with cosines as scores.
        batch_size: images requested at once.
    """
    by: dict[str, Any] = {"image_to_text": image_to_text, "text_to_image": text_to_image}
    return in_order(
        score_candidates(model, states, texts, **by, device=device, batch_size=batch_size), len(texts.ids), **by
    )


def score_candidates(
    model: AnyMatcher,
    states: Batches,
    texts: Texts,
    *,
    image_to_text: Ranking,
    text_to_image: Ranking,
    device: torch.device,
    batch_size: int = 16,
) -> Scored:
    """The pairs of both rankings, each scored once. Arguments as in `rerank`."""
    count = len(texts.ids)
    forward, backward = pair_numbers(image_to_text, text_to_image, count)
    wanted = torch.cat([forward.flatten(), backward.flatten()]).unique()  # (P,) in the order of images
    pairs = torch.stack([wanted // count, wanted % count], dim=1)
    return Scored(wanted, match_pairs(model, states, texts, pairs=pairs, device=device, batch_size=batch_size))


def pair_numbers(image_to_text: Ranking, text_to_image: Ranking, count: int) -> tuple[Tensor, Tensor]:
    """The numbers of the candidates of images (I, k) and of the `count` texts (M, k) as pairs, see `Scored`."""
    forward = torch.arange(len(image_to_text.candidates))[:, None] * count + image_to_text.candidates
    return forward, text_to_image.candidates * count + torch.arange(count)[:, None]


def in_order(scored: Scored, count: int, *, image_to_text: Ranking, text_to_image: Ranking) -> tuple[Ranking, Ranking]:
    """Both rankings of `count` texts, in the order of cosine + match logit."""

    def reordered(ranking: Ranking, numbers: Tensor) -> Ranking:
        scores = ranking.scores + scored.of(numbers)[..., 1]
        scores, order = scores.sort(dim=1, descending=True, stable=True)
        return Ranking(ranking.candidates.gather(1, order), scores)

    forward, backward = pair_numbers(image_to_text, text_to_image, count)
    return reordered(image_to_text, forward), reordered(text_to_image, backward)


def match_pairs(
    model: AnyMatcher, states: Batches, texts: Texts, *, pairs: Tensor, device: torch.device, batch_size: int = 16
) -> Tensor:
    """Match logits (P, 2) of pairs (P, 2), the numbers of an image and of a text, sorted by image.

    Each process scores an equal share of the pairs: an image whose pairs are divided is encoded by two processes.
    """
    own = pairs[slice(*share(len(pairs)))]
    numbers, counts = own[:, 0].unique_consecutive(return_counts=True)
    members = iter(own[:, 1].split(counts.tolist()))
    parts = []
    for batch in states([part.tolist() for part in _split(numbers, batch_size)]):
        for one in batch.split(1):
            keys = scorer_of(model).image_keys(one)
            parts.append(match_texts(model, keys, texts, chosen=next(members), device=device))
    return _gathered(parts, len(pairs))


def match_texts(
    model: AnyMatcher, keys: ProjectedKeys, texts: Texts, *, chosen: Tensor, device: torch.device
) -> Tensor:
    """Match logits (c, 2), in float32, of the texts `chosen` (c,), on the CPU, with the one image of `keys`.

    The device is not waited for.
    """
    lengths = texts.lengths[chosen]
    order = lengths.argsort(stable=True)
    room = max(1, profile_of(device).tokens_at_once // int(lengths.max()))
    parts = []
    for part in order.split(room):
        ids, _ = _laid_out(texts, chosen[part], device)
        parts.append(scorer_of(model).match_logits(ids, lengths[part], keys).float())
    order = order.to(device, non_blocking=True)
    return torch.empty(len(chosen), 2, device=device).index_copy_(0, order, torch.cat(parts))


def image_states(model: AnyMatcher, images: Batches, device: torch.device) -> Batches:
    """States of the images whose pixels `images` gives, encoded on request and not kept."""

    def states(numbers: Sequence[Sequence[int]]) -> Iterator[States]:
        for pixels in images(numbers):
            yield encode(model.image_encoder, pixels.to(device, non_blocking=True))

    return states


# ---- helpers ---------------------------------------------------------------------------------------------------------


def _split(x: Tensor, size: int) -> list[Tensor]:
    """As `Tensor.split`, but no part for an empty tensor."""
    return list(x.split(size)) if len(x) else []


def _gathered(parts: list[Tensor], count: int) -> Tensor:
    """Tensors of all processes, concatenated, on the CPU; a process may have none. Together they have `count` rows."""
    own = [torch.cat(parts).cpu()] if parts else []  # the one wait for the device
    everyone = [t for several in distributed.gather_objects(own) for t in several]
    if (received := sum(len(t) for t in everyone)) != count:
        raise InputError(f"the images that came are fewer than were asked for: they gave {received} results of {count}")
    return torch.cat(everyone)


def _laid_out(texts: Texts, chosen: Tensor, device: torch.device) -> tuple[Tensor, Rows]:
    """The texts `chosen` (R,) -> ids (R, T), T tokens the longest of them, and their rows."""
    lengths = texts.lengths[chosen]
    longest = int(lengths.max())
    return texts.ids[chosen, :longest].to(device, non_blocking=True), Rows(lengths, longest, device)
