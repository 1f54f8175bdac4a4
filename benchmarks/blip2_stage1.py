"""The part `stage1` of `blip2.py`: a step of BLIP-2's first stage against the published composition.

Same process, same weights, same inputs, same hard negatives (the most similar one), no dropout. The image encoder is
the same module on both sides, frozen but for its final norm, so that the ratio is that of what follows it. The losses
of two steps in a row are compared first. Peak memory is that of a child process each.
"""

import argparse
import json
import subprocess
import sys
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks import harness
from benchmarks.peers_blip2 import PublishedBlip2
from benchmarks.step_sides import CLS, DEC, EMBED, LR, PAD, SEP, WEIGHT_DECAY, Batch, most_similar
from benchmarks.step_sides import make_batch as make_pairs
from blip.models.blip2 import Blip2Model
from blip.network.qformer import QFormerConfig
from blip.network.qformer_flops import Blip2Savings, blip2_step
from blip.network.vit import VIT_SIZES, ViTConfig
from blip.tokenizer import Specials

SCRIPT = Path(__file__).with_name("blip2.py")
LONGEST = 32
Losses = tuple[Tensor, Tensor, Tensor]


@dataclass
class Size:
    vit: ViTConfig
    qformer: QFormerConfig


def sizes(name: str) -> Size:
    """`base` is ViT-B/16 at 224 px with a Q-Former of BERT-base's size; `tiny` only shows that the script runs."""
    if name == "tiny":
        tiny = QFormerConfig(width=64, layers=2, heads=4, hidden=128, image_width=64, dropout=0.0, queries=4)
        return Size(ViTConfig(32, 8, 64, 2, 4), tiny)
    width, depth, heads, patch = VIT_SIZES[name]
    return Size(ViTConfig(224, patch, width, depth, heads), QFormerConfig(image_width=width, dropout=0.0))


def make_batch(count: int, image_size: int, device: str) -> Batch:
    """Random images, and captions of 20 tokens on average that are padded to 32, as published."""
    batch = make_pairs(count, image_size, seed=0)
    assert batch.ids[0, 0] == CLS and (batch.ids == SEP).any()
    batch.ids = F.pad(batch.ids, (0, LONGEST - batch.ids.shape[1]), value=PAD)
    return batch.to(device)


def frozen(model: nn.Module) -> nn.Module:
    """With an image encoder of which the final norm alone is trained."""
    for name, parameter in model.named_parameters():
        if name.startswith("image_encoder."):
            parameter.requires_grad_(name.startswith("image_encoder.norm."))
    return model


class Ours:
    """The package's training step."""

    def __init__(self, size: Size, device: str):
        self.model = Blip2Model(size.vit, size.qformer, Specials(PAD, -1, DEC), embed_dim=EMBED).to(device)
        trained = [p for p in frozen(self.model).parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=LR, weight_decay=WEIGHT_DECAY, fused=True)

    def losses(self, batch: Batch) -> Losses:
        width = int(batch.lengths.max())
        out = self.model(batch.images, batch.ids[:, :width], batch.lengths, draw=most_similar)
        return out.itc, out.itm, out.lm


class Theirs:
    """The published step."""

    def __init__(self, size: Size, device: str):
        self.model = PublishedBlip2(size.vit, size.qformer, PAD, DEC, EMBED).to(device)
        trained = [p for p in frozen(self.model).parameters() if p.requires_grad]
        self.optimizer = torch.optim.AdamW(trained, lr=LR, weight_decay=WEIGHT_DECAY)

    def losses(self, batch: Batch) -> Losses:
        return self.model(batch.images, batch.ids, most_similar)


def step(side: Ours | Theirs, batch: Batch, args: argparse.Namespace) -> list[Tensor]:
    """One step of a side, in the precision of the options."""
    with harness.precision(args):
        losses = side.losses(batch)
    side.optimizer.zero_grad()
    torch.stack(losses).sum().backward()
    side.optimizer.step()
    return [loss.detach() for loss in losses]


