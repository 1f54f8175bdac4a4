"""Operation counts of BLIP-2's first stage against torch's counter, and the table of its costs."""

import pytest
import torch
from helpers.tiny import keep_padding, tiny_blip2, tiny_vit
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from blip.network.qformer import QFormerConfig
from blip.network.qformer_flops import Blip2Savings, blip2_step, image_keys_forward, look_forward, texts_forward
from blip.network.vit import ViTConfig

VIT = tiny_vit(depth=3)


def fake_negatives(weights: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Each row's next one, so that the three ITM rows of a text have that text's lengths in sum."""
    return (torch.arange(len(weights)) + 1) % len(weights), torch.ones(len(weights), dtype=torch.bool)


@pytest.mark.parametrize(
    ("lengths", "packed", "frozen"), [([6, 6, 6], True, True), ([6, 3, 5], True, False), ([6, 3, 5], False, True)]
)
def test_counts_equal_torchs(lengths: list[int], packed: bool, frozen: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not packed:
        keep_padding(monkeypatch)
    model = tiny_blip2(VIT)
    model.image_encoder.requires_grad_(not frozen)
    model.image_encoder.norm.requires_grad_(True)
    ids, images = torch.randint(1, 48, (3, 6)), torch.randn(3, 3, 32, 32)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # plain products
        out = model(images, ids, torch.tensor(lengths), draw=fake_negatives)
        (out.itc + out.itm + out.lm).backward()
    sizes = model.qformer.config
    expected = blip2_step(VIT, sizes, lengths, embed_dim=8, savings=Blip2Savings(packed=packed), frozen=frozen)
    assert counter.get_total_flops() == expected.total


@torch.no_grad()
def test_queries_alone_do_no_work_for_texts() -> None:
    model = tiny_blip2(VIT)
    states, sizes = torch.randn(2, 17, 24), model.qformer.config
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.qformer.look(model.qformer.image_keys(states))
    assert counter.get_total_flops() == 2 * (image_keys_forward(VIT, sizes) + look_forward(sizes, 17))


@pytest.mark.parametrize(
    ("savings", "length", "total"),
    [
        (Blip2Savings(False, False, False), 32, 228.7),
        (Blip2Savings(True, False, False), 32, 203.6),
        (Blip2Savings(True, True, False), 20, 170.6),
        (Blip2Savings(), 20, 167.8),
    ],
    ids=["published", "shared-keys", "packed", "read-only"],
)
def test_costs_of_vit_b(savings: Blip2Savings, length: int, total: float) -> None:
    """GFLOP a sample at 224 px with a frozen ViT-B: the table of docs/performance.md."""
    sizes = QFormerConfig(image_width=768)
    cost = blip2_step(ViTConfig(), sizes, [length] * 8, savings=savings)
    assert cost.total / 8e9 == pytest.approx(total, abs=0.051)
    assert texts_forward(sizes, 1, 20, longest=20) < texts_forward(sizes, 1, 20, longest=20, past=32)
