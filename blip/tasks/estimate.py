"""`--dry_run --gpu CARD --world_size N`: what a run would cost on GPUs that are not here. Nothing is run or downloaded.

Memory, launches, FLOPs and bytes are counted (`counted.py`), times are estimates from them: `blip.hardware.roofline`,
`blip.hardware.collectives`. docs/performance.md compares them with what was counted by other means.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from blip import distributed
from blip.config import ModelConfig
from blip.errors import printable
from blip.hardware.cards import USABLE, Card, card_of
from blip.hardware.collectives import Collective
from blip.hardware.collectives import gradients as gradients_of
from blip.hardware.collectives import queue as queue_of
from blip.hardware.roofline import busy_seconds, host_seconds, step_seconds
from blip.tasks.counted import Counted, Trained, count

GIB = 2**30
# pictures -> those that one core reads, crops, augments and normalises in a second, to 224 pixels
LOADED_PER_CORE = {"COCO, 320 pixels": 634, "figures, 690 pixels": 227, "JPEG, 2000 x 1600": 61}
SLOW_NETWORK = 100.0  # Gb/s of a host, for comparison


@dataclass
class Plan:
    """A configuration on `world` cards: what was counted, and what follows from it."""

    config: Any
    card: Card
    world: int
    counted: Counted

    @property
    def pairs(self) -> int:
        """Of one process in an optimizer step."""
        return self.config.batch_size * self.config.accumulation

    def step_seconds(self) -> float:
        """Of an optimizer step without communication."""
        counted, precision = self.counted, self.config.precision
        batch = step_seconds([*counted.forward, *counted.backward], self.card, precision)
        return self.config.accumulation * batch + busy_seconds(counted.update, self.card, precision)

    def collectives(self) -> list[Collective]:
        """Of an optimizer step."""
        found = [gradients_of(self.counted.trained)]
        if getattr(self.config, "queue_size", 0):
            found.append(queue_of(self.pairs, self.config.embed_dim, self.world, self.config.queue_size))
        return found

    def waiting_seconds(self, network: float | None = None) -> float:
        """What communication adds to a step: what is left of gradients behind the last backward pass, and the rest."""
        hidden = busy_seconds(self.counted.backward, self.card, self.config.precision)
        total = 0.0
        for collective in self.collectives():
            seconds = collective.seconds(self.card, self.world, network)
            total += max(0.0, seconds - hidden) if collective.hidden else seconds
        return total

    def images_per_second(self) -> float:
        """Of one process."""
        return self.pairs / (self.step_seconds() + self.waiting_seconds())

    def fits(self) -> bool:
        """Whether the counted memory leaves a tenth of the card."""
        return self.counted.peak <= self.card.usable


def plan(make: Callable[[Any], Trained], config: ModelConfig, gpu: str, world: int) -> Plan:
    """Counts a configuration for so many cards; InputError for a card that is not known."""
    return Plan(config, card_of(gpu), world, _counted(make, config, world))


def _counted(make: Callable[[Any], Trained], config: ModelConfig, world: int, **other: Any) -> Counted:
    changed = config.model_copy(update=other)
    return count(make, changed, gradients_stay=world > 1 or changed.accumulation > 1)


def largest_batch(make: Callable[[Any], Trained], planned: Plan, recompute: str) -> int:
    """The largest batch that fits, a multiple of 8 where it is above 8; 0: not even one sample does."""
    config, world = planned.config, planned.world
    few, more = (
        _counted(make, config, world, batch_size=size, activation_checkpointing=recompute).peak for size in (8, 16)
    )
    each = max(1.0, (more - few) / 8)
    most = int(8 + (planned.card.usable - few) / each)
    return max(0, most if most < 8 else most // 8 * 8)


# ---- what is printed -------------------------------------------------------------------------------------------------


def estimate(make: Callable[[Any], Trained], config: ModelConfig, gpu: str, world: int) -> None:
    """Prints the costs of a configuration on `world` cards of the name `gpu`.

    Raises:
        InputError: the card is not known.
    """
    console = Console(quiet=not distributed.is_main())
    planned = plan(make, config, gpu, world)
    other_kind = "none" if config.activation_checkpointing != "none" else "torch"
    other = _counted(make, config, world, activation_checkpointing=other_kind)
    console.print(_memory(planned, other_kind, other))
    lines = [*_costs(planned), *warnings(make, planned, other_kind, other)]
    for line in lines:
        console.print(printable(line), soft_wrap=True, markup=False, highlight=False)


def _memory(planned: Plan, other_kind: str, other: Counted) -> Table:
    """GiB, as configured and with the other choice of recomputation."""
    titles = {"none": "without recomputation", "torch": "recomputed"}
    own = planned.config.activation_checkpointing
    table = Table(
        "memory of a GPU (GiB)",
        f"{titles.get(own, own)}, as configured",
        titles[other_kind],
        title=f"{planned.world} x {planned.card.name}, estimated: nothing ran on a GPU",
    )
    for name in ("rest", "gradients", "activations", "peak"):
        table.add_row(name, *(f"{getattr(each, name) / GIB:.1f}" for each in (planned.counted, other)))
    return table


def _costs(planned: Plan) -> list[str]:
    config, card, counted = planned.config, planned.card, planned.counted
    step, waiting = planned.step_seconds(), planned.waiting_seconds()
    batch = [*counted.forward, *counted.backward]
    busy, host = busy_seconds(batch, card, config.precision), host_seconds(batch)
    total = planned.pairs * planned.world
    lines = [
        f"a batch of {config.batch_size}, texts of {config.max_text_tokens} tokens, {config.image_size} pixels, "
        f"{config.precision}; {config.accumulation} of them and {planned.world} GPUs: {total} in an optimizer step",
        f"compute: {counted.flops / 1e12:.1f} TFLOP a batch, {counted.launches} kernel launches with the update",
        f"time of a batch: {1e3 * busy:.0f} ms of the GPU, {1e3 * host:.0f} ms of the CPU to launch it",
        f"time of a step: {1e3 * step:.0f} ms and {1e3 * waiting:.0f} ms of waiting for other GPUs, "
        f"{planned.images_per_second() * planned.world:.0f} images a second on all; of a GPU without compilation, "
        "25 % more or less",
    ]
    for collective in planned.collectives() if planned.world > 1 else []:
        seconds, slow = (1e3 * collective.seconds(card, planned.world, net) for net in (None, SLOW_NETWORK))
        lines.append(
            f"{collective.name}: {collective.bytes / 1e6:.1f} MB a step and GPU, {seconds:.1f} ms at "
            f"{card.network:.0f} Gb/s a host, {slow:.0f} ms at {SLOW_NETWORK:.0f} Gb/s; "
            + ("hidden behind the last backward pass where that is longer" if collective.hidden else "not hidden")
        )
    return lines


def warnings(make: Callable[[Any], Trained], planned: Plan, other_kind: str, other: Counted) -> list[str]:
    """What limits the run: memory, launches, loader, network."""
    config, card, counted = planned.config, planned.card, planned.counted
    lines = []
    if not card.bf16 and config.precision == "bf16":
        lines.append(f"{card.name} has no bf16: set precision: fp32; the times are those of fp32")
    if not planned.fits():
        kind = config.activation_checkpointing
        fitting = [
            f"{largest_batch(make, planned, each)} with activation_checkpointing: {each}"
            for each in dict.fromkeys((kind, other_kind))
        ]
        lines.append(
            f"memory: {counted.peak / GIB:.1f} GiB do not fit into {USABLE:.0%} of the {card.memory} GiB of "
            f"{card.name}; the largest batch_size is {', or '.join(fitting)}"
        )
    elif config.activation_checkpointing != "none" and other.peak <= card.usable:
        lines.append("memory: it fits without recomputation too; activation_checkpointing: none is faster")
    elif counted.peak < card.usable / 2:
        lines.append(
            f"memory: less than half of the card is used; up to batch_size {largest_batch(make, planned, config.activation_checkpointing)} "
            "fits, with less accumulation for the same global batch"
        )
    batch = [*counted.forward, *counted.backward]
    if host_seconds(batch) > 0.8 * busy_seconds(batch, card, config.precision):
        lines.append(
            "launches: the CPU needs about as long to launch the kernels as the GPU to compute them; a larger batch_size or compile: true"
        )
    lines += _loader(planned)
    waiting = planned.waiting_seconds()
    if waiting > 0.1 * planned.step_seconds():
        lines.append(
            f"network: {waiting / (waiting + planned.step_seconds()):.0%} of a step waits for other GPUs; more accumulation or a larger batch_size"
        )
    return lines


def _loader(planned: Plan) -> list[str]:
    """The cores that a process needs, and a warning where its loader has fewer."""
    rate, workers = planned.images_per_second(), planned.config.num_workers
    needs = {name: rate / each for name, each in LOADED_PER_CORE.items()}
    cores = ", ".join(f"{needed:.1f} ({name})" for name, needed in needs.items())
    lines = [f"loader: {rate:.0f} images a second for each GPU take so many cores: {cores}; num_workers is {workers}"]
    short = [name for name, needed in needs.items() if needed > workers]
    if short:
        lines.append(
            f"loader: num_workers: {workers} is too slow for {', '.join(short)}: more workers, or smaller files"
        )
    return lines
