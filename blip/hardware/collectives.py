"""What processes send to one another in an optimizer step, and how long it takes on a card's links. An estimate."""

from dataclasses import dataclass

from blip.hardware.cards import Card

HOST = 8  # cards of a host


@dataclass
class Collective:
    """An exchange of all processes. `bytes`: what each process ends up with of the others', or of a sum, its size."""

    name: str
    bytes: float
    is_sum: bool
    hidden: bool  # behind the backward pass, as far as it is long enough

    def seconds(self, card: Card, world: int, network: float | None = None) -> float:
        """Its time where hosts have 8 cards and a network of `network` Gb/s, by default the card's usual one.

        A sum passes a ring twice and a gathering once, within each host over its links and between hosts over the
        network, for all cards of a host together.
        """
        turns = 2 if self.is_sum else 1
        within, hosts = min(world, HOST), max(1, world // HOST)
        inside = (within - 1) / within * self.bytes / (1e9 * card.link)
        outside = (hosts - 1) / hosts * self.bytes / (1e9 / 8 * (network or card.network))
        return turns * (inside + outside)


def gradients(size: float, compressed: bool = False) -> Collective:
    """The mean of gradients of `size` bytes in float32; `compressed`: they are sent in bf16."""
    return Collective("gradients", size / 2 if compressed else size, is_sum=True, hidden=True)


def queue(pairs: int, embed_dim: int, world: int, most: int) -> Collective:
    """The momentum features of the pairs of the other processes, with two ids each.

    `pairs` of a process in an optimizer step; `most`: the entries of the queue. Where the processes have more together,
    the last processes alone send theirs.
    """
    each = 2 * 4 * embed_dim + 2 * 8
    others = min(pairs * (world - 1), max(most, pairs)) if world > 1 else 0
    return Collective("queue", float(others * each), is_sum=False, hidden=False)


def negatives(samples: int, tokens: int, width: int, *, low: bool) -> Collective:
    """The states of the images that `samples` pairs draw from other processes, in bf16 if `low`, and their gradients.

    At most: some of the drawn pairs are a process's own.
    """
    return Collective("negatives", 2.0 * samples * tokens * width * (2 if low else 4), is_sum=False, hidden=False)
