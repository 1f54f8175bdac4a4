"""Attribution against forward passes, and a sweep of all heads against a loop of single traced edits.

    python benchmarks/attribution.py --precision fp32

One pair of an image of 224 px and a text of 16 tokens, ViT-B and BERT-base with random weights, the metric `match`.

Attribution over the time of one forward pass of the pair (`passes`): all heads x layers x tokens of the text, self- and
cross-attention; all heads x layers x patches of the image encoder; and all heads of both in one call. That is one pass
of one pair, one pass of the other and the way back.

Sweep: another image and text patched into the 144 heads of cross-attention. `ratio` is a plain loop over the sweep:
for each head one `blip.trace` with an edit around `match_logits` of the pair, which is decoded before. The loop encodes
the image and computes the layers before the patch each time; the sweep does so once and passes all patches as rows.
`ratio_of_texts` is a loop that keeps the keys of the image and runs the text alone. By count of multiply-adds the ratio
is `counted`: of the loop 144 passes, of the sweep two images (the source and the base), the source's text and, on
average, (layers + 1) / 2 layers of 144 texts. Results are compared first.
"""

import argparse
import sys
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import Tensor

import blip
from benchmarks import harness
from blip.inference.predictor import Predictor
from blip.interpret.hooks import Edit
from blip.models.matching import match_logits
from blip.models.pretrain import PretrainModel
from blip.network.embeddings import TextConfig
from blip.network.packing import with_first
from blip.network.vit import VIT_SIZES, ViTConfig
from blip.tokenizer import Tokenizer

# 16 tokens each with the first and the last, since every word is a token
LEFT = "small left pleural effusion with adjacent atelectasis and no sign of a pneumothorax seen"
RIGHT = "large right pleural effusion with adjacent consolidation and no sign of a pneumothorax seen"
HEADS, TEXTS, IMAGE = "text.*.cross.z", "text.*.z", "image.*.attn.z"


def predictor(args: argparse.Namespace) -> Predictor:
    if args.size == "tiny":
        vit, text = ViTConfig(32, 8, 64, 2, 4), TextConfig(width=64, layers=2, heads=4, hidden=128, image_width=64)
    else:
        width, depth, heads, patch = VIT_SIZES[args.size]
        vit, text = ViTConfig(224, patch, width, depth, heads), TextConfig(image_width=width)
    tokenizer = Tokenizer.train([LEFT, RIGHT] * 10, 400)
    info = {"task": "pretrain", "image_encoder": asdict(vit), "text_encoder": asdict(text)}
    model = PretrainModel(vit, text, tokenizer.specials)
    return Predictor(model, tokenizer, info, device=args.device, precision=args.precision)


def head_from(other: Tensor, head: int) -> Edit:
    def edit(z: Tensor) -> Tensor:
        z[:, head] = other[:, head].to(z)
        return z

    return edit


class Run:
    """The pairs, and what is compared."""

    def __init__(self, args: argparse.Namespace):
        self.m = predictor(args)
        side = self.m.model.image_encoder.config.image_size
        left, right = torch.randn(2, 3, side, side, device=args.device)
        self.base, self.source = (left, LEFT), (right, RIGHT)
        self.layers = self.m.model.text_encoder.config.layers
        self.heads = self.m.model.text_encoder.config.heads

    def odds(self, pair: tuple) -> float:
        logits = self.m.match_logits([pair[0]], [pair[1]])[0]
        return float(logits[1] - logits[0])

    def sweep(self) -> list[float]:
        return blip.patch_sweep(self.m, self.base, self.source, points=HEADS).values.ravel().tolist()

    def loop(self) -> list[float]:
        with blip.trace(self.m, HEADS) as other:
            self.odds(self.source)
        plain, found = self.odds(self.base), []
        for layer in range(self.layers):
            point = f"text.{layer}.cross.z"
            for head in range(self.heads):
                with blip.trace(self.m, edit={point: head_from(other[point], head)}):
                    found.append(self.odds(self.base) - plain)
        return found

    @torch.no_grad()
    def loop_of_texts(self) -> None:
        """The loop with the image's keys kept; what it finds is that of `loop`."""
        m = self.m
        with blip.trace(m, HEADS) as other:
            self.odds(self.source)
        with m.computing():
            keys = m.model.text_encoder.image_keys(m.states([self.base[0]]))
            ids, lengths = m.ids([LEFT])
            ids = with_first(ids, m.tokenizer.enc_id)
            for layer in range(self.layers):
                point = f"text.{layer}.cross.z"
                for head in range(self.heads):
                    with blip.trace(m, edit={point: head_from(other[point], head)}):
                        match_logits(m.model.text_encoder, m.model.itm_head, ids, lengths=lengths, keys=keys)

    def attribute(self, *points: str, by: tuple[str, ...] = ("head", "token")) -> None:
        blip.attribute(self.m, self.source, self.base, points=points, by=by)


def counted(run: Run) -> float:
    """The loop's multiply-adds over the sweep's, without norms and soft-max."""
    vit, text = run.m.model.image_encoder.config, run.m.model.text_encoder.config
    tokens, states = int(run.m.ids([LEFT])[1]), 1 + (vit.image_size // vit.patch) ** 2
    block = states * (4 * vit.width**2 + 2 * vit.width * vit.hidden + 2 * states * vit.width)
    keys = text.layers * states * 2 * vit.width * text.width
    image = vit.depth * block + keys
    layer = tokens * (6 * text.width**2 + 2 * text.width * text.hidden + 2 * (tokens + states) * text.width)
    patches = text.layers * text.heads
    rows = sum(1 + text.heads * (number + 1) for number in range(text.layers))  # with the one that is not patched
    loop = (patches + 2) * (image + text.layers * layer)
    return loop / (2 * image + text.layers * layer + rows * layer)


def measure(args: argparse.Namespace) -> dict:
    run, clock = Run(args), harness.clock(args.device)
    found: dict[str, list[float]] = {}
    sweeps = harness.alternate(
        {
            "sweep": lambda: found.update(sweep=run.sweep()),
            "loop": lambda: found.update(loop=run.loop()),
            "loop_of_texts": run.loop_of_texts,
        },
        args.repeats,
        clock,
        warm_up=False,
    )
    passes = harness.alternate(
        {
            "forward": lambda: run.odds(run.base),
            "texts": lambda: run.attribute(TEXTS),
            "image": lambda: run.attribute(IMAGE, by=("head", "patch")),
            "both": lambda: run.attribute(TEXTS, IMAGE, by=("head",)),
        },
        5 * args.repeats,
        clock,
    )
    swept, looped = torch.tensor(found["sweep"]), torch.tensor(found["loop"])
    all_seconds = {**passes, **sweeps}
    seconds = harness.medians(all_seconds)
    return {
        "ratio": seconds["loop"] / seconds["sweep"],
        "ratio_of_texts": seconds["loop_of_texts"] / seconds["sweep"],
        "counted": counted(run),
        "passes": {name: seconds[name] / seconds["forward"] for name in ("texts", "image", "both")},
        "patches": len(swept),
        "tokens": int(run.m.ids([LEFT])[1]),
        "agreement": {
            "largest_difference": float((swept - looped).abs().max()),
            "largest_effect": float(looped.abs().max()),
        },
        "seconds": seconds,
        "spread": harness.spread(all_seconds),
        "seconds_all": all_seconds,
    }


def main() -> None:
    args = harness.options(__doc__, repeats=3).parse_args()
    harness.start(args)
    harness.report(args, "attribution", measure(args))


if __name__ == "__main__":
    main()
