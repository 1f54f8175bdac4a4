"""NLVR2: is a statement true of two images? Cross-attention attends to both (Li et al. 2022, section 5.4).

Shapes: B statements, N image tokens, T text tokens.
"""

from torch import Tensor, nn
from torch.nn import functional as F

from blip.errors import InputError
from blip.network.embeddings import TextConfig
from blip.network.med import TextEncoder
from blip.network.packing import Rows, with_first
from blip.network.vit import ViT, ViTConfig
from blip.tokenizer import Specials


class NlvrModel(nn.Module):
    """Image encoder, text encoder with two images, and a classifier of the `[ENC]` state; class 1 = true."""

    def __init__(self, vit: ViTConfig, text: TextConfig, specials: Specials):
        super().__init__()
        if text.images != 2:
            raise InputError(f"the text encoder of NLVR2 attends to two images, not {text.images}")
        self.specials = specials
        self.image_encoder = ViT(vit)
        self.text_encoder = TextEncoder(text)
        self.cls_head = nn.Sequential(nn.Linear(text.width, text.width), nn.ReLU(), nn.Linear(text.width, 2))

    def forward(self, images: Tensor, ids: Tensor, lengths: Tensor) -> Tensor:
        """images (B, 2, 3, height, width), ids (B, T) `[CLS] ... [SEP]`, lengths (B,) -> logits (B, 2)."""
        # all first images, then all second ones, as published: the order in which drop path draws
        states = self.image_encoder(images.transpose(0, 1).flatten(0, 1)).unflatten(0, (2, -1)).transpose(0, 1)
        rows = Rows(lengths, ids.shape[1], ids.device)
        keys = self.text_encoder.pair_keys(states)
        first = self.text_encoder.multimodal(with_first(ids, self.specials.enc), rows, keys, first_only=True)
        return self.cls_head(first)


def statement_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """Cross-entropy of logits (B, 2) and labels (B,), 1 = true."""
    return F.cross_entropy(logits.float(), labels)
