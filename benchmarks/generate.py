"""Writing captions: our decoder against transformers' `generate`, after the image encoder and as a whole.

    python benchmarks/generate.py --precision fp32
    python benchmarks/generate.py --precision bf16 --peer_precision fp32

Batch 8 at 384 px, 20 new tokens, ViT-B and BERT-base, random weights on both sides; every text is as long as the
others, since random weights seldom end. Beam search with 3 beams, nucleus sampling (top-p 0.9) of one caption an image
and of three, as CapFilt may ask for, both sides in the precision that is asked for. Token ids are compared first: equal
seeds draw equal samples. `ratio` is that of the beam search's part after the image encoder. Where the two precisions
differ, so do most texts: to random weights hundreds of words are about equally likely.
"""

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import Tensor

from benchmarks import flops, harness, peers_tasks
from blip.models.caption import CaptionModel
from blip.models.decoding import Decoding
from blip.models.generation import generate
from blip.network.embeddings import TextConfig
from blip.network.flops import vit_forward
from blip.network.med import DecoderStep
from blip.network.onednn import OneDnnProducts
from blip.network.vit import VIT_SIZES, ViTConfig
from blip.tokenizer import Specials

PAD, ENC, DEC, SEP = 0, 30523, 30522, 102
BATCH, BEAMS, SAMPLES, NEW, TOP_P = 8, 3, 3, 20, 0.9


@dataclass
class Size:
    vit: ViTConfig
    text: TextConfig


def sizes(name: str) -> Size:
    if name == "tiny":
        text = TextConfig(width=64, layers=2, heads=4, hidden=128, image_width=64, dropout=0.0)
        return Size(ViTConfig(32, 8, 64, 2, 4), text)
    width, depth, heads, patch = VIT_SIZES[name]
    return Size(ViTConfig(384, patch, width, depth, heads), TextConfig(image_width=width, dropout=0.0))


DECODINGS = {
    "beam": Decoding(beams=BEAMS, max_new_tokens=NEW, min_new_tokens=NEW),
    "nucleus": Decoding(sample=True, top_p=TOP_P, max_new_tokens=NEW, min_new_tokens=NEW),
    "nucleus_of_3": Decoding(sample=True, top_p=TOP_P, num_return=SAMPLES, max_new_tokens=NEW, min_new_tokens=NEW),
}
ARGUMENTS = {  # the same for transformers
    "beam": {"num_beams": BEAMS, "do_sample": False},
    "nucleus": {"num_beams": 1, "do_sample": True, "top_p": TOP_P, "top_k": 0},
    "nucleus_of_3": {"num_beams": 1, "do_sample": True, "top_p": TOP_P, "top_k": 0, "num_return_sequences": SAMPLES},
}


