"""Captions of BLIP-2 against transformers' `Blip2ForConditionalGeneration.generate`: the part `caption` of `blip2.py`.

A batch of images at 224 px, ViT-B, base Q-Former, OPT-125M's sizes, 5 beams, 30 new tokens, random weights that both
sides share. Token ids are compared first. Operations are counted from the sizes; beside them the bytes of weights that
a step of generation reads, and those of keys and values that it moves.
"""

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from benchmarks import harness, peers_blip2_caption
from benchmarks.peers_blip2_caption import IMAGE_TOKEN, LINE_END, PAD, START
from blip.models.blip2_language import Blip2LanguageModel
from blip.models.decoding import Decoding
from blip.models.language_models import CausalLanguageModel
from blip.models.language_tokens import LanguageIds
from blip.network.flops import attention, image_tokens, vit_forward
from blip.network.onednn import OneDnnProducts
from blip.network.qformer import QFormerConfig
from blip.network.vit import VIT_SIZES, ViTConfig

SCRIPT = Path(__file__).resolve().parent / "blip2.py"
BATCHES, BEAMS, NEW = (1, 8), 5, 30
DECODING = Decoding(beams=BEAMS, max_new_tokens=NEW, min_new_tokens=NEW)


@dataclass
class Size:
    vit: ViTConfig
    qformer: QFormerConfig
    language: str


def sizes(name: str) -> Size:
    if name == "tiny":
        qformer = QFormerConfig(
            vocab_size=64, width=64, layers=2, heads=4, hidden=128, image_width=64, queries=8, text=False
        )
        return Size(ViTConfig(32, 8, 64, 2, 4), qformer, name)
    width, depth, heads, patch = VIT_SIZES["base"]
    return Size(ViTConfig(224, patch, width, depth, heads), QFormerConfig(image_width=width, text=False), name)


class Run:
    """Both sides on the same weights and images."""

    def __init__(self, args: argparse.Namespace, size: Size):
        self.args = args
        module = peers_blip2_caption.language_module(size.language)
        self.ours = Blip2LanguageModel(size.vit, size.qformer, module.config.word_embed_proj_dim).eval()
        language = CausalLanguageModel(module, LanguageIds(START, LINE_END, PAD))
        self.ours.attach(language).to(args.device)
        self.products = OneDnnProducts(self.ours)  # as a predictor has them
        self.theirs = peers_blip2_caption.captioner(self.ours, size.vit, size.qformer)
        self.queries = size.qformer.queries
        pixels = size.vit.image_size
        self.images = torch.randn(max(BATCHES), 3, pixels, pixels, device=args.device)

    def ours_of(self, batch: int) -> Tensor:
        ids = torch.full((batch, 1), START, device=self.args.device)
        with torch.no_grad(), harness.precision(self.args), self.products.used():
            return self.ours.write(
                self.images[:batch], ids, torch.ones_like(ids, dtype=torch.bool), decoding=DECODING
            ).ids

    def theirs_of(self, batch: int) -> Tensor:
        ids = torch.full((batch, self.queries + 1), IMAGE_TOKEN, device=self.args.device)
        ids[:, -1] = START
        with torch.no_grad(), harness.precision(self.args):
            out = self.theirs.generate(
                self.images[:batch], input_ids=ids, num_beams=BEAMS, do_sample=False, max_new_tokens=NEW,
                min_new_tokens=NEW, eos_token_id=LINE_END, pad_token_id=PAD, early_stopping=False,
            )  # fmt: skip
        return out[:, ids.shape[1] :]


