"""Lenses: layers as words, as match logits and as features; attention through all layers of the image encoder."""

import torch
from torch import Tensor

from blip.errors import InputError
from blip.inference.inputs import Images, Texts, as_list
from blip.inference.predictor import Predictor
from blip.interpret.points import layers_of, queries_of
from blip.interpret.recording import Trace, TraceError
from blip.models.momentum import unit_features
from blip.network.med import TextDecoder
from blip.network.vit import ViT

OF_QUERIES = (
    "the features of a BLIP-2 are projected from its queries, not from patches: blip explain shows what they read"
)


@torch.no_grad()
def logit_lens(t: Trace, stack: str = "decoder") -> dict[str, Tensor]:
    """The next-token log-probabilities (R, T, V) of each layer of a text transformer (nostalgebraist 2020), by point.

    The word head of the decoder is applied to the states of every layer; of the decoder, the last layer gives the
    model's own output. The encoder was never trained to predict words: it shares embeddings, cross-attention and
    feed-forward networks with the decoder in pre-training, so the head can name what its states resemble, no more.

    Args:
        t: a trace of `decoder.*.out` in one pass (`scoring.caption_log_probs`), or of `text.*.out` (`match_logits`).
        stack: `decoder`, or `text`, the encoder.

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
    if stack not in ("decoder", "text"):
        raise TraceError(f"stack is {stack!r}; it can be decoder or text, and `image_lens` reads the image encoder")
    return {name: decoder.head(t[name]).float().log_softmax(dim=-1) for name in _outs(t, stack)}


@torch.no_grad()
def match_lens(t: Trace) -> dict[str, Tensor]:
    """The match logits (R, 2) of each layer of the text encoder, by point: the head's reading of its `[ENC]`.

    Args:
        t: a trace of `text.*.out` in one pass of `match_logits`; the last layer gives the model's own logits.

    Raises:
        TraceError: the model has no head for matching, or `t` lacks a layer.
    """
    head = getattr(t.model, "itm_head", None)
    outs = _outs(t, "text")
    if head is None or not outs:
        raise TraceError("this model has no text encoder with a match head: a match lens reads pre-training, retrieval")
    return {name: head(t[name][:, 0]).float() for name in outs}


@torch.no_grad()
def image_lens(t: Trace, text_features: Tensor) -> dict[str, Tensor]:
    """The cosines (B, 1+N, R) of the image's states after each block with texts, by point.

    Each state gets the encoder's last norm and the projection that was trained on the last CLS alone. For CLS this is
    what contrast would compare if the encoder ended there; for patches see `patch_lens`. Each picture of an item is a
    row of its own, with the embedding of the first place where the model has `picture_embeddings`.

    Args:
        t: a trace of `image.*.out`; of the last block with all tokens, as `match_logits` computes it.
        text_features: (R, E), from `encode_text`.

    Raises:
        TraceError: the model has no features of images, or `t` lacks a block.
    """
    project, encoder = getattr(t.model, "image_proj", None), getattr(t.model, "image_encoder", None)
    if project is None or not isinstance(encoder, ViT):
        raise TraceError("this model has no projection of images: an image lens reads pre-training, retrieval")
    if queries_of(t.model) is not None:
        raise TraceError(OF_QUERIES)
    pictures = encoder.picture_embeddings
    cosines = {}
    for name in _outs(t, "image"):
        states = encoder.norm(t[name])
        cosines[name] = unit_features(project, states if pictures is None else pictures(states)) @ text_features.T
    return cosines


def _outs(t: Trace, stack: str) -> list[str]:
    return [f"{name}.out" for name, _ in layers_of(t.model) if name.startswith(f"{stack}.")]


@torch.no_grad()
def patch_lens(m: Predictor, images: Images, texts: Texts) -> Tensor:
    """Cosine of every patch, projected as CLS is, with every text: (B, R, h, w).

    The projection was trained on CLS alone: whether its values for patches are meaningful has to be tested.

    Raises:
        CheckpointError: the checkpoint's task has no features of images and texts.
        TraceError: a BLIP-2, whose features are of queries.
        InputError: an item of several pictures.

    Example:
        >>> m = blip.load("checkpoint")
        >>> cosines = blip.patch_lens(m, "chest.png", ["left effusion", "normal"])  # (1, 2, h, w)
    """
    model = m.needs("encode", "compare patches with texts")
    if queries_of(model) is not None:
        raise TraceError(OF_QUERIES)
    pixels = m.pixels(as_list(images))
    if not isinstance(pixels, Tensor):
        raise InputError("patch_lens is of single pictures: give each picture of a study as an image of its own")
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
