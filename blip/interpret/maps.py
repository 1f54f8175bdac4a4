"""Maps of an image from attention: Grad-CAM, raw attention, relevance and rollout."""

import torch
from torch import Tensor

from blip.interpret.hooks import Trace, TraceError
from blip.interpret.lenses import attention_rollout
from blip.interpret.points import layers_of

METHODS = ("gradcam", "raw", "relevance", "rollout")


def gradcam(t: Trace, attention: str) -> Tensor:
    """(R, T, h, w), at least 0, of an attention to images such as `text.6.cross`, traced with gradients."""
    return _patches(t, (t.pattern(attention) * t.pattern_grad(attention).clamp(min=0)).mean(dim=1))


def raw(t: Trace, attention: str) -> Tensor:
    """(R, T, h, w): the attention itself, heads averaged; what goes to CLS is left out."""
    return _patches(t, t.pattern(attention).mean(dim=1))


def rollout(t: Trace, attention: str) -> Tensor:
    """(R, T, h, w): attention to states of the image, carried back to the patches that they came from."""
    return _patches(t, t.pattern(attention).mean(dim=1) @ attention_rollout(t))


def relevance(t: Trace, attention: str) -> Tensor:
    """(R, T, h, w) through all layers; of `attention` only the stack counts, `text` or `decoder`.

    Each text needs an image of its own: gradients in the image encoder add up over the texts of an image.
    """
    texts, images = len(t.pattern(f"{attention.split('.')[0]}.0.self")), len(t.pattern("image.0.attn"))
    if texts != images:
        raise TraceError(f"relevance needs as many images as texts, here are {images} and {texts}: repeat the image")
    stack = attention.split(".")[0]
    layers = [name for name, _ in layers_of(t.model) if name.startswith(stack + ".")]
    in_images = _identity(t.pattern("image.0.attn")[:, 0])  # (R, 1+N, 1+N) of each state to each patch
    for name, _ in layers_of(t.model):
        if name.startswith("image."):
            in_images = in_images + _weighted(t, f"{name}.attn") @ in_images
    in_text = _identity(_weighted(t, f"{layers[0]}.self"))  # (R, T, T)
    of_images = in_text.new_zeros(*in_text.shape[:2], in_images.shape[2])  # (R, T, 1+N)
    for name in layers:
        step = _weighted(t, f"{name}.self", rows=in_text.shape[1])
        of_images = of_images + step @ of_images
        in_text = in_text + step @ in_text
        looked = _weighted(t, f"{name}.cross", rows=in_text.shape[1])
        of_images = of_images + _normalised(in_text).transpose(1, 2) @ looked @ _normalised(in_images)
    return _patches(t, of_images)


MAPS = {"gradcam": gradcam, "raw": raw, "relevance": relevance, "rollout": rollout}


def _weighted(t: Trace, attention: str, rows: int = 0) -> Tensor:
    """mean over heads of max(A * ds/dA, 0); a last layer that ran for its first token alone is filled up to `rows`."""
    found = (t.pattern(attention) * t.pattern_grad(attention)).clamp(min=0).mean(dim=1)
    return torch.nn.functional.pad(found, (0, 0, 0, max(rows - found.shape[1], 0)))


def _identity(like: Tensor) -> Tensor:
    return torch.eye(like.shape[-1], device=like.device, dtype=like.dtype).expand(len(like), -1, -1)


def _normalised(relevance: Tensor) -> Tensor:
    """What was added to the identity, each row brought to a sum of 1, and the identity again (equation 8)."""
    identity = _identity(relevance)
    added = relevance - identity
    sums = added.sum(dim=-1, keepdim=True)
    return added / sums.masked_fill(sums == 0, 1) + identity


def _patches(t: Trace, x: Tensor) -> Tensor:
    """(R, T, 1+N) -> (R, T, h, w), without CLS."""
    if t.grid is None or x.shape[2] != 1 + t.grid[0] * t.grid[1]:
        raise TraceError(f"an attention with {x.shape[2]} keys does not look at the patches of an image")
    return x[:, :, 1:].unflatten(2, t.grid)
