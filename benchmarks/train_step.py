"""One pre-training step of ours against the published algorithm composed of transformers' modules (`peers.py`).

    python benchmarks/train_step.py --precision fp32
    python benchmarks/train_step.py --precision bf16
    python benchmarks/train_step.py --precision bf16 --device cuda --batch 256 --compile --alone

Same process, same weights, same inputs, same hard negatives (the most similar one), no dropout. The losses of two steps
in a row are compared first; a benchmark of different numbers means nothing. Then steps alternate between the two, and
medians are compared. Peak memory is that of a child process each. The last line printed is one JSON object, also in a
file under `benchmarks/results/`.

`bf16` is autocast on our side; the peer runs in float32, as published, and once more in bf16 autocast. `--alone` leaves
the peer out. `--compile` compiles all blocks, those of the twin too. The only wait for a device within the time that is
measured is the one at the end of a step.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

import torch  # noqa: E402
from torch import Tensor  # noqa: E402
from torch.nn import functional as F  # noqa: E402

from benchmarks.harness import alternate, clock, describe, matmul_peak, medians, spread, write  # noqa: E402
from blip.hardware.precision import products  # noqa: E402
from blip.models.momentum import TEMPERATURE_RANGE, Entries, Queue, Twin, candidates, update_twin  # noqa: E402
from blip.models.pretrain import PretrainModel  # noqa: E402
from blip.network import flops  # noqa: E402
from blip.network.med import TextConfig  # noqa: E402
from blip.network.vit import VIT_SIZES, ViTConfig  # noqa: E402
from blip.tokenizer import Specials  # noqa: E402
from blip.train.parallel import compile_model, measure_peak, padded_lengths  # noqa: E402

PAD, ENC, DEC = 0, 30523, 30522
CLS, SEP = 101, 102
LONGEST, MEAN_LENGTH = 30, 20
EMBED, MOMENTUM, ALPHA, LR, WEIGHT_DECAY = 256, 0.995, 0.4, 1e-5, 0.05
Losses = tuple[Tensor, Tensor, Tensor]


@dataclass
class Size:
    vit: ViTConfig
    text: TextConfig
    queue: int


def sizes(name: str) -> Size:
    """`base` is ViT-B/16 at 224 px with BERT-base; `small` only shows that the script runs."""
    if name == "small":
        vit = ViTConfig(32, 8, 64, 2, 4)
        return Size(vit, TextConfig(width=64, layers=2, heads=4, hidden=128, image_width=64, dropout=0.0), 64)
    width, depth, heads, patch = VIT_SIZES[name]
    vit = ViTConfig(224, patch, width, depth, heads)
    return Size(vit, TextConfig(image_width=width, dropout=0.0), 57600)


@dataclass
class Batch:
    images: Tensor  # (B, 3, height, width)
    ids: Tensor  # (B, LONGEST), padded
    lengths: Tensor  # (B,)

    def to(self, device: str) -> "Batch":
        return Batch(self.images.to(device), self.ids.to(device), self.lengths)  # lengths stay on the CPU


def make_batch(count: int, image_size: int, seed: int) -> Batch:
    """Random images, and captions of 10 to 30 tokens, 20 on average to the token, special tokens included."""
    g = torch.Generator().manual_seed(seed)
    lengths = (MEAN_LENGTH + 5 * torch.randn(count, generator=g)).round().long().clamp(10, LONGEST)
    while (excess := int(lengths.sum()) - MEAN_LENGTH * count) != 0:
        step = 1 if excess < 0 else -1
        places = ((lengths + step >= 10) & (lengths + step <= LONGEST)).nonzero().squeeze(1)
        lengths[places[torch.randint(len(places), (), generator=g)]] += step
    ids = torch.randint(1000, 30522, (count, LONGEST), generator=g)
    ids[:, 0] = CLS
    ids[torch.arange(count), lengths - 1] = SEP
    ids[torch.arange(LONGEST) >= lengths[:, None]] = PAD
    return Batch(torch.randn(count, 3, image_size, image_size, generator=g), ids, lengths)


def most_similar(weights: Tensor) -> tuple[Tensor, Tensor]:
    return weights.argmax(dim=1), weights.sum(dim=1) > 0


class Ours:
    """The package's training step."""

    def __init__(self, size: Size, device: str):
        self.device = device
        self.model = PretrainModel(size.vit, size.text, Specials(PAD, ENC, DEC), embed_dim=EMBED).to(device)
        self.twin = Twin(self.model).to(device)
        self.queue = Queue(size.queue, EMBED).to(device)
        self.padded: tuple[int, ...] = ()  # lengths of texts when compiled
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=LR, weight_decay=WEIGHT_DECAY, fused=True)

    def compile(self, **options: Any) -> None:
        """Compiles the blocks as `compile: true` does; `options` as in `compile_model`."""
        self.padded = padded_lengths(LONGEST)
        compile_model(self.model, **options)
        compile_model(self.twin, **options)

    def step(self, batch: Batch, bf16: bool = False) -> Losses:
        """A step of a batch on the device, which nothing in it waits for."""
        images, longest = batch.images, int(batch.lengths.max())
        width = next((length for length in self.padded if length > longest), longest)
        ids = F.pad(batch.ids, (0, width - batch.ids.shape[1]), value=PAD).contiguous()
        pair_ids = torch.arange(len(ids), device=self.device)
        with torch.autocast(self.device, torch.bfloat16, enabled=bf16):
            image_m, text_m = self.twin(images, ids, batch.lengths)
            entries = Entries(image_m, text_m, pair_ids, pair_ids)
            others = candidates(entries, self.queue, equal_captions=False, equal_images=False)
            out = self.model(images, ids, batch.lengths, others, ALPHA, draw=most_similar)
        self.optimizer.zero_grad()
        (out.itc + out.itm + out.lm).backward()
        self.optimizer.step()
        with torch.no_grad():
            self.model.temperature.clamp_(*TEMPERATURE_RANGE)
        update_twin(*self.twin.pairs_with(self.model), MOMENTUM)
        self.queue.push(entries)
        return out.itc.detach(), out.itm.detach(), out.lm.detach()


