"""What the named places inside the model cost without tracing: the model with them, and with them taken out.

    python benchmarks/taps.py --precision fp32

A match of images and texts, ViT-B and BERT-base at 224 px, batch 4, 20 tokens, the same weights and inputs; outputs are
compared bit by bit first. The taps are called once a layer and do nothing. `ratio` is the time without them over that
with them: 1 within the noise of repeats, which `spread` shows (slowest over fastest turn).
"""

import argparse
import copy
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import Tensor

from benchmarks import harness
from blip.models.matching import match_logits
from blip.models.pretrain import PretrainModel
from blip.network.attention import Tap
from blip.network.embeddings import TextConfig
from blip.network.vit import VIT_SIZES, ViTConfig
from blip.tokenizer import Specials

PAD, ENC, DEC = 0, 30523, 30522
BATCH, TOKENS = 4, 20


def build(size: str, device: str) -> PretrainModel:
    if size == "tiny":
        vit, text = ViTConfig(32, 8, 64, 2, 4), TextConfig(width=64, layers=2, heads=4, hidden=128, image_width=64)
    else:
        width, depth, heads, patch = VIT_SIZES[size]
        vit, text = ViTConfig(224, patch, width, depth, heads), TextConfig(image_width=width)
    return PretrainModel(vit, text, Specials(PAD, ENC, DEC)).to(device).eval()


def without_taps(model: PretrainModel) -> PretrainModel:
    """A copy in which a plain function stands in the place of every tap, without a module's call."""
    model = copy.deepcopy(model)
    for parent in list(model.modules()):
        for name in [name for name, child in parent.named_children() if isinstance(child, Tap)]:
            del parent._modules[name]
            setattr(parent, name, _Nothing())
    return model


class _Nothing:
    """What `Attention` asks of a tap, and no more."""

    _forward_hooks: dict = {}  # noqa: RUF012

    def __call__(self, x: Tensor) -> Tensor:
        return x


def measure(args: argparse.Namespace) -> dict:
    model = build(args.size, args.device)
    side = model.image_encoder.config.image_size
    images = torch.randn(BATCH, 3, side, side, device=args.device)
    ids = torch.randint(1000, 30522, (BATCH, TOKENS), device=args.device)
    lengths = torch.full((BATCH,), TOKENS)

    bare = without_taps(model)

    def run(model: PretrainModel) -> Tensor:
        with torch.no_grad(), harness.precision(args):
            keys = model.text_encoder.image_keys(model.image_encoder(images))
            return match_logits(model.text_encoder, model.itm_head, ids, lengths=lengths, keys=keys)

    equal = torch.equal(run(model), run(bare))
    calls = {"with": lambda: run(model), "without": lambda: run(bare)}
    seconds = harness.alternate(calls, args.repeats, harness.clock(args.device))
    median = harness.medians(seconds)
    taps = sum(isinstance(module, Tap) for module in model.modules())
    return {
        "ratio": median["without"] / median["with"],
        "outputs_equal": equal,
        "taps": taps,
        "seconds": median,
        "spread": harness.spread(seconds),
        "seconds_all": seconds,
    }


def main() -> None:
    args = harness.options(__doc__, repeats=15).parse_args()
    harness.start(args)
    harness.report(args, "taps", measure(args))


if __name__ == "__main__":
    main()
