"""GPUs that a run may be planned for: what their data sheets promise, and what of it a step is expected to reach.

The shares below were assumed for an H100 when the costs of a step were first counted: 600 of 989 TFLOP/s in large
products of bf16, 400 in attention, 45 of 67 where nothing uses the tensor cores, and 2.7 of 3.35 TB/s. They are applied
to every card. Published measurements of products alone reach larger shares, on an A100 up to 0.8.
"""

from dataclasses import dataclass

from blip.errors import InputError

PRODUCTS, ATTENTION, PLAIN, MEMORY = 0.61, 0.40, 0.67, 0.80  # shares of the data sheet
USABLE = 0.9  # of a card's memory: the rest is the context of CUDA, the kernels' own memory and gaps in the allocator's


@dataclass(frozen=True)
class Card:
    """A GPU. TFLOP/s are dense ones (data sheets of recent cards print those of sparse matrices, twice as many).

    `link` is what a card sends to another one of its host, in GB/s one way; `network` is what a host of 8 such cards
    usually sends to another host, in Gb/s.
    """

    name: str
    memory: float  # GiB, as torch reports it
    bf16: float  # TFLOP/s; 0: it has none
    tf32: float  # TFLOP/s; 0: it has none
    fp32: float  # TFLOP/s
    bandwidth: float  # GB/s of its memory
    link: float
    network: float
    source: str

    def products(self, precision: str) -> float:
        """FLOP/s of matrix products in a precision of the configuration; at least those of fp32."""
        peak = {"bf16": self.bf16, "tf32": self.tf32}.get(precision, 0.0)
        return 1e12 * max(PRODUCTS * peak, PLAIN * self.fp32)

    def attention(self, precision: str) -> float:
        """FLOP/s of fused attention."""
        return self.products(precision) * (ATTENTION / PRODUCTS if self._has(precision) else 1.0)

    @property
    def plain(self) -> float:
        """FLOP/s of operations other than products."""
        return 1e12 * PLAIN * self.fp32

    @property
    def bytes_per_second(self) -> float:
        """Of its memory."""
        return 1e9 * MEMORY * self.bandwidth

    @property
    def usable(self) -> float:
        """Bytes that a step may use."""
        return USABLE * self.memory * 2**30

    def _has(self, precision: str) -> bool:
        return bool({"bf16": self.bf16, "tf32": self.tf32}.get(precision, 0.0))


A100, H100 = "NVIDIA A100 data sheet (2021)", "NVIDIA H100 data sheet (2023)"
ADA, AMPERE = "NVIDIA Ada GPU architecture paper, version 2", "NVIDIA Ampere GA102 GPU architecture paper, version 2"
PCIE4, PCIE3 = 25.0, 12.0  # GB/s one way, of 16 lanes
CARDS = {
    card.name: card
    for card in (
        Card("a100-40", 39.4, 312, 156, 19.5, 1555, 300, 1600, A100),
        Card("a100-80", 79.2, 312, 156, 19.5, 2039, 300, 1600, A100),
        Card("h100", 79.1, 989, 494, 67, 3350, 450, 3200, H100),
        Card("h200", 139.8, 989, 494, 67, 4800, 450, 3200, "NVIDIA H200 data sheet (2024)"),
        Card("l40s", 44.5, 362, 183, 91.6, 864, PCIE4, 400, "NVIDIA L40S data sheet (2023)"),
        Card("rtx4090", 23.5, 165, 82.6, 82.6, 1008, PCIE4, 100, ADA),
        Card("rtx3090", 23.6, 71, 35.6, 35.6, 936, PCIE4, 100, AMPERE),
        Card("a10", 22.1, 125, 62.5, 31.2, 600, PCIE4, 100, "NVIDIA A10 data sheet (2021)"),
        Card("l4", 22.0, 121, 60, 30.3, 300, PCIE4, 100, "NVIDIA L4 data sheet (2023)"),
        Card("rtx4080", 15.7, 97.5, 48.7, 48.7, 717, PCIE4, 100, ADA),
        Card("t4", 14.6, 0, 0, 8.1, 320, PCIE3, 50, "NVIDIA T4 data sheet (2019)"),
    )
}


def card_of(name: str) -> Card:
    """The card of a name; InputError that lists the known ones."""
    if name not in CARDS:
        raise InputError(f"gpu is {name!r}, which is not known here; there are {', '.join(CARDS)}")
    return CARDS[name]
