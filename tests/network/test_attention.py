"""Fused attention against the soft-max written out, and what hooks on the taps can read and edit."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from blip.network import attention as module
from blip.network.attention import Attention, attention_pattern


def inputs(t: int = 5, n: int = 7, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    q, k, v = torch.randn(2, 3, t, 8), torch.randn(2, 3, n, 8), torch.randn(2, 3, n, 8)
    return q.to(dtype), k.to(dtype), v.to(dtype)


def slow(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor | None = None) -> Tensor:
    """One query at a time. `allowed` (B, T, N) boolean."""
    out = torch.zeros_like(q)
    for b in range(q.shape[0]):
        for h in range(q.shape[1]):
            for t in range(q.shape[2]):
                seen = torch.ones(k.shape[2], dtype=torch.bool) if allowed is None else allowed[b, t]
                scores = torch.stack([q[b, h, t] @ key for key in k[b, h][seen]]) / q.shape[-1] ** 0.5
                out[b, h, t] = scores.softmax(dim=0) @ v[b, h][seen]
    return out


def test_fused_equals_written_out() -> None:
    q, k, v = inputs()
    assert_close(Attention()(q, k, v), slow(q, k, v))


def test_mask_hides_keys() -> None:
    q, k, v = inputs()
    real = torch.arange(7) < torch.tensor([4, 7])[:, None]  # (B, N)
    z = Attention()(q, k, v, mask=real[:, None, None])
    assert_close(z, slow(q, k, v, real[:, None].expand(2, 5, 7)))
    k[0, :, 4:], v[0, :, 4:] = 1e3, 1e3
    assert_close(Attention()(q, k, v, mask=real[:, None, None]), z)


def test_causal_query_sees_itself_and_before() -> None:
    q, k, v = inputs(6, 6)
    allowed = torch.ones(6, 6, dtype=torch.bool).tril().expand(2, 6, 6)
    assert_close(Attention()(q, k, v, causal=True), slow(q, k, v, allowed))
    assert_close(attention_pattern(q, k, causal=True) @ v, slow(q, k, v, allowed))


@pytest.mark.parametrize("kind", ["plain", "mask", "causal"])
def test_reading_the_pattern_changes_nothing(kind: str) -> None:
    q, k, v = inputs(6, 6)
    mask = (torch.arange(6) < torch.tensor([4, 6])[:, None])[:, None, None] if kind == "mask" else None
    attention, seen = Attention(), []
    fused = attention(q, k, v, mask, kind == "causal")
    attention.pattern.register_forward_hook(lambda tap, args, out: seen.append(out))
    assert_close(attention(q, k, v, mask, kind == "causal"), fused)
    assert_close(seen[0].sum(dim=-1), torch.ones(2, 3, 6))
    assert_close(seen[0], attention_pattern(q, k, mask, causal=kind == "causal"))


def test_hook_edits_the_pattern() -> None:
    q, k, v = inputs()
    attention = Attention()
    handle = attention.pattern.register_forward_hook(lambda tap, args, out: torch.full_like(out, 1 / out.shape[-1]))
    assert_close(attention(q, k, v), v.mean(dim=2, keepdim=True).expand(2, 3, 5, 8))
    handle.remove()
    assert_close(attention(q, k, v), slow(q, k, v))


@pytest.mark.parametrize("tap", ["q", "k", "v", "z"])
def test_hook_edits_the_other_taps(tap: str) -> None:
    q, k, v = inputs()
    attention = Attention()
    getattr(attention, tap).register_forward_hook(lambda tap, args, out: 2 * out)
    doubled = {"q": slow(2 * q, k, v), "k": slow(q, 2 * k, v)}
    assert_close(attention(q, k, v), doubled.get(tap, 2 * slow(q, k, v)))


def test_taps_add_no_keys() -> None:
    assert Attention().state_dict() == {}


def test_dropout_in_training_alone() -> None:
    q, k, v = inputs()
    attention = Attention(dropout=0.5)
    assert not torch.equal(attention(q, k, v), attention(q, k, v))
    attention.eval()
    assert_close(attention(q, k, v), slow(q, k, v))


@pytest.mark.parametrize("kind", ["plain", "mask", "causal"])
def test_bf16_on_cpu_takes_the_fast_path_and_agrees(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = inputs(6, 6, torch.bfloat16)
    mask = (torch.arange(6) < torch.tensor([4, 6])[:, None])[:, None, None] if kind == "mask" else None
    assert module.fused_is_slow(q) and not module.fused_is_slow(q.float())
    written_out = Attention()(q, k, v, mask, kind == "causal")
    monkeypatch.setattr(module, "fused_is_slow", lambda q: False)
    fused = Attention()(q, k, v, mask, kind == "causal")
    assert written_out.dtype == torch.bfloat16
    assert_close(written_out, fused, rtol=0, atol=0.03)
    exact = Attention()(q.float(), k.float(), v.float(), mask, kind == "causal")
    assert_close(written_out.float(), exact, rtol=0, atol=0.03)
