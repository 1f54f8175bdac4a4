"""Lenses: decoder layers as words, patches compared with texts, attention through all layers of the image encoder."""

import torch
from torch import Tensor

from blip.inference.inputs import Images, Texts, as_list
from blip.inference.predictor import Predictor
from blip.interpret.points import layers_of
from blip.interpret.recording import Trace, TraceError
from blip.models.momentum import unit_features
from blip.network.med import TextDecoder


@torch.no_grad()
def logit_lens(t: Trace) -> dict[str, Tensor]:
    """The next-token log-probabilities (R, T, V) of each layer of the text decoder (nostalgebraist 2020), by point.

    The head of the decoder is applied to the states of every layer; the last layer gives the model's own output.

    Args:
        t: a trace of `decoder.*.out` in one pass (`scoring.caption_log_probs`).

    Raises:
        TraceError: the model has no text decoder, or `t` lacks a layer.

    Example:
        >>> from blip.inference.scoring import caption_log_probs
        >>> m = blip.load("checkpoint")
        >>> with blip.trace(m, "decoder.*.out") as t:
        ...     scores = caption_log_probs(m, ["chest.png"], ["small left effusion"])
        >>> for layer, log_probs in blip.logit_lens(t).items():
        ...     print(layer, [m.tokenizer.token(i) for i in log_probs[0].argmax(dim=1).tolist()])
    """
    decoder = getattr(t.model, "text_decoder", None)
    if not isinstance(decoder, TextDecoder):
        raise TraceError("this model has no text decoder: a logit lens reads captions or answers")
    outs = [f"{name}.out" for name, _ in layers_of(t.model) if name.startswith("decoder")]
    return {name: decoder.head(t[name]).float().log_softmax(dim=-1) for name in outs}


@torch.no_grad()
def patch_lens(m: Predictor, images: Images, texts: Texts) -> Tensor:
    """Cosine of every patch, projected as CLS is, with every text: (B, R, h, w).

    The projection was trained on CLS alone: whether its values for patches are meaningful has to be tested.

    Raises:
        CheckpointError: the checkpoint's task has no features of images and texts.

    Example:
        >>> m = blip.load("checkpoint")
        >>> cosines = blip.patch_lens(m, "chest.png", ["left effusion", "normal"])  # (1, 2, h, w)
    """
    model = m.needs("encode", "compare patches with texts")
    pixels = m.pixels(as_list(images))
    patch = model.image_encoder.config.patch
    features = unit_features(model.image_proj, model.image_encoder(pixels)[:, 1:])  # (B, N, E)
    cosines = (features @ m.encode_text(texts).T).transpose(1, 2)
    return cosines.unflatten(2, (pixels.shape[2] // patch, pixels.shape[3] // patch))


def attention_rollout(t: Trace) -> Tensor:
    """How much of each patch arrives in each token of the image encoder, (B, 1+N, 1+N); rows sum to one.

    Abnar and Zuidema 2020: heads averaged, the identity with equal weight for the residual, layers multiplied.

    Args:
        t: a trace of `image.*.attn.*`.

    Raises:
        TraceError: `t` lacks a layer, or the model has no image encoder.

    Example:
        >>> m = blip.load("checkpoint")
        >>> with blip.trace(m, "image.*.attn.*") as t:
        ...     features = m.match_logits("chest.png", "small left effusion")
        >>> rolled = blip.attention_rollout(t)  # (1, 1+N, 1+N)
    """
    rolled: Tensor | None = None
    for name, _ in layers_of(t.model):
        if name.startswith("image"):
            pattern = t.pattern(f"{name}.attn").mean(dim=1)
            tokens = pattern.shape[2]
            step = (pattern + torch.eye(tokens, device=pattern.device)[:tokens][: pattern.shape[1]]) / 2
            rolled = step if rolled is None else step @ rolled
    if rolled is None:
        raise TraceError("this model has no image encoder")
    return rolled
