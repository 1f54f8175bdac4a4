"""Re-ranking of videos for texts: ours, keys of a video made once, against transformers' text encoder pair by pair.

    python benchmarks/frames.py --precision fp32

50 texts of 13 tokens on average, each with 32 candidates among 50 videos of 8 frames at 384 px, random weights of ViT-B
and BERT-base size on both sides. Both are given the states of the frames, so that what is timed begins after the
features. The peer does what the published evaluation does: the tokens of all frames of a candidate in one sequence, 32
candidates of a text a batch, captions padded to 35 tokens. All 1,600 pairs would take it about half an hour on two
cores, so each side scores a sample, the peer all candidates of a few texts, ours all texts of a few videos, and rates
are those of the samples: texts of the peer, and videos of ours, cost the same each. Scores of pairs in both samples are
compared first.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import Tensor

from benchmarks import harness
from benchmarks.peers_tasks import PublishedMatch
from benchmarks.rerank import ENC, PAD, PADDED, make_texts
from blip.evaluation import retrieval
from blip.models.retrieval import RetrievalModel
from blip.network.embeddings import TextConfig
from blip.network.flops import image_tokens, keys_forward, text_forward
from blip.network.pictures import PictureStates
from blip.network.vit import VIT_SIZES, ViTConfig
from blip.tokenizer import Specials

HEAD = 2 * 2  # operations of the match head's two classes, for each number of its input


@dataclass
class Size:
    vit: ViTConfig
    text: TextConfig
    videos: int  # and texts
    frames: int
    k: int
    sampled_texts: int  # of the peer
    sampled_videos: int  # of ours


def sizes(args: argparse.Namespace) -> Size:
    if args.size == "tiny":
        text = TextConfig(width=64, layers=2, heads=4, hidden=128, image_width=64, dropout=0.0)
        return Size(ViTConfig(32, 8, 64, 2, 4), text, videos=6, frames=3, k=4, sampled_texts=2, sampled_videos=6)
    width, depth, heads, patch = VIT_SIZES[args.size]
    text = TextConfig(image_width=width, dropout=0.0)
    sampled = {"sampled_texts": args.texts, "sampled_videos": args.videos}
    return Size(ViTConfig(384, patch, width, depth, heads), text, videos=50, frames=8, k=32, **sampled)


@torch.no_grad()
def states_of_videos(model: RetrievalModel, size: Size, device: torch.device) -> Tensor:
    """(videos, F, N, D): states of the encoder of two frames, mixed and disturbed, so that all differ."""
    side = size.vit.image_size
    one = model.image_encoder(torch.randn(2, 3, side, side, device=device))
    mix = torch.rand(size.videos, size.frames, 1, 1, device=device)
    noise = torch.randn(size.videos, size.frames, *one.shape[1:], device=device)
    return mix * one[0] + (1 - mix) * one[1] + 0.5 * noise


def measure(args: argparse.Namespace) -> dict:
    size, device = sizes(args), torch.device(args.device)
    model = RetrievalModel(size.vit, size.text, Specials(PAD, ENC, ENC - 1)).to(device).eval()
    texts = make_texts(size.videos, size.videos)
    states = states_of_videos(model, size, device)
    candidates = torch.stack([torch.randperm(size.videos)[: size.k] for _ in range(size.videos)])  # of each text
    own_videos = torch.randperm(size.videos)[: size.sampled_videos].sort().values
    own_texts = torch.randperm(size.videos)[: size.sampled_texts].tolist()
    pairs = torch.stack([candidates.flatten(), torch.arange(size.videos).repeat_interleave(size.k)], dim=1)
    pairs = pairs[torch.isin(pairs[:, 0], own_videos)]
    pairs = pairs[pairs[:, 0].argsort(stable=True)]

    def states_of(numbers: Sequence[Sequence[int]]):
        for batch in numbers:
            yield PictureStates(states[list(batch)])

    def ours() -> Tensor:
        with torch.no_grad(), harness.precision(args):
            return retrieval.match_pairs(model, states_of, texts, pairs=pairs, device=device, batch_size=1)[:, 1]

    peer = PublishedMatch(model.text_encoder, model.itm_head).to(device)
    ids = texts.ids.clone().to(device)
    ids[:, 0] = ENC

    def theirs() -> Tensor:
        with torch.no_grad(), harness.precision(args):
            logits = []
            for text in own_texts:
                repeated = ids[text].repeat(size.k, 1)
                seen = states[candidates[text].to(device)].flatten(1, 2)  # the tokens of all frames in one sequence
                logits.append(peer(repeated, (repeated != PAD).long(), seen))
            return torch.stack(logits).float().cpu()

    found = dict(zip(map(tuple, pairs.tolist()), ours().tolist(), strict=True))
    agreement = compare(found, theirs(), candidates, own_texts)
    print(json.dumps(agreement), flush=True)
    seconds = harness.alternate(
        {"theirs": theirs, "ours": ours}, args.repeats, harness.clock(args.device), warm_up=False
    )
    print(json.dumps({"seconds": seconds}), flush=True)
    median = harness.medians(seconds)
    scored = {"theirs": len(own_texts) * size.k, "ours": len(pairs)}
    rate = {name: count / median[name] for name, count in scored.items()}
    gflop = operations(size, scored, texts.lengths[pairs[:, 1]].tolist())
    return {
        "ratio": rate["ours"] / rate["theirs"],
        "ratio_by_count": gflop["theirs"] / scored["theirs"] / (gflop["ours"] / scored["ours"]),
        "agreement": agreement,
        "pairs_a_second": rate,
        "pairs": {"all": size.videos * size.k, **{f"sampled_{name}": count for name, count in scored.items()}},
        "seconds_of_all_pairs": {name: size.videos * size.k / each for name, each in rate.items()},
        "mean_tokens": texts.lengths.float().mean().item(),
        "seconds": median,
        "seconds_all": seconds,
        "spread": harness.spread(seconds),
        **harness.rates(args, gflop, median),
        "gflop_a_pair": {name: gflop[name] / scored[name] for name in scored},
    }


def compare(found: dict[tuple[int, int], float], theirs: Tensor, candidates: Tensor, texts: list[int]) -> dict:
    """Match logits of the pairs (video, text) that both sides score."""
    both = [
        (found[video, text], logit)
        for text, logits in zip(texts, theirs.tolist(), strict=True)
        for video, logit in zip(candidates[text].tolist(), logits, strict=True)
        if (video, text) in found
    ]
    return {
        "pairs": len(both),
        "largest_difference": max(abs(own - other) for own, other in both),
        "standard_deviation_of_logits": theirs.std().item(),
    }


def operations(size: Size, scored: dict[str, int], lengths: Sequence[int]) -> dict[str, float]:
    """GFLOP of both samples: the peer makes the keys of a video for each pair, ours once a video."""
    seen, keys = size.frames * image_tokens(size.vit), size.frames * keys_forward(size.vit, size.text)
    padded = text_forward(size.text, 1, PADDED, longest=PADDED, image_tokens=seen) + keys + HEAD * size.text.width
    own = sum(text_forward(size.text, 1, n, longest=n, image_tokens=seen, first_only=True) for n in lengths)
    own += size.sampled_videos * keys + len(lengths) * HEAD * size.text.width
    return {"theirs": scored["theirs"] * padded / 1e9, "ours": own / 1e9}


def main() -> None:
    parser = harness.options(__doc__, repeats=2)
    parser.add_argument("--texts", type=int, default=1, help="whose candidates the peer scores")
    parser.add_argument("--videos", type=int, default=10, help="whose texts are scored by ours; 50: all")
    args = parser.parse_args()
    harness.start(args)
    harness.report(args, "frames", measure(args))


if __name__ == "__main__":
    main()