class Run:
    """Both sides on the same weights and images."""

    def __init__(self, args: argparse.Namespace, size: Size):
        self.args = args
        self.ours = CaptionModel(size.vit, size.text, Specials(PAD, ENC, DEC)).to(args.device).eval()
        self.products = OneDnnProducts(self.ours)
        self.theirs = peers_tasks.captioner(self.ours, SEP).to(args.device)
        self.images = torch.randn(BATCH, 3, size.vit.image_size, size.vit.image_size, device=args.device)
        self.prompt = torch.full((BATCH, 1), DEC, device=args.device)
        with torch.no_grad(), harness.precision(args):
            self.states = self.ours.image_encoder(self.images)

    def ours_after(self, kind: str) -> Tensor:
        torch.manual_seed(1)
        with torch.no_grad(), harness.precision(self.args), self.products.used():
            decoding = DECODINGS[kind]
            keys = self.ours.text_decoder.keys_or_states(self.states, tokens=decoding.texts * (1 + NEW))
            step = DecoderStep(self.ours.text_decoder, keys)
            return generate(step, self.prompt, decoding, end_id=SEP, pad_id=PAD).ids

    def ours_whole(self, kind: str) -> Tensor:
        torch.manual_seed(1)
        with harness.precision(self.args), self.products.used():
            return self.ours.write(self.images, self.prompt, DECODINGS[kind], end_id=SEP).ids

    def theirs_after(self, kind: str) -> Tensor:
        torch.manual_seed(1)
        seen = torch.ones(self.states.shape[:-1], dtype=torch.long, device=self.args.device)
        with torch.no_grad(), harness.precision(self.args, self.args.peer_precision):
            ids = self.theirs.text_decoder.generate(
                input_ids=self.prompt, encoder_hidden_states=self.states, encoder_attention_mask=seen,
                eos_token_id=SEP, pad_token_id=PAD, min_new_tokens=NEW, max_new_tokens=NEW, **ARGUMENTS[kind],
            )  # fmt: skip
        return ids[:, 1:]

    def theirs_whole(self, kind: str) -> Tensor:
        torch.manual_seed(1)
        with harness.precision(self.args, self.args.peer_precision):
            first = torch.tensor([[DEC, SEP]], device=self.args.device).repeat(BATCH, 1)
            ids = self.theirs.generate(
                self.images, input_ids=first, min_new_tokens=NEW, max_new_tokens=NEW, **ARGUMENTS[kind]
            )
        return ids[:, 1:]


def measure(args: argparse.Namespace) -> dict:
    size = sizes(args.size)
    run = Run(args, size)
    agreement = {kind: compare(run.ours_whole(kind), run.theirs_whole(kind)) for kind in DECODINGS}
    print(json.dumps(agreement), flush=True)
    calls: dict[str, Callable[[], Tensor]] = {}
    for kind in DECODINGS:
        for part in ("after", "whole"):
            for who in ("theirs", "ours"):
                function = getattr(run, f"{who}_{part}")
                calls[f"{who}_{kind}_{part}"] = lambda function=function, kind=kind: function(kind)
    seconds = harness.alternate(calls, args.repeats, harness.clock(args.device), warm_up=False)
    median = harness.medians(seconds)

    def ratio(name: str) -> float:
        return median[f"theirs_{name}"] / median[f"ours_{name}"]

    rows = {kind: BATCH * decoding.texts for kind, decoding in DECODINGS.items()}
    gflop = {}
    for kind, count in rows.items():
        gflop[f"ours_{kind}_after"] = flops.write(size.vit, size.text, count, new=NEW, key_sets=0) / 1e9
        gflop[f"theirs_{kind}_after"] = flops.write(size.vit, size.text, count, new=NEW, key_sets=count) / 1e9
    for name in list(gflop):
        whole = gflop[name] + BATCH * vit_forward(size.vit) / 1e9
        gflop[name.replace("after", "whole")] = whole
    return {
        "peer_precision": args.peer_precision,
        "ratio": ratio("beam_after"),
        "ratios": {f"{kind}_{part}": ratio(f"{kind}_{part}") for kind in DECODINGS for part in ("after", "whole")},
        "agreement": agreement,
        "seconds": median,
        "seconds_all": seconds,
        "spread": harness.spread(seconds),
        **harness.rates(args, gflop, median),
        "batch": BATCH,
        "beams": BEAMS,
        "samples": SAMPLES,
        "new_tokens": NEW,
    }


def compare(ours: Tensor, theirs: Tensor) -> dict:
    """How many of the texts are the same, token by token."""
    return {"texts": len(ours), "equal": int((ours == theirs).all(dim=1).sum()), "tokens_each": ours.shape[1]}


def main() -> None:
    parser = harness.options(__doc__, repeats=3)
    parser.add_argument("--peer_precision", choices=["fp32", "bf16"], help="of the peer, unless it is that of both")
    args = parser.parse_args()
    args.peer_precision = args.peer_precision or args.precision
    harness.start(args)
    harness.report(args, "generate", measure(args))


if __name__ == "__main__":
    main()
