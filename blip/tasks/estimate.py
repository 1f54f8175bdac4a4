"""What a run would cost on GPUs that are not here. Nothing is run or downloaded.

Memory, launches, FLOPs and bytes are counted (`counted.py`), times are estimates from them: `blip.hardware.roofline`,
`blip.hardware.fusion`, `blip.hardware.collectives`. `estimate_report.py` prints them, and
docs/performance.md has tables of them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from blip.config import ModelConfig
from blip.hardware import collectives
from blip.hardware.cards import Card, card_of
from blip.hardware.collectives import Collective
from blip.hardware.counting import Kernel
from blip.hardware.fusion import compiled
from blip.hardware.roofline import busy_seconds, step_seconds
from blip.network.flops import image_tokens
from blip.tasks.counted import Counted, Trained, count
from blip.tasks.item_pictures import pictures_of_run
from blip.tasks.start import vit_config

GIB = 2**30
Make = Callable[[Any], Trained]  # the parts of a step of a configuration


@dataclass
class Plan:
    """A configuration on `world` cards: what was counted, and what follows from it."""

    config: Any
    card: Card
    world: int
    counted: Counted

    @property
    def samples(self) -> int:
        """Of one process in an optimizer step."""
        return self.config.batch_size * self.config.accumulation

    def kernels(self, counted: Sequence[Kernel]) -> list[Kernel]:
        """Counted kernels as they run: joined where the configuration compiles."""
        return compiled(counted) if self.config.compile else list(counted)

    @property
    def batch(self) -> list[Kernel]:
        """Of a batch, forward and backward."""
        return self.kernels([*self.counted.forward, *self.counted.backward])

    def batch_seconds(self) -> float:
        """Of a batch, forward and backward."""
        return step_seconds(self.batch, self.card, self.config.precision)

    def step_seconds(self) -> float:
        """Of an optimizer step without what other processes add."""
        update = busy_seconds(self.counted.update, self.card, self.config.precision)
        return self.config.accumulation * self.batch_seconds() + update

    def collectives(self) -> list[Collective]:
        """Of an optimizer step."""
        config = self.config
        compressed = getattr(config, "gradient_compression", "none") == "bf16"
        found = [collectives.gradients(self.counted.trained, compressed)]
        if getattr(config, "queue_size", 0):
            found.append(collectives.queue(self.samples, config.embed_dim, self.world, config.queue_size))
        if getattr(config, "negative_all_rank", False):
            vit, low = vit_config(config), config.precision == "bf16"
            tokens = pictures_of_run(config) * image_tokens(vit)
            found.append(collectives.negatives(self.samples, tokens, vit.width, low=low))
        return found if self.world > 1 else []

    def waiting_seconds(self, network: float | None = None) -> float:
        """What other processes add to a step: what the last backward pass does not hide of gradients, and the rest.

        `network` as in `Collective.seconds`.
        """
        backward = busy_seconds(self.kernels(self.counted.backward), self.card, self.config.precision)
        total = 0.0
        for collective in self.collectives():
            seconds = collective.seconds(self.card, self.world, network)
            total += max(0.0, seconds - backward) if collective.hidden else seconds
        return total

    def images_per_second(self) -> float:
        """Of one process."""
        return self.samples / (self.step_seconds() + self.waiting_seconds())

    @property
    def fits(self) -> bool:
        """Whether a tenth of the card stays free."""
        return self.counted.peak <= self.card.usable


def plan(make: Make, config: ModelConfig, gpu: str, *, world: int = 1, **other: Any) -> Plan:
    """Counts a configuration for so many cards; `other` are options that it has otherwise.

    Raises:
        InputError: the card is not known.
    """
    card, changed = card_of(gpu), config.model_copy(update=other)
    return Plan(changed, card, world, count(make, changed, gradients_stay=world > 1 or changed.accumulation > 1))


@dataclass
class Memory:
    """Bytes at most: `fixed`, and `each` that a sample of a batch adds."""

    fixed: float
    each: float

    def largest(self, card: Card) -> int:
        """The largest batch that fits, a multiple of 8 if above 8; 0: none does."""
        most = int((card.usable - self.fixed) / self.each)
        return max(0, most if most < 8 else most // 8 * 8)


def memory_of_batches(make: Make, planned: Plan, **other: Any) -> Memory:
    """Memory grows in proportion to the batch, so that two counts tell it. `other` as in `plan`."""
    few, more = (
        plan(make, planned.config, planned.card.name, world=planned.world, batch_size=size, **other).counted.peak
        for size in (8, 24)
    )
    each = (more - few) / 16
    return Memory(few - 8 * each, each)
