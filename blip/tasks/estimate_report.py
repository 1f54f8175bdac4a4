"""`--dry_run --gpu CARD --world_size N`: prints what `estimate.py` finds, and warns of what limits the run."""

from rich.console import Console
from rich.table import Table

from blip import distributed
from blip.config import ModelConfig
from blip.errors import printable
from blip.hardware.cards import USABLE
from blip.hardware.collectives import HOST
from blip.hardware.counting import ATTENTION, OTHER, PRODUCT
from blip.hardware.roofline import busy_seconds, host_seconds
from blip.tasks.estimate import GIB, Make, Plan, memory_of_batches, plan

# pictures -> those that one core reads and crops in a second, to 224 pixels, for a run on a GPU: measured by
# benchmarks/loader.py on an AMD EPYC of 2025
LOADED_PER_CORE = {"COCO of 320 pixels": 1243, "figures of 690": 528, "JPEG of 2000 x 1600": 158}
SLOW_NETWORK = 100.0  # Gb/s of a host, for comparison
TITLES = {"none": "without recomputation", "torch": "recomputed", "fairscale": "recomputed by fairscale"}


def report(make: Make, config: ModelConfig, gpu: str, world: int) -> None:
    """Prints the costs of a configuration on `world` cards of the name `gpu`.

    Raises:
        InputError: the card is not known.
    """
    console = Console(quiet=not distributed.is_main())
    planned = plan(make, config, gpu, world=world)
    kind = "none" if config.activation_checkpointing != "none" else "torch"
    other = plan(make, config, gpu, world=world, activation_checkpointing=kind)
    console.print(_memory(planned, other))
    for line in (*_costs(planned), *warnings(make, planned, other)):
        console.print(printable(line), soft_wrap=True, markup=False, highlight=False)


def _memory(planned: Plan, other: Plan) -> Table:
    """GiB, as configured and with the other choice of recomputation."""
    own = TITLES[planned.config.activation_checkpointing]
    table = Table(
        "memory of a GPU (GiB)",
        f"{own}, as configured",
        TITLES[other.config.activation_checkpointing],
        title=f"{planned.world} x {planned.card.name}, estimated: nothing ran on a GPU",
    )
    for name in ("rest", "gradients", "activations", "peak"):
        table.add_row(name, *(f"{getattr(each.counted, name) / GIB:.1f}" for each in (planned, other)))
    return table


def _costs(planned: Plan) -> list[str]:
    config, card, counted, batch = planned.config, planned.card, planned.counted, planned.batch
    busy = {
        kind: 1e3 * busy_seconds([kernel for kernel in batch if kernel.kind == kind], card, config.precision)
        for kind in (PRODUCT, ATTENTION, OTHER)
    }
    step, waiting = planned.step_seconds(), planned.waiting_seconds()
    launches = sum(kernel.launches for kernel in (*batch, *counted.update))
    how = "compiled, at best" if config.compile else "not compiled"
    lines = [
        f"a batch of {config.batch_size}, texts of {config.max_text_tokens} tokens, {config.image_size} pixels, "
        f"{config.precision}, {how}; an optimizer step has {config.accumulation} of them on each "
        f"of {planned.world} GPUs: {planned.samples * planned.world} samples",
        f"compute: {counted.flops / 1e12:.2f} TFLOP a batch, {launches} kernel launches with the update",
        f"time of a batch: {sum(busy.values()):.0f} ms of the GPU (products {busy[PRODUCT]:.0f}, attention "
        f"{busy[ATTENTION]:.0f}, others {busy[OTHER]:.0f}), {1e3 * host_seconds(batch):.0f} ms of the CPU to launch it",
        f"time of a step: {1e3 * (step + waiting):.0f} ms, {1e3 * waiting:.0f} of them waiting for other GPUs; "
        f"{planned.images_per_second() * planned.world:.0f} images a second on all. Within 25 % of simulations",
    ]
    if config.patch_dropout or config.image_sizes:
        lines.append("whole images of the last epochs are counted: patch_dropout and image_sizes make others cheaper")
    for each in planned.collectives():
        usual, slow = (1e3 * each.seconds(card, planned.world, network) for network in (None, SLOW_NETWORK))
        times = f"{usual:.1f} ms within a host"
        if planned.world > HOST:
            times = f"{usual:.1f} ms at {card.network:.0f} Gb/s a host, {slow:.0f} ms at {SLOW_NETWORK:.0f} Gb/s"
        how = "behind the last backward pass" if each.hidden else "waited for"
        lines.append(f"{each.name}: {each.bytes / 1e6:.1f} MB a step and GPU, {times}; {how}")
    return lines