class Theirs:
    """The published step: its model moves the twin, pushes the queue and clamps the temperature itself."""

    def __init__(self, size: Size, device: str):
        from benchmarks.peers import PublishedPretrain

        self.device = device
        self.model = PublishedPretrain(size.vit, size.text, PAD, ENC, DEC, EMBED, size.queue).to(device).train()
        self.optimizer = torch.optim.AdamW(self.model.trained(), lr=LR, weight_decay=WEIGHT_DECAY)

    def step(self, batch: Batch, bf16: bool = False) -> Losses:
        with torch.autocast(self.device, torch.bfloat16, enabled=bf16):
            itc, itm, lm = self.model(batch.images, batch.ids, ALPHA, most_similar)
        self.optimizer.zero_grad()
        (itc + itm + lm).backward()
        self.optimizer.step()
        return itc.detach(), itm.detach(), lm.detach()


def compare(ours: Ours, theirs: Theirs, batch: Batch) -> dict:
    """Two steps of both in float32, from the same weights: losses and their largest difference."""
    theirs.model.load_ours(ours.model.state_dict(), ours.queue.state_dict())
    steps = [(_floats(ours.step(batch)), _floats(theirs.step(batch))) for _ in range(2)]
    differences = [max(abs(a - b) for a, b in zip(mine, peer, strict=True)) for mine, peer in steps]
    return {
        "losses": ["itc", "itm", "lm"],
        "ours": [mine for mine, _ in steps],
        "theirs": [peer for _, peer in steps],
        "largest_difference": differences,
    }


def _floats(losses: Losses) -> list[float]:
    return [float(loss) for loss in losses]


def peak_memory(args: argparse.Namespace, who: str, bf16: bool) -> float:
    """GiB at the highest point of two steps, in a process that holds nothing else (child side: `memory_of`)."""
    command = [sys.executable, __file__, "--memory-of", who, "--batch", str(args.batch), "--size", args.size]
    command += ["--device", args.device, "--threads", str(args.threads), "--precision", "bf16" if bf16 else "fp32"]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return float(out.splitlines()[-1])


def memory_of(args: argparse.Namespace) -> None:
    size = sizes(args.size)
    run = Ours(size, args.device) if args.memory_of == "ours" else Theirs(size, args.device)
    batch = make_batch(args.batch, size.vit.image_size, seed=0).to(args.device)
    for _ in range(2):
        run.step(batch, args.precision == "bf16")
    if args.device == "cuda":
        print(torch.cuda.max_memory_allocated() / 2**30)
    else:
        # not ru_maxrss: it begins with the peak of the process that started this one
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        print(int(status["VmHWM"].split()[0]) / 2**20)


def command(args: argparse.Namespace) -> str:
    options = ("precision", "batch", "size", "device", "threads", "repeats")
    line = "".join(f" --{name} {getattr(args, name)}" for name in options)
    return f"python benchmarks/train_step.py{line}" + "".join(
        f" --{name}" for name in ("compile", "alone") if getattr(args, name)
    )


