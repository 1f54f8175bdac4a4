"""Image-text retrieval and matching: the encoders, projections and match head, without a decoder.

This is what inference needs; fine-tuning is not here yet.
"""

import torch
from torch import nn

from blip.med import TextConfig, TextEncoder
from blip.vit import ViT, ViTConfig


class RetrievalModel(nn.Module):
    """Image encoder, text encoder, two projections and the match head, with the names that pre-training gives them."""

    def __init__(self, vit: ViTConfig, text: TextConfig, embed_dim: int = 256, temperature: float = 0.07):
        super().__init__()
        self.image_encoder = ViT(vit)
        self.text_encoder = TextEncoder(text)
        self.image_proj = nn.Linear(vit.width, embed_dim)
        self.text_proj = nn.Linear(text.width, embed_dim)
        self.itm_head = nn.Linear(text.width, 2)
        self.temperature = nn.Parameter(torch.tensor(temperature))
