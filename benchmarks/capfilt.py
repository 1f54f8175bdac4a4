"""CapFilt's two steps: writing a caption and scoring two texts for each image, against transformers doing the same.

    python benchmarks/capfilt.py --precision fp32

384 px, ViT-B and BERT-base, random weights on both sides, the images' pixels at hand. Captioning: nucleus sampling
(top-p 0.9), 20 new tokens, since random weights seldom end; equal seeds draw equal texts. Filtering: two texts an image
of 8 to 21 tokens (13 on average), probability of a match and cosine of the features of each; the peer encodes an image
once, repeats its states for each text, and pads to the longest of its batch. `ratio` is the smaller of the two.
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import Tensor

from benchmarks import flops, harness, peers_tasks
from benchmarks.generate import DEC, ENC, PAD, SEP, TOP_P, compare, sizes
from benchmarks.rerank import make_texts
from blip.inference.scoring import match_states
from blip.models.caption import CaptionModel
from blip.models.decoding import Decoding
from blip.models.retrieval import RetrievalModel
from blip.network.flops import text_forward, vit_forward
from blip.network.onednn import OneDnnProducts
from blip.tokenizer import Specials

TEXTS, NEW = 2, 20
SAMPLED = {"do_sample": True, "num_beams": 1, "top_p": TOP_P, "top_k": 0, "min_new_tokens": NEW, "max_new_tokens": NEW}


class Captioning:
    """Both sides on the same weights and images."""

    def __init__(self, args: argparse.Namespace, images: Tensor):
        self.args, self.images, size = args, images, sizes(args.size)
        self.model = CaptionModel(size.vit, size.text, Specials(PAD, ENC, DEC)).to(args.device).eval()
        self.products = OneDnnProducts(self.model)  # as a predictor has them
        self.peer = peers_tasks.captioner(self.model, SEP).to(args.device)
        self.how = Decoding(sample=True, top_p=TOP_P, max_new_tokens=NEW, min_new_tokens=NEW)

    def ours(self) -> Tensor:
        torch.manual_seed(1)
        prompt = torch.full((len(self.images), 1), DEC, device=self.args.device)
        with harness.precision(self.args), self.products.used():
            return self.model.write(self.images, prompt, self.how, end_id=SEP).ids

    def theirs(self) -> Tensor:
        torch.manual_seed(1)
        first = torch.tensor([[DEC, SEP]], device=self.args.device).repeat(len(self.images), 1)
        with harness.precision(self.args):
            return self.peer.generate(self.images, input_ids=first, **SAMPLED)[:, 1:]


class Filtering:
    """Both sides on the same weights, images and texts; (2, B * TEXTS) probabilities and cosines."""

    def __init__(self, args: argparse.Namespace, images: Tensor):
        self.args, self.images, size = args, images, sizes(args.size)
        self.model = RetrievalModel(size.vit, size.text, Specials(PAD, ENC, DEC)).to(args.device).eval()
        self.products = OneDnnProducts(self.model)
        self.peer = peers_tasks.PublishedFilter(self.model).to(args.device)
        texts = make_texts(TEXTS * len(images), len(images))
        self.lengths = texts.lengths
        self.ids = texts.ids[:, : int(self.lengths.max())].to(args.device)

    @torch.no_grad()
    def ours(self) -> Tensor:
        with harness.precision(self.args), self.products.used():
            states = self.model.image_encoder(self.images)
            return torch.stack(match_states(self.model, states, self.ids, lengths=self.lengths, enc_id=ENC))

    @torch.no_grad()
    def theirs(self) -> Tensor:
        with harness.precision(self.args):
            return self.peer(self.images, self.ids, (self.ids != PAD).long(), ENC)


def measure(args: argparse.Namespace) -> dict:
    size = sizes(args.size)
    images = torch.randn(args.batch, 3, size.vit.image_size, size.vit.image_size, device=args.device)
    captioning, filtering = Captioning(args, images), Filtering(args, images)
    difference = (filtering.ours().float() - filtering.theirs().float()).abs().amax(dim=1)
    agreement = {
        "captions": compare(captioning.ours(), captioning.theirs()),
        "largest difference": {"match": float(difference[0]), "cosine": float(difference[1])},
    }
    print(json.dumps(agreement), flush=True)
    calls = {
        f"{who}_{what}": getattr(step, who)
        for what, step in (("captioning", captioning), ("filtering", filtering))
        for who in ("theirs", "ours")
    }
    seconds = harness.alternate(calls, args.repeats, harness.clock(args.device), warm_up=False)
    median = harness.medians(seconds)
    ratios = {what: median[f"theirs_{what}"] / median[f"ours_{what}"] for what in ("captioning", "filtering")}
    return {
        "ratio": min(ratios.values()),
        "ratios": ratios,
        "agreement": agreement,
        "images_a_second": {name: args.batch / value for name, value in median.items()},
        "seconds": median,
        "seconds_all": seconds,
        "spread": harness.spread(seconds),
        **harness.rates(args, count(args, filtering.lengths.tolist(), filtering.ids.shape[1]), median),
        "batch": args.batch,
        "texts_an_image": TEXTS,
        "new_tokens": NEW,
    }


def count(args: argparse.Namespace, lengths: list[int], longest: int) -> dict[str, float]:
    """GFLOP of a call."""
    size, batch = sizes(args.size), args.batch
    encoder = batch * vit_forward(size.vit)
    alone = [text_forward(size.text, 1, n, longest=n, first_only=True) for n in lengths]
    alone_padded = len(lengths) * text_forward(size.text, 1, longest, longest=longest)
    pairs = flops.match_grouped(
        size.vit, size.text, lengths, images=batch, keys=TEXTS * longest >= size.text.width // size.text.heads
    )
    pairs_padded = len(lengths) * flops.match_pair(size.vit, size.text, longest)
    counted = {
        "ours_captioning": encoder + flops.write(size.vit, size.text, batch, new=NEW, key_sets=0),
        "theirs_captioning": encoder + flops.write(size.vit, size.text, batch, new=NEW, key_sets=batch),
        "ours_filtering": encoder + sum(alone) + pairs,
        "theirs_filtering": encoder + alone_padded + pairs_padded,
    }
    return {name: value / 1e9 for name, value in counted.items()}


def main() -> None:
    parser = harness.options(__doc__, repeats=3)
    parser.add_argument("--batch", type=int, default=8, help="images")
    args = parser.parse_args()
    harness.start(args)
    harness.report(args, "capfilt", measure(args))


if __name__ == "__main__":
    main()