def compare(ours: Ours, theirs: Theirs, batch: Batch, args: argparse.Namespace) -> dict:
    """Two steps of both from the same weights: losses and their largest difference."""
    theirs.model.load_state_dict(ours.model.state_dict())
    steps = [[[float(x) for x in step(side, batch, args)] for side in (ours, theirs)] for _ in range(2)]
    differences = [max(abs(a - b) for a, b in zip(mine, peer, strict=True)) for mine, peer in steps]
    names = {"losses": ["itc", "itm", "lm"], "largest_difference": differences}
    return {**names, "ours": [mine for mine, _ in steps], "theirs": [peer for _, peer in steps]}


def peak_memory(args: argparse.Namespace, who: str) -> float:
    """GiB at the highest point of two steps, in a process that holds nothing else (child side: `memory_of`)."""
    command = [sys.executable, str(SCRIPT), "--part", "stage1", "--memory-of", who, "--size", args.size]
    command += ["--device", args.device, "--threads", str(args.threads), "--precision", args.precision]
    command += ["--batch", str(args.batch)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def memory_of(args: argparse.Namespace) -> None:
    size = sizes(args.size)
    side = Ours(size, args.device) if args.memory_of == "ours" else Theirs(size, args.device)
    if args.memory_of == "theirs":
        nn.init.normal_(side.model.get_parameter("qformer.queries"), std=0.02)
    batch = make_batch(args.batch, size.vit.image_size, args.device)
    for _ in range(2):
        step(side, batch, args)
    if args.device == "cuda":
        print(torch.cuda.max_memory_allocated() / 2**30)
    else:
        # not ru_maxrss: it begins with the peak of the process that started this one
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        print(int(status["VmHWM"].split()[0]) / 2**20)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    size = sizes(args.size)
    # first, while this process holds nothing: the two would not fit into memory together
    memory = {who: peak_memory(args, who) for who in ("theirs", "ours")}
    print(json.dumps({"peak_memory_gib": memory}), flush=True)
    batch = make_batch(args.batch, size.vit.image_size, args.device)
    ours, theirs = Ours(size, args.device), Theirs(size, args.device)
    agreement = compare(ours, theirs, batch, args)
    print(json.dumps(agreement), flush=True)
    worked: dict[str, list[float]] = {"theirs": [], "ours": []}  # seconds of all cores, in which others do not count
    sides = {"theirs": theirs, "ours": ours}

    def timed(who: str) -> None:
        begin = time.process_time()
        step(sides[who], batch, args)
        worked[who].append(time.process_time() - begin)

    runs = {who: partial(timed, who) for who in sides}
    seconds = harness.alternate(runs, args.repeats, harness.clock(args.device))
    worked = {who: times[1:] for who, times in worked.items()}  # without the first turn
    median, cores = harness.medians(seconds), harness.medians(worked)
    gflop = {who: counted(size, batch, who).total / 1e9 for who in runs}
    return {
        "ratio": median["theirs"] / median["ours"],
        "ratio_of_fastest": min(seconds["theirs"]) / min(seconds["ours"]),
        "ratio_of_core_seconds": cores["theirs"] / cores["ours"],
        "ratio_of_counts": gflop["theirs"] / gflop["ours"],
        "agreement": agreement,
        "seconds": median,
        "seconds_all": seconds,
        "core_seconds_all": worked,
        "spread": harness.spread(seconds),
        **harness.rates(args, gflop, median),
        "gflop_by_part": {who: vars(counted(size, batch, who)) for who in runs},
        "peak_memory_gib": memory,
        "batch": args.batch,
        "lengths": batch.lengths.tolist(),
    }


def counted(size: Size, batch: Batch, who: str) -> Any:
    """Counted operations of a step of ours, or of theirs, which are padded to `LONGEST`."""
    lengths = batch.lengths.tolist()
    if who == "ours":
        return blip2_step(size.vit, size.qformer, lengths, embed_dim=EMBED)
    published = Blip2Savings(shared_keys=False, packed=False, read_only=False)
    return blip2_step(size.vit, size.qformer, lengths, longest=LONGEST, embed_dim=EMBED, savings=published)
