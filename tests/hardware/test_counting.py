"""Counting of a step on `meta`: against what autograd saves, against torch's own counts, and cards, links and joins."""

from collections import Counter as Names
from collections.abc import Callable

import pytest
import torch
from helpers.fake_device import fake_cuda
from helpers.tiny import tiny_text
from torch import Tensor, nn
from torch.nn import functional as F

from blip.errors import InputError
from blip.hardware.as_on_gpu import META, as_on_gpu, backward
from blip.hardware.cards import CARDS, Card, card_of
from blip.hardware.collectives import gradients, negatives, queue
from blip.hardware.counting import ATTENTION, BLOCK, OTHER, PRODUCT, Counter, Kernel, many_tensors
from blip.hardware.fusion import compiled
from blip.hardware.roofline import LAUNCH, SHORTEST, busy_seconds, host_seconds, step_seconds
from blip.network.med import TextEncoder
from blip.network.packing import Rows
from blip.network.vit import ViT, ViTConfig

SIZES = ViTConfig(image_size=64, patch=16, width=128, depth=3, heads=2)
BF16 = torch.bfloat16


def vit(count: int = 16) -> tuple[nn.Module, Tensor]:
    with META:
        return ViT(SIZES), torch.empty(count, 3, 64, 64)


def saved_bytes(model: nn.Module, images: Tensor) -> int:
    """What autograd keeps for the backward pass, each piece of memory once, without weights and input."""
    kept: dict[int, Tensor] = {}
    own = {x.untyped_storage()._cdata for x in (*model.parameters(), images)}

    def pack(x: Tensor) -> Tensor:
        if x.untyped_storage()._cdata not in own:
            kept[x.untyped_storage()._cdata] = x
        return x

    with as_on_gpu(), torch.autocast("meta", BF16), torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        model(images).sum()
    return sum(-(-x.untyped_storage().nbytes() // BLOCK) * BLOCK for x in kept.values())


def test_activations_are_what_autograd_saves() -> None:
    model, images = vit()
    counter = Counter()
    with counter, as_on_gpu(), torch.autocast("meta", BF16):
        loss = model(images).sum()
    casts = sum(k.writes and max(k.writes.values()) for k in counter.kernels if k.name == "_to_copy")
    live = counter.live
    assert loss.requires_grad and live <= counter.peak
    assert live == pytest.approx(saved_bytes(model, images), rel=0.03), casts
    backward(loss)
    with counter:
        del loss
    assert counter.live < live / 2  # the graph is gone; gradients were not counted outside of the block


def test_memory_is_that_of_a_real_step() -> None:
    """The same layers on the CPU, in float32 without attention: what is alive after the forward pass, in bytes."""
    layers = [nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 64)]
    with META:
        model, x = nn.Sequential(*layers).to(META), torch.empty(128, 64)
    counter = Counter()
    with counter, as_on_gpu():
        out = model(x)
    # the first product's output, which GELU reads, GELU's, which the second product reads, and the result
    assert counter.live == 4 * 128 * (256 + 256 + 64)
    with counter, as_on_gpu(), torch.no_grad():
        model(x)
    assert out.shape == (128, 64) and counter.live == 4 * 128 * (256 + 256 + 64)


@pytest.mark.parametrize("precision", [BF16, torch.float32])
def test_operations_are_those_of_a_gpu(precision: torch.dtype) -> None:
    """Flash attention in bf16 alone, dropout as one kernel, products in bf16, norms in float32, weights cast once."""
    with META:
        linear, norm = nn.Linear(64, 64), nn.LayerNorm(64)
        x, q = torch.empty(8, 64), torch.empty(2, 4, 8, 16, requires_grad=True)
    counter = Counter()
    with counter, as_on_gpu(), torch.autocast("meta", precision, enabled=precision == BF16):
        y = norm(F.dropout(linear(linear(x)), 0.1))
        z = F.scaled_dot_product_attention(q, q, q)
        masked = F.scaled_dot_product_attention(q, q, q, torch.ones(2, 1, 1, 8, dtype=torch.bool, device=META))
    kernels = {kernel.name: kernel for kernel in counter.kernels}
    assert y.dtype == torch.float32 and z.dtype == masked.dtype == kernels["addmm"].dtype == precision
    assert kernels["native_layer_norm"].dtype == torch.float32 and "native_dropout" in kernels
    assert "_scaled_dot_product_efficient_attention" in kernels
    assert ("_scaled_dot_product_flash_attention" in kernels) == (precision == BF16)
    weights = [k for k in counter.kernels if k.name == "_to_copy" and list(k.writes.values()) == [64 * 64 * 2]]
    assert len(weights) == (precision == BF16)
    assert torch.is_autocast_enabled("cpu") is False


def test_waits_are_counted_and_get_a_stand_in() -> None:
    counter = Counter()
    with counter:
        x = torch.empty(3, dtype=torch.int64, device=META)
        assert x.to("cpu").tolist() == [0, 1, 2] and (x > 1).any().item() is True
        assert float(x.float().sum()) == 0.5
    assert counter.waits == ["copy to the CPU", "item", "item"]


def test_recomputation_trades_memory_for_kernels() -> None:
    from blip.train.parallel import checkpoint_activations

    found = []
    for kind in ("none", "torch"):
        model, images = vit(64)
        checkpoint_activations(list(model.blocks), kind, META, precision="bf16")
        counter = Counter()
        with counter, as_on_gpu():
            with torch.autocast("meta", BF16):
                loss = model(images).sum()
            backward(loss)
        products = [k for k in counter.kernels if k.kind == PRODUCT]
        assert all(k.dtype == BF16 for k in products)
        found.append((counter.peak, sum(k.flops for k in products)))
    assert found[1][0] < 0.6 * found[0][0] and 1.15 < found[1][1] / found[0][1] < 1.34


def operations(device: torch.device, text: TextEncoder, images: ViT) -> Callable[[], Tensor]:
    """A forward pass in bf16 of texts that attend to images, one of them shorter, on a device."""
    pixels = torch.empty(3, 3, 64, 64, device=device)
    ids, lengths = torch.ones(3, 7, dtype=torch.int64, device=device), torch.tensor([7, 5, 7], device="cpu")

    def run() -> Tensor:
        with torch.autocast(device.type, BF16):
            keys = text.image_keys(images(pixels))
            return text.multimodal(ids, Rows(lengths, 7, device), keys)

    return run


def test_operations_are_those_on_fake_cuda_tensors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a forward pass: the names of all operations, and how often each is called. Attention, for which fake tensors
    have no fused kernel, is left out."""
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda q, *_, **__: torch.empty_like(q))
    sizes = tiny_text(width=128, heads=2, image_width=128, dropout=0.1)
    models = [TextEncoder(sizes), ViT(SIZES)]
    with fake_cuda() as gpu:
        run = operations(gpu.device, *(model.to(gpu.device) for model in models))
        gpu.clear()
        run()
    counter = Counter()
    with META:
        run = operations(META, TextEncoder(sizes), ViT(SIZES))
    with counter, as_on_gpu():
        run()
    mine = Names(kernel.name for kernel in counter.kernels)
    del gpu.launches["_unsafe_view"]  # which launches nothing
    assert sum(mine.values()) > 100 and mine == gpu.launches


# ---- times -----------------------------------------------------------------------------------------------------------


def kernel(kind: str = OTHER, name: str = "add", **values: object) -> Kernel:
    return Kernel(name, kind, BF16, **values)  # type: ignore[arg-type]


def test_a_kernel_takes_what_limits_it() -> None:
    card = CARDS["h100"]
    assert busy_seconds([kernel(PRODUCT, flops=6e14)], card, "bf16") == pytest.approx(1.0, rel=0.02)
    assert busy_seconds([kernel(ATTENTION, flops=4e14)], card, "bf16") == pytest.approx(1.0, rel=0.02)
    assert busy_seconds([kernel(bytes=2.7e12)], card, "bf16") == pytest.approx(1.0, rel=0.02)
    assert busy_seconds([kernel(launches=3)], card, "bf16") == 3 * SHORTEST
    plain = Kernel("mm", PRODUCT, torch.float32, flops=4.5e13)
    assert busy_seconds([plain], card, "fp32") == pytest.approx(1.0, rel=0.02)
    assert busy_seconds([plain], card, "tf32") == pytest.approx(1 / 6.7, rel=0.02)


def test_a_step_waits_for_launches_and_for_kernels() -> None:
    card, small, large = CARDS["h100"], [kernel()] * 100, [kernel(bytes=2.7e9)] * 100
    assert step_seconds(small, card, "bf16") == pytest.approx(100 * LAUNCH + SHORTEST)
    assert step_seconds(large, card, "bf16") == pytest.approx(busy_seconds(large, card, "bf16") + LAUNCH)
    assert host_seconds(small) == pytest.approx(100 * LAUNCH)


def test_compiled_kernels_between_products_are_one() -> None:
    """a = f(x); b = g(a); c = product(b, a): a is written, since the product reads it, and b; d is needed by none."""
    chain = [
        kernel(name="f", reads={0: 8}, writes={1: 8}),
        kernel(name="h", reads={1: 8}, writes={2: 4}),
        kernel(name="g", reads={1: 8, 2: 4}, writes={3: 8}),
        kernel(PRODUCT, "mm", reads={3: 8, 1: 8}, writes={4: 8}),
        kernel(name="sum", reads={4: 8}, writes={5: 2}),
        kernel(name="gelu", reads={4: 8}, writes={6: 8}),
        kernel(name="multinomial", reads={6: 8}, writes={7: 1}),
    ]
    found = compiled(chain)
    assert [(k.name, k.launches) for k in found] == [("joined", 1), ("mm", 1), ("joined", 2), ("multinomial", 1)]
    assert found[0].bytes == 8 + 8 + 8 and found[2].bytes == 8 + 2 + 8


# ---- cards and links -------------------------------------------------------------------------------------------------


def test_an_unknown_card_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"gpu is 'a100'.*a100-40, a100-80, h100, h200"):
        card_of("a100")


@pytest.mark.parametrize("card", CARDS.values(), ids=list(CARDS))
def test_cards_are_possible(card: Card) -> None:
    assert card.source and card.usable < card.memory * 2**30 and card.fp32 <= max(card.bf16, card.fp32)
    assert card.bf16 == 0 or 1.9 < card.bf16 / card.tf32 < 2.1
    assert card.products("bf16") >= card.products("tf32") >= card.products("fp32") > 0


def test_chunks_of_many_tensors() -> None:
    assert many_tensors([torch.empty(10, device=META)] * 37) == 2
    assert many_tensors([torch.empty(65536 * 321, device=META)]) == 2


def test_bytes_of_collectives_and_their_time() -> None:
    """Counted bytes of an optimizer step of 375 pairs; gradients of ViT-B at 100 Gb/s a host."""
    for world, counted in ((8, 5.4e6), (64, 49e6), (256, 197e6), (1024, 788e6)):
        assert queue(375, 256, world, most=10**9).bytes == pytest.approx(counted, rel=0.1)
    assert queue(375, 256, 1, most=57600).bytes == 0
    assert queue(375, 256, 1024, most=57600).bytes == 57600 * 2064  # the others are overwritten at once
    base = gradients(1010e6)
    assert base.seconds(CARDS["h100"], 64, network=100) == pytest.approx(0.140, rel=0.1)
    assert base.seconds(CARDS["h100"], 8) == pytest.approx(2 * 7 / 8 * 1010e6 / 450e9)
    assert base.seconds(CARDS["h100"], 1) == 0
    assert negatives(32, 577, 768, low=True).bytes == pytest.approx(2 * 28e6, rel=0.03)
    assert gradients(1010e6, compressed=True).bytes == base.bytes / 2
