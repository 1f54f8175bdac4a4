"""Writes the estimated tables of docs/performance.md, from counts of steps on GPUs that are not here.

    python docs/make_performance.py

Takes some minutes on a CPU. The tests compare a part of the tables with the page.
"""

import re
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from blip.config import PretrainConfig, load_config  # noqa: E402
from blip.hardware.cards import CARDS  # noqa: E402
from blip.hardware.collectives import gradients, queue  # noqa: E402
from blip.hardware.roofline import busy_seconds, host_seconds  # noqa: E402
from blip.tasks.dry_run import trained_on_meta  # noqa: E402
from blip.tasks.estimate import GIB, Memory, Plan, memory_of_batches, plan  # noqa: E402
from blip.tasks.estimate_report import LOADED_PER_CORE  # noqa: E402

PAGE = ROOT / "docs" / "performance.md"
MODELS = {"ViT-B": "pretrain.yaml", "ViT-L": "pretrain_large.yaml"}
OPTIONS: dict[str, dict[str, object]] = {
    "as shipped": {},
    "`batch_size: 75`, `accumulation: 5`": {"batch_size": 75, "accumulation": 5},
    "`compile: true`": {"compile": True},
    "`activation_checkpointing: torch`": {"activation_checkpointing": "torch"},
    "`precision: tf32`, `batch_size: 180`": {"precision": "tf32", "batch_size": 180},
    "`precision: fp32`, `batch_size: 180`": {"precision": "fp32", "batch_size": 180},
    "`image_size: 384`, `batch_size: 180`": {"image_size": 384, "batch_size": 180},
    "`max_text_tokens: 60`, `batch_size: 240`": {"max_text_tokens": 60, "batch_size": 240},
    "`drop_path: 0.1`": {"drop_path": 0.1},
    "`clip_norm: 1.0`": {"clip_norm": 1.0},
}
WORLD = 8  # cards of a host
SPEEDS = (100, 400, 3200)  # of a host's network, Gb/s


def row(*cells: object) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def table(title: list[str], rows: list[str]) -> str:
    return "\n".join([row(*title), row(*["---"] * len(title)), *rows])


@cache
def config_of(model: str) -> PretrainConfig:
    return load_config(ROOT / "configs" / MODELS[model], PretrainConfig).model_copy(update={"accumulation": 1})


@cache
def planned(model: str, gpu: str = "h100", world: int = WORLD, **other: object) -> Plan:
    return plan(trained_on_meta, config_of(model), gpu, world=world, **other)


@cache
def memory(model: str, kind: str, precision: str) -> Memory:
    """Of batches on a card of a host of 8."""
    return memory_of_batches(trained_on_meta, planned(model), activation_checkpointing=kind, precision=precision)


def fitting(model: str, gpu: str, kind: str = "none") -> int:
    """The largest batch on a card of a host of 8."""
    card = CARDS[gpu]
    return memory(model, kind, "bf16" if card.bf16 else "fp32").largest(card)


def card_rows(gpu: str) -> list[str]:
    """A line for each model on a card."""
    card, rows = CARDS[gpu], []
    precision = "bf16" if card.bf16 else "fp32"
    for model in MODELS:
        kind = "none" if fitting(model, gpu) >= 32 else "torch"
        batch = fitting(model, gpu, kind)
        if batch < 8:
            rows.append(row(gpu, model, "does not fit", "", "", "", "", ""))
            continue
        found = planned(model, gpu, batch_size=batch, activation_checkpointing=kind, precision=precision)
        faster = replace(found, config=found.config.model_copy(update={"compile": True}))
        rates = [batch / one.batch_seconds() for one in (found, faster)]
        share = found.counted.flops / found.batch_seconds() / (1e12 * (card.bf16 or card.fp32))
        rows.append(
            row(
                gpu,
                model,
                f"{batch}{', recomputed' if kind == 'torch' else ''}{', fp32' if precision == 'fp32' else ''}",
                f"{found.counted.peak / GIB:.1f}",
                f"{1e3 * found.batch_seconds():.0f}",
                f"{rates[0]:.0f}",
                f"{rates[1]:.0f}",
                f"{share:.0%}",
            )
        )
    return rows


def cards() -> str:
    """The largest batches and their speed on each card."""
    title = ["GPU", "model", "`batch_size`", "GiB", "ms a batch", "images/s", "compiled, at best", "of the peak"]
    return table(title, [line for gpu in CARDS for line in card_rows(gpu)])


def option_row(name: str) -> str:
    """What an option costs, of ViT-B on a host of 8 H100."""
    found = planned("ViT-B", **OPTIONS[name])
    step, images = found.step_seconds() + found.waiting_seconds(), found.samples
    batch, precision = found.batch, found.config.precision
    launches = sum(kernel.launches for kernel in batch)
    busy, host = (1e3 * each for each in (busy_seconds(batch, found.card, precision), host_seconds(batch)))
    return row(
        name, f"{found.counted.peak / GIB:.1f}", launches, f"{busy:.0f}", f"{host:.0f}", f"{1e3 * step / images:.2f}"
    )


def options() -> str:
    """What options cost."""
    title = ["option", "GiB", "launches a batch", "GPU, ms", "CPU, ms", "ms an image"]
    return table(title, [option_row(name) for name in OPTIONS])


def network() -> str:
    """Bytes of each exchange, and how long they take at some speeds, for the shipped configurations."""
    rows = []
    for model in MODELS:
        config, weights = config_of(model), planned(model).counted.trained
        for world in (8, 64, 256, 1024):
            pairs = load_config(ROOT / "configs" / MODELS[model], PretrainConfig).accumulation * config.batch_size
            sums, features = gradients(weights), queue(pairs, config.embed_dim, world, config.queue_size)
            seconds = [[1e3 * one.seconds(CARDS["h100"], world, speed) for one in (sums, features)] for speed in SPEEDS]
            times = [f"{gradient:.0f} + {rest:.0f}" for gradient, rest in seconds]
            rows.append(row(model, world, f"{sums.bytes / 1e6:.0f}", f"{features.bytes / 1e6:.1f}", *times))
    speeds = [f"ms at {speed:,} Gb/s a host" for speed in SPEEDS]
    return table(["model", "GPUs", "gradients, MB", "queue, MB", *speeds], rows)


def loader() -> str:
    """Cores that feed a GPU."""
    rows = []
    for gpu in ("a100-80", "h100", "rtx4090", "l4"):
        batch = fitting("ViT-B", gpu)
        rate = batch / planned("ViT-B", gpu, batch_size=batch).batch_seconds()
        rows.append(row(gpu, f"{rate:.0f}", *(f"{rate / each:.1f}" for each in LOADED_PER_CORE.values())))
    return table(["GPU", "images/s", *(f"cores for {name}" for name in LOADED_PER_CORE)], rows)


TABLES: dict[str, Callable[[], str]] = {"options": options, "cards": cards, "loader": loader, "network": network}


def parts(page: str) -> dict[str, str]:
    """The tables of the page by their names."""
    return dict(re.findall(r"<!-- begin (\w+) -->\n(.*?)\n<!-- end \1 -->", page, flags=re.DOTALL))


def main() -> None:
    text = PAGE.read_text(encoding="utf-8")
    for name, make in TABLES.items():
        print(f"{name} ...", flush=True)
        before, begin, rest = text.partition(f"<!-- begin {name} -->\n")
        text = before + begin + make() + "\n" + rest[rest.index(f"<!-- end {name} -->") :]
    PAGE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