def measure(args: argparse.Namespace) -> dict:
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    size = sizes(args.size)
    bf16 = args.precision == "bf16"
    kinds = {"ours": args.precision}
    if not args.alone:
        kinds = {"theirs": "fp32", **kinds} | ({"theirs_bf16": "bf16"} if bf16 else {})
    # first, while this process holds nothing: the three would not fit into memory together
    memory = {name: peak_memory(args, name.removesuffix("_bf16"), kind == "bf16") for name, kind in kinds.items()}
    print(json.dumps({"peak_memory_gib": memory}), flush=True)
    synchronize = clock(args.device)
    batch = make_batch(args.batch, size.vit.image_size, seed=0).to(args.device)
    ours = Ours(size, args.device)
    if args.compile:
        ours.compile()
    runs: dict[str, Any] = {"ours": lambda: ours.step(batch, bf16)}
    compared: dict[str, Any] = {}
    if not args.alone:
        theirs = Theirs(size, args.device)
        compared["agreement_fp32"] = compare(ours, theirs, batch)
        print(json.dumps(compared["agreement_fp32"], indent=1), flush=True)
        runs = {"theirs": lambda: theirs.step(batch), **runs}
        if bf16:
            runs["theirs_bf16"] = lambda: theirs.step(batch, bf16=True)
    seconds = alternate(runs, args.repeats, synchronize)
    print(json.dumps({"seconds": seconds}), flush=True)
    median = medians(seconds)
    if not args.alone:
        compared |= ratios(seconds, bf16)
    lengths = batch.lengths.tolist()
    cost = {name: gflop_per_sample(size, lengths, name) for name in median}
    peak = products_per_second(args, synchronize)
    rate = {name: cost[name] * args.batch / median[name] for name in median}
    return {
        **describe(args.device, args.threads, command(args)),
        "name": "train_step",
        "precision": args.precision,
        **compared,
        "spread": spread(seconds),
        "seconds": median,
        "seconds_all": seconds,
        "gflop_per_sample": cost,
        "gflop_per_second": rate,
        "matmul_gflop_per_second": peak,
        "share_of_matmul_peak": {name: rate[name] / peak[kinds[name]] for name in rate},
        "mfu": rate["ours"] * 1e9 / measure_peak(torch.device(args.device), args.precision),
        "peak_memory_gib": memory,
        "parameters": flops.pretrain_parameters(size.vit, size.text, embed_dim=EMBED).total,
        "batch": args.batch,
        "lengths": lengths,
    }


def ratios(seconds: dict[str, list[float]], bf16: bool) -> dict[str, Any]:
    """Theirs over ours: of medians, of medians of the same precision, of the fastest steps."""
    median = medians(seconds)
    return {
        "ratio": median["theirs"] / median["ours"],
        "ratio_same_precision": median["theirs_bf16" if bf16 else "theirs"] / median["ours"],
        "ratio_of_fastest": min(seconds["theirs"]) / min(seconds["ours"]),
        "attention_of_theirs": "written-out soft-max (transformers has no other for BLIP)",
    }


def products_per_second(args: argparse.Namespace, synchronize: Callable[[], None]) -> dict[str, float]:
    """GFLOP/s of a large matrix product by precision."""
    peak: dict[str, float] = {}
    for kind in dict.fromkeys((args.precision, "fp32", "bf16")):
        with products(torch.device(args.device), kind):
            dtype = torch.bfloat16 if kind == "bf16" else torch.float32
            peak[kind] = matmul_peak(dtype, args.device, synchronize)
    return peak


def gflop_per_sample(size: Size, lengths: list[int], name: str) -> float:
    """Counted operations of a step of ours, or of theirs, which are padded to `LONGEST`."""
    if name == "ours":
        return flops.pretrain_step(size.vit, size.text, lengths, queue=size.queue).total / len(lengths) / 1e9
    published = flops.Savings(shared_keys=False, packed=False, one_token=False)
    cost = flops.pretrain_step(size.vit, size.text, lengths, longest=LONGEST, queue=size.queue, savings=published)
    return cost.total / len(lengths) / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precision", choices=["fp32", "tf32", "bf16"], default="fp32")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", choices=["small", "base", "large"], default="base")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--compile", action="store_true", help="compile our blocks; reported under another name")
    parser.add_argument("--alone", action="store_true", help="without the peer")
    parser.add_argument("--out", type=Path, help="default: in benchmarks/results, by device and precision")
    parser.add_argument("--memory-of", choices=["ours", "theirs"], help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.memory_of:
        torch.set_num_threads(args.threads)
        return memory_of(args)
    with products(torch.device(args.device), args.precision):
        result = measure(args)
    batch = f"_batch{args.batch}" if args.device == "cuda" else ""  # several are measured there
    variant = batch + ("_compiled" if args.compile else "") + ("" if args.size == "base" else f"_{args.size}")
    out = args.out or ROOT / "benchmarks" / "results" / f"train_step_{args.device}_{args.precision}{variant}.json"
    write(result, out)


if __name__ == "__main__":
    main()
