"""Linear layers multiplied by oneDNN equal the usual ones; outside of the block everything is as before."""

import pytest
import torch
from helpers.tiny import spread, tiny_text
from torch import Tensor, nn

from blip.hardware import processor
from blip.network import onednn
from blip.network.embeddings import LMHead
from blip.network.onednn import OneDnnProducts

pytestmark = pytest.mark.skipif(not onednn.is_available(), reason="this torch has no oneDNN")


@pytest.fixture
def multiplied(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes that oneDNN multiplies, on any processor."""
    shapes: list[tuple[int, ...]] = []
    usual = onednn.product

    def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        shapes.append(tuple(x.shape))
        return usual(x, weight, bias)

    monkeypatch.setattr(onednn, "product", product)
    monkeypatch.setattr(onednn, "is_amd", lambda: True)
    return shapes


def layers() -> nn.ModuleList:
    text = tiny_text()
    words = nn.Embedding(text.vocab_size, text.width)
    return spread(nn.ModuleList([nn.Linear(36, 20), nn.Linear(36, 5, bias=False), LMHead(text, words)]), std=0.3)


def untouched(module: nn.Module) -> bool:
    return not any({"forward", "logits"} & set(vars(layer)) for layer in module.modules())


@torch.no_grad()
@pytest.mark.parametrize("shape", [(1,), (8,), (200,), (3, 5)])
def test_products_are_the_usual_ones(shape: tuple[int, ...], multiplied: list) -> None:
    module, x = layers(), torch.randn(2 * shape[0], *shape[1:], 36)[::2]
    expected, products = [layer(x) for layer in module], OneDnnProducts(module)
    for _ in range(2):
        with products.used():
            found = [layer(x) for layer in module]
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert len(multiplied) == 2 * 4  # the head has two
    assert untouched(module)
    assert all(torch.equal(layer(x), one) for layer, one in zip(module, expected, strict=True))


def test_gradients_of_constant_layers_are_the_usual_ones(multiplied: list) -> None:
    module, x = layers().requires_grad_(False), torch.randn(3, 5, 36, requires_grad=True)

    def gradients() -> list[Tensor]:
        return [torch.autograd.grad((layer(x) ** 2).sum(), x)[0] for layer in module]

    expected, products = gradients(), OneDnnProducts(module)
    with products.used():
        found = gradients()
        assert len(multiplied) == 2 * 4  # forth and back, of three layers with four products
        module[0].bias.requires_grad_(True)
        module[0](x).sum().backward()
    assert len(multiplied) == 2 * 4 and module[0].bias.grad is not None and module[0].weight.grad is None
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_weights_that_change_are_seen(multiplied: list) -> None:
    module, x = layers(), torch.randn(8, 36)
    products = OneDnnProducts(module)
    with products.used():
        module[0](x)
        module[0].weight.mul_(2)
        torch.testing.assert_close(module[0](x), x @ module[0].weight.T + module[0].bias)
        module[0].bias = nn.Parameter(torch.ones(20))
        module[0].weight.data = torch.ones(20, 36)
        torch.testing.assert_close(module[0](x), x @ module[0].weight.T + 1)
    assert len(multiplied) == 3


def test_what_needs_the_usual_products_has_them(multiplied: list) -> None:
    module, x = layers(), torch.randn(8, 36)
    products = OneDnnProducts(module)
    with products.used():
        module[0](x).sum().backward()
        assert module[0].weight.grad is not None
        with torch.no_grad():
            module[2](x, module[2].words.weight)  # its transform alone is a product of its own weights
            assert multiplied == [(8, 36)]
            with torch.autocast("cpu", torch.bfloat16):
                assert module[0](x).dtype == torch.bfloat16
            assert module[0](x[:0]).shape == (0, 20)
    with torch.autocast("cpu", torch.bfloat16), products.used(), torch.no_grad():
        module[0](x)
    with torch.no_grad(), OneDnnProducts(module.double()).used():
        module[0](x.double())
    assert multiplied == [(8, 36)]


def test_on_other_processors_nothing_changes(monkeypatch: pytest.MonkeyPatch, multiplied: list) -> None:
    monkeypatch.setattr(onednn, "is_amd", lambda: False)
    module = layers()
    with OneDnnProducts(module).used(), torch.no_grad():
        assert untouched(module)


def test_blocks_end_with_the_outermost_one(multiplied: list) -> None:
    module = layers()
    products = OneDnnProducts(module)
    with pytest.raises(KeyError), products.used():
        with products.used():
            pass
        assert not untouched(module)
        raise KeyError
    assert untouched(module)


@pytest.mark.parametrize(("text", "amd"), [("vendor_id\t: AuthenticAMD\n", True), ("vendor_id : GenuineIntel\n", False),
                                           ("Processor : ARMv8", False), (None, False)])  # fmt: skip
def test_the_maker_of_the_processor(text: str | None, amd: bool, tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processor, "CPU_INFO", tmp_path / "cpuinfo")
    if text is not None:
        (tmp_path / "cpuinfo").write_text(text)
    processor.is_amd.cache_clear()
    assert processor.is_amd() is amd
    processor.is_amd.cache_clear()
