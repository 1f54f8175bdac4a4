"""Maps of an image from attention: Grad-CAM, raw attention, relevance and rollout.

Of items of several pictures, F each, the maps are (R, T, F, h, w): the keys of all pictures lie side by side. The
pictures of a batch are as many for each item, so that none is masked.
"""

import torch
from torch import Tensor

from blip.interpret.lenses import attention_rollout
from blip.interpret.points import layers_of
from blip.interpret.recording import Trace, TraceError

METHODS = ("gradcam", "raw", "relevance", "rollout")


def gradcam(t: Trace, attention: str) -> Tensor:
    """Grad-CAM of an attention to images (Li et al. 2021, section 5): (R, T, h, w), at least 0.

    The mean over heads of the attention weights times their positive gradients, without CLS.

    Args:
        t: a trace of `ATTENTION.*` with gradients, differentiated.
        attention: such as `text.6.cross`.

    Raises:
        TraceError: the attention was not traced or has no gradient, or does not attend to patches.

    Example:
        >>> m = blip.load("checkpoint")
        >>> with blip.trace(m, "text.0.cross.*", grads=True) as t:
        ...     t.backward(m.match_logits("chest.png", "small left effusion")[:, 1])
        >>> maps = blip.gradcam(t, "text.0.cross")  # (1, T, h, w)
    """
    return _patches(t, (t.pattern(attention) * t.pattern_grad(attention).clamp(min=0)).mean(dim=1))


def raw(t: Trace, attention: str) -> Tensor:
    """(R, T, h, w): the attention weights, averaged over heads, without CLS."""
    return _patches(t, t.pattern(attention).mean(dim=1))


def rollout(t: Trace, attention: str) -> Tensor:
    """(R, T, h, w): attention to states of the image, traced back to patches by `attention_rollout`."""
    return _patches(t, _through_images(t.pattern(attention).mean(dim=1), attention_rollout(t)))


def image_rollout(t: Trace) -> Tensor:
    """(P, 1, h, w): the part of each patch in the `[CLS]` state of each picture, by `attention_rollout`.

    It depends on no text. Needs a trace of `image.*.attn.*`.
    """
    return _patches(t, attention_rollout(t)[:, :1])


def relevance(t: Trace, attention: str) -> Tensor:
    """(R, T, h, w) through all layers, by the rules of Chefer et al. 2021.

    Each text needs an image of its own: gradients in the image encoder add up over the texts of an image.

    Args:
        t: a trace of `image.*.attn.*` and of all points of the stack, with gradients, differentiated.
        attention: any of the stack: only the stack counts, `text` or `decoder`.
    """
    texts, images = len(t.pattern(f"{attention.split('.')[0]}.0.self")), len(t.pattern("image.0.attn"))
    pictures = t.pattern(attention).shape[-1] // t.pattern("image.0.attn").shape[-1]  # F
    if texts * pictures != images:
        raise TraceError(f"relevance needs as many images as texts, here are {images} and {texts}: repeat the image")
    stack = attention.split(".")[0]
    layers = [name for name, _ in layers_of(t.model) if name.startswith(stack + ".")]
    in_images = _identity(t.pattern("image.0.attn")[:, 0])  # (R, 1+N, 1+N) of each state to each patch
    for name, _ in layers_of(t.model):
        if name.startswith("image."):
            in_images = in_images + _weighted(t, f"{name}.attn") @ in_images
    in_text = _identity(_weighted(t, f"{layers[0]}.self"))  # (R, T, T)
    of_images = in_text.new_zeros(*in_text.shape[:2], pictures * in_images.shape[2])  # (R, T, F*(1+N))
    for name in layers:
        step = _weighted(t, f"{name}.self", rows=in_text.shape[1])
        of_images = of_images + step @ of_images
        in_text = in_text + step @ in_text
        to_image = _weighted(t, f"{name}.cross", rows=in_text.shape[1])
        to_image = _through_images(to_image, _normalised(in_images))
        of_images = of_images + _normalised(in_text).transpose(1, 2) @ to_image
    return _patches(t, of_images)


MAPS = {"gradcam": gradcam, "raw": raw, "relevance": relevance, "rollout": rollout}


def _weighted(t: Trace, attention: str, rows: int = 0) -> Tensor:
    """Mean over heads of max(A * ds/dA, 0); a last layer that ran for its first token alone is padded to `rows`."""
    weighted = (t.pattern(attention) * t.pattern_grad(attention)).clamp(min=0).mean(dim=1)
    return torch.nn.functional.pad(weighted, (0, 0, 0, max(rows - weighted.shape[1], 0)))


def _through_images(to_images: Tensor, in_images: Tensor) -> Tensor:
    """What texts read from states of pictures, (R, T, F*K), carried back inside of each picture by (R*F, K, K)."""
    pictures = to_images.shape[2] // in_images.shape[2]
    if pictures == 1:
        return to_images @ in_images
    each = to_images.unflatten(2, (pictures, -1)).transpose(1, 2)  # (R, F, T, K)
    return (each @ in_images.unflatten(0, (-1, pictures))).transpose(1, 2).flatten(2)


def _identity(like: Tensor) -> Tensor:
    return torch.eye(like.shape[-1], device=like.device, dtype=like.dtype).expand(len(like), -1, -1)


def _normalised(relevance: Tensor) -> Tensor:
    """The part beyond the identity with its rows scaled to a sum of 1, plus the identity (equation 8)."""
    identity = _identity(relevance)
    added = relevance - identity
    sums = added.sum(dim=-1, keepdim=True)
    return added / sums.masked_fill(sums == 0, 1) + identity


def _patches(t: Trace, x: Tensor) -> Tensor:
    """(R, T, 1+N) -> (R, T, h, w), without CLS; (R, T, F*(1+N)) -> (R, T, F, h, w)."""
    tokens = 1 + t.grid[0] * t.grid[1] if t.grid is not None else 0
    if not tokens or x.shape[2] % tokens:
        raise TraceError(f"an attention with {x.shape[2]} keys does not attend to the patches of an image")
    maps = x.unflatten(2, (-1, tokens))[..., 1:].unflatten(-1, t.grid)
    return maps[:, :, 0] if maps.shape[2] == 1 else maps
