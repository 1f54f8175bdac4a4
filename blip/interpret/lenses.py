"""What the inside of a model would say: decoder layers as words, patches as text features, attention rolled out."""

import torch
from torch import Tensor

from blip.inference.predictor import Images, Predictor, Texts, listed
from blip.interpret.hooks import Trace, TraceError
from blip.interpret.points import layers_of
from blip.models.momentum import unit_features
from blip.models.pretrain import PretrainModel
from blip.models.retrieval import RetrievalModel
from blip.network.med import TextDecoder


@torch.no_grad()
def logit_lens(t: Trace) -> dict[str, Tensor]:
    """The words that each layer of the text decoder would write (nostalgebraist 2020): log-probabilities (R, T, V).

    `t` has traced `decoder.*.out` in one pass (`scoring.caption_log_probs`). The last layer's are the model's own.
    """
    decoder = getattr(t.model, "text_decoder", None)
    if not isinstance(decoder, TextDecoder):
        raise TraceError("this model has no text decoder: a logit lens reads captions or answers")
    outs = [f"{name}.out" for name, _ in layers_of(t.model) if name.startswith("decoder")]
    return {name: decoder.head(t[name]).float().log_softmax(dim=-1) for name in outs}


@torch.no_grad()
def patch_lens(m: Predictor, images: Images, texts: Texts) -> Tensor:
    """Cosine of every patch, projected as CLS is, with every text: (B, R, h, w).

    The projection was trained on CLS alone; that patches mean something to it has to be seen, not taken for granted.
    """
    model = m.needs("image_proj", "compare patches with texts", PretrainModel, RetrievalModel)
    pixels = m.pixels(listed(images))
    patch = model.image_encoder.config.patch
    features = unit_features(model.image_proj, model.image_encoder(pixels)[:, 1:])  # (B, N, E)
    cosines = (features @ m.encode_text(texts).T).transpose(1, 2)
    return cosines.unflatten(2, (pixels.shape[2] // patch, pixels.shape[3] // patch))


def attention_rollout(t: Trace) -> Tensor:
    """How much of each patch arrives in each token of the image encoder, (B, 1+N, 1+N), rows sum to one.

    Abnar and Zuidema 2020: heads averaged, half of each layer for its residual, layers multiplied. `t` has traced
    `image.*.attn.*`.
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