def measure(args: argparse.Namespace) -> dict:
    size = sizes(args.size)
    options = {who: ("--part", "caption", "--memory-of", who) for who in ("theirs", "ours")}
    memory = {who: harness.peak_memory_of(args, SCRIPT, *each) for who, each in options.items()}
    print(json.dumps({"peak_memory_gib": memory}), flush=True)
    run = Run(args, size)
    agreement = {}
    calls: dict[str, Callable[[], Tensor]] = {}
    for batch in BATCHES:
        ours, theirs = run.ours_of(batch), run.theirs_of(batch)
        agreement[str(batch)] = {"texts": batch, "equal": int((ours == theirs).all(dim=1).sum())}
        calls[f"theirs_{batch}"] = lambda batch=batch: run.theirs_of(batch)
        calls[f"ours_{batch}"] = lambda batch=batch: run.ours_of(batch)
    print(json.dumps(agreement), flush=True)
    seconds = harness.alternate(calls, args.repeats, harness.clock(args.device), warm_up=False)
    median = harness.medians(seconds)
    gflop = {}
    for batch in BATCHES:
        gflop[f"ours_{batch}"] = operations(size, batch, prefix_rows=batch) / 1e9
        gflop[f"theirs_{batch}"] = operations(size, batch, prefix_rows=batch * BEAMS) / 1e9
    return {
        "ratio": median[f"theirs_{max(BATCHES)}"] / median[f"ours_{max(BATCHES)}"],
        "ratios": {str(batch): median[f"theirs_{batch}"] / median[f"ours_{batch}"] for batch in BATCHES},
        "agreement": agreement,
        "peak_memory_gib": memory,
        "seconds": median,
        "seconds_all": seconds,
        "spread": harness.spread(seconds),
        "megabytes_of_a_step": {str(batch): megabytes(size, batch) for batch in BATCHES},
        **harness.rates(args, gflop, median),
        "beams": BEAMS,
        "new_tokens": NEW,
    }


def memory_of(args: argparse.Namespace) -> None:
    """Prints the peak memory of this process after captions of one side alone; both share their weights."""
    run = Run(args, sizes(args.size))
    (run.ours_of if args.memory_of == "ours" else run.theirs_of)(max(BATCHES))
    harness.print_peak_memory(args.device)


def operations(size: Size, batch: int, *, prefix_rows: int) -> float:
    """Of captions of `batch` images; the language model reads its prefix in `prefix_rows` rows."""
    config, q = peers_blip2_caption.opt_configuration(size.language), size.qformer
    d, layers = config.hidden_size, config.num_hidden_layers
    seen, crossing = image_tokens(size.vit), -(-q.layers // q.cross_every)
    per_query = q.layers * (2 * 4 * q.width**2 + 2 * 2 * q.width * q.hidden + attention(1, q.queries, q.width))
    per_query += crossing * (2 * 2 * q.width**2 + attention(1, seen, q.width)) + 2 * q.width * d
    keys = crossing * 2.0 * seen * q.image_width * 2 * q.width
    images = batch * (vit_forward(size.vit) + keys + q.queries * per_query)
    per_token = layers * (2 * 4 * d * d + 2 * 2 * d * config.ffn_dim)
    head = 2.0 * d * config.vocab_size
    prefix = q.queries + 1
    first = prefix_rows * (prefix * per_token + layers * attention(prefix, prefix, d) + head)
    steps = sum(per_token + head + layers * attention(1, prefix + new, d) for new in range(1, NEW))
    return images + first + batch * BEAMS * steps


def megabytes(size: Size, batch: int) -> dict[str, float]:
    """What a step in the middle of a text reads and moves: weights, and keys and values of both sides in float32."""
    config = peers_blip2_caption.opt_configuration(size.language)
    d, layers = config.hidden_size, config.num_hidden_layers
    weights = layers * (4 * d * d + 2 * d * config.ffn_dim) + d * config.vocab_size
    rows, prefix, written = batch * BEAMS, size.qformer.queries + 1, NEW // 2
    per_token = layers * 2 * d
    return {
        "weights_read": 4 * weights / 1e6,
        "ours_keys_read": 4 * per_token * (batch * prefix + rows * written) / 1e6,
        "ours_keys_moved": 4 * per_token * rows / 1e6,
        # beams in a new order, then a longer copy with the newest token: each reads and writes all
        "theirs_keys_read": 4 * per_token * rows * (prefix + written) / 1e6,
        "theirs_keys_moved": 2 * 2 * 4 * per_token * rows * (prefix + written) / 1e6,
    }
