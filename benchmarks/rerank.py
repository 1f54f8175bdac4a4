"""Re-ranking of retrieval candidates: ours, grouped by image, against transformers' text encoder pair by pair.

    python benchmarks/rerank.py --precision fp32

50 images with 250 captions of 13 tokens on average at 384 px, k = 32 candidates each way, random weights of ViT-B and
BERT-base size on both sides. Both are given the images' states, so that what is timed begins after the features. The
peer scores one image's (or one text's) k candidates a batch, with captions padded to 35 tokens and the states repeated.
It would take half an hour for all pairs, so it scores a sample of these batches, one image's for every five texts' as
there are five captions an image, and its rate is that of the sample. Scores of the sample are compared first.

`ratio` compares candidate pairs a second. A pair that an image and a text both want counts twice on both sides: the
peer scores it twice. `ratio_of_distinct_pairs` counts it once on our side.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import Tensor

from benchmarks import flops, harness
from benchmarks.peers_tasks import PublishedMatch
from blip.evaluation import retrieval
from blip.models.retrieval import RetrievalModel
from blip.network.embeddings import TextConfig
from blip.network.vit import VIT_SIZES, ViTConfig
from blip.tokenizer import Specials

PAD, ENC, DEC, CLS, SEP = 0, 30523, 30522, 101, 102
PADDED, MEAN_LENGTH = 35, 13
CAPTIONS = 5  # an image


@dataclass
class Size:
    vit: ViTConfig
    text: TextConfig
    images: int
    k: int
    sampled_images: int  # whose batches the peer scores; five times as many texts'


def sizes(name: str) -> Size:
    if name == "tiny":
        text = TextConfig(width=64, layers=2, heads=4, hidden=128, image_width=64, dropout=0.0)
        return Size(ViTConfig(32, 8, 64, 2, 4), text, images=6, k=4, sampled_images=1)
    width, depth, heads, patch = VIT_SIZES[name]
    text = TextConfig(image_width=width, dropout=0.0)
    return Size(ViTConfig(384, patch, width, depth, heads), text, images=50, k=32, sampled_images=1)


def make_texts(count: int, images: int) -> retrieval.Texts:
    """Captions of 8 to 21 tokens, 13 on average to the token, special tokens included, as COCO's."""
    lengths = (MEAN_LENGTH + 2.5 * torch.randn(count)).round().long().clamp(8, 21)
    while (excess := int(lengths.sum()) - MEAN_LENGTH * count) != 0:
        step = 1 if excess < 0 else -1
        places = ((lengths + step >= 8) & (lengths + step <= 21)).nonzero().squeeze(1)
        lengths[places[torch.randint(len(places), ())]] += step
    ids = torch.randint(1000, 30522, (count, PADDED))
    ids[:, 0] = CLS
    ids[torch.arange(count), lengths - 1] = SEP
    ids[torch.arange(PADDED) >= lengths[:, None]] = PAD
    return retrieval.Texts(ids, lengths, [[i // CAPTIONS] for i in range(count)])


class Peer:
    """One query's k candidates a batch."""

    def __init__(self, model: RetrievalModel, states: Tensor, texts: retrieval.Texts, device: torch.device):
        self.match = PublishedMatch(model.text_encoder, model.itm_head).to(device)
        ids = texts.ids.clone()
        ids[:, 0] = ENC
        self.ids, self.states = ids.to(device), states
        self.mask = (self.ids != PAD).long()

    @torch.no_grad()
    def of_image(self, image: int, texts: Tensor) -> Tensor:
        return self.match(self.ids[texts], self.mask[texts], self.states[image].expand(len(texts), -1, -1))

    @torch.no_grad()
    def of_text(self, text: int, images: Tensor) -> Tensor:
        k = len(images)
        return self.match(self.ids[text].repeat(k, 1), self.mask[text].repeat(k, 1), self.states[images])


@dataclass
class Work:
    """What both sides re-rank: states (images, N, D), texts, and the k candidates each way by contrast."""

    model: RetrievalModel
    states: Tensor
    texts: retrieval.Texts
    forward: retrieval.Ranking  # of each image, texts
    backward: retrieval.Ranking  # of each text, images
    sampled_images: list[int]
    sampled_texts: list[int]

    @property
    def wanted(self) -> int:
        """Pairs; one that an image and a text both want counts twice."""
        return self.forward.candidates.numel() + self.backward.candidates.numel()

    @property
    def sampled(self) -> int:
        """Pairs that the peer scores."""
        return (len(self.sampled_images) + len(self.sampled_texts)) * self.forward.candidates.shape[1]

    def distinct(self) -> Tensor:
        """The number `image * texts + text` of each pair, once."""
        images, count = len(self.states), len(self.texts.ids)
        of_images = torch.arange(images)[:, None] * count + self.forward.candidates
        of_texts = self.backward.candidates * count + torch.arange(count)[:, None]
        return torch.cat([of_images.flatten(), of_texts.flatten()]).unique()


def make_work(size: Size, device: torch.device) -> Work:
    """A random model, and states, features and captions to re-rank."""
    count = size.images * CAPTIONS
    model = RetrievalModel(size.vit, size.text, Specials(PAD, ENC, DEC)).to(device).eval()
    texts = make_texts(count, size.images)
    with torch.no_grad():
        one = model.image_encoder(torch.randn(2, 3, size.vit.image_size, size.vit.image_size, device=device))
        # the encoder's states of two images, mixed and disturbed: 50 images differ, at the price of two
        mix = torch.rand(size.images, 1, 1, device=device)
        states = mix * one[:1] + (1 - mix) * one[1:] + 0.5 * torch.randn(size.images, *one.shape[1:], device=device)
    image_features = torch.nn.functional.normalize(torch.randn(size.images, 256), dim=1)
    text_features = torch.nn.functional.normalize(torch.randn(count, 256), dim=1)
    forward, _ = retrieval.by_contrast(image_features, text_features, size.k, answers=[[]] * size.images)
    backward, _ = retrieval.by_contrast(text_features, image_features, size.k, answers=[[]] * count)
    sampled_images = torch.randperm(size.images)[: size.sampled_images].tolist()
    sampled_texts = torch.randperm(count)[: CAPTIONS * size.sampled_images].tolist()
    return Work(model, states, texts, forward, backward, sampled_images, sampled_texts)


def measure(args) -> dict:
    size, device = sizes(args.size), torch.device(args.device)
    work = make_work(size, device)
    peer = Peer(work.model, work.states, work.texts, device)

    def states_of(numbers: Sequence[Sequence[int]]):
        for batch in numbers:
            yield work.states[list(batch)]

    def ours() -> tuple[retrieval.Ranking, retrieval.Ranking]:
        each_way = {"image_to_text": work.forward, "text_to_image": work.backward}
        with harness.precision(args):
            return retrieval.rerank(work.model, states_of, work.texts, **each_way, device=device)

    def theirs() -> list[Tensor]:
        with harness.precision(args):
            logits = [peer.of_image(i, work.forward.candidates[i].to(device)) for i in work.sampled_images]
            logits += [peer.of_text(t, work.backward.candidates[t].to(device)) for t in work.sampled_texts]
        return [part.float().cpu() for part in logits]

    agreement = compare(ours(), theirs(), work)
    print(json.dumps(agreement), flush=True)
    seconds = harness.alternate(
        {"theirs": theirs, "ours": ours}, args.repeats, harness.clock(args.device), warm_up=False
    )
    print(json.dumps({"seconds": seconds}), flush=True)
    return summary(args, size, work, seconds=seconds) | {"agreement": agreement}


def summary(args, size: Size, work: Work, *, seconds: dict[str, list[float]]) -> dict:
    """Pairs a second of both sides, and what they cost."""
    median, pairs = harness.medians(seconds), work.distinct()
    rate = {"theirs": work.sampled / median["theirs"], "ours": work.wanted / median["ours"]}
    lengths = work.texts.lengths[pairs % len(work.texts.ids)].tolist()
    gflop = {
        "theirs": work.sampled * flops.match_pair(size.vit, size.text, PADDED) / 1e9,
        "ours": flops.match_grouped(size.vit, size.text, lengths, images=size.images) / 1e9,
    }
    return {
        "ratio": rate["ours"] / rate["theirs"],
        "ratio_of_distinct_pairs": len(pairs) / median["ours"] / rate["theirs"],
        "pairs_a_second": rate,
        "pairs": {"wanted": work.wanted, "distinct": len(pairs), "sampled_for_the_peer": work.sampled},
        "mean_tokens": work.texts.lengths.float().mean().item(),
        "seconds": median,
        "seconds_all": seconds,
        "spread": harness.spread(seconds),
        **harness.rates(args, gflop, median),
        "gflop_a_pair": {"theirs": gflop["theirs"] / work.sampled, "ours": gflop["ours"] / work.wanted},
    }


def compare(ours: tuple[retrieval.Ranking, retrieval.Ranking], theirs: list[Tensor], work: Work) -> dict:
    """Scores of the sampled queries by both, and whether their candidates come in the same order."""
    queries = [(work.forward, ours[0], i) for i in work.sampled_images]
    queries += [(work.backward, ours[1], t) for t in work.sampled_texts]
    largest, same = 0.0, 0
    for (before, after, query), logits in zip(queries, theirs, strict=True):
        scores = before.scores[query] + logits
        order = scores.argsort(descending=True)
        own = dict(zip(after.candidates[query].tolist(), after.scores[query].tolist(), strict=True))
        differences = [abs(own[c] - s) for c, s in zip(before.candidates[query].tolist(), scores.tolist(), strict=True)]
        largest = max(largest, *differences)
        same += after.candidates[query].tolist() == before.candidates[query][order].tolist()
    spread = torch.cat(theirs).std().item()
    return {
        "largest_difference": largest,
        "standard_deviation_of_logits": spread,
        "queries": len(queries),
        "same_order": same,
    }


def main() -> None:
    args = harness.options(__doc__, repeats=2).parse_args()
    harness.start(args)
    harness.report(args, "rerank", measure(args))


if __name__ == "__main__":
    main()