def warnings(make: Make, planned: Plan, other: Plan) -> list[str]:
    """What limits the run: number format, memory, launches, loader, network.

    `other`: the same with the other choice of recomputation.
    """
    config, card = planned.config, planned.card
    lines = []
    if not card.bf16 and config.precision == "bf16":
        lines.append(f"warning: {card.name} computes no bf16: set precision: fp32; the times above are those of fp32")
    lines += [*_of_memory(make, planned, other), *_of_shards(planned)]
    host, busy = host_seconds(planned.batch), busy_seconds(planned.batch, card, config.precision)
    if host > 0.8 * busy:
        lines.append(
            "warning: the CPU takes about as long to launch the kernels as the GPU to run them; a larger batch_size "
            "with less accumulation, or compile: true"
        )
    lines += _of_loader(planned)
    waiting, step = planned.waiting_seconds(), planned.step_seconds()
    if waiting > 0.1 * step:
        lines.append(
            f"warning: {waiting / (waiting + step):.0%} of a step waits for the network; more accumulation or a larger "
            "batch_size exchanges less often"
        )
    return lines


def _of_memory(make: Make, planned: Plan, other: Plan) -> list[str]:
    config, card, counted = planned.config, planned.card, planned.counted
    own, kinds = config.activation_checkpointing, [each.config.activation_checkpointing for each in (planned, other)]
    if not planned.fits:
        each = {kind: memory_of_batches(make, planned, activation_checkpointing=kind) for kind in kinds}
        most = [f"{memory.largest(card)} {TITLES[kind]}" for kind, memory in each.items()]
        return [
            f"warning: {counted.peak / GIB:.1f} GiB do not fit into {USABLE:.0%} of the {card.memory} GiB of "
            f"{card.name}; the largest batch_size is {', '.join(most)}"
        ]
    if own != "none" and other.fits:
        return ["memory: it fits without recomputation, which is faster: activation_checkpointing: none"]
    if counted.peak < card.usable / 2:
        most_of_it = memory_of_batches(make, planned).largest(card)
        return [
            f"memory: less than half of the card is used; a batch_size of {most_of_it} fits, with less accumulation"
        ]
    return []


def _of_shards(planned: Plan) -> list[str]:
    """What is left of memory where each process keeps a part of weights, gradients and optimizer."""
    if getattr(planned.config, "parallel", "ddp") != "fsdp":
        return []
    counted, world = planned.counted, planned.world
    shared = 4 * counted.trained * (1 - 1 / world)  # weights, gradients and AdamW's two averages
    return [
        f"memory: above are all weights on each GPU; parallel: fsdp keeps 1/{world} of them, of gradients and of the "
        f"optimizer: about {(counted.peak - shared) / GIB:.1f} GiB at most, and it exchanges half as much again"
    ]


def _of_loader(planned: Plan) -> list[str]:
    """The cores that a process needs, and a warning where it has fewer workers."""
    rate, workers = planned.images_per_second(), planned.config.num_workers
    cores = {name: rate / each for name, each in LOADED_PER_CORE.items()}
    each = ", ".join(f"{count:.1f} for {name}" for name, count in cores.items())
    lines = [f"loader: {rate:.0f} images a second and GPU take so many cores: {each}; num_workers is {workers}"]
    if slow := [name for name, count in cores.items() if count > workers]:
        lines.append(
            f"warning: num_workers: {workers} is too slow for {', '.join(slow)}: more workers where there are cores, "
            "or images that are smaller on disk"
        )
    return lines
