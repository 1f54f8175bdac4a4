"""The published BLIP-2 code's numbers of the first stage, read with every size from their folder."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from blip.checkpoints import convert
from blip.checkpoints.blip2_names import lavis
from blip.checkpoints.format import load_strict
from blip.checkpoints.names import rename
from blip.models.blip2 import Blip2Model
from blip.network.qformer import QFormerConfig
from blip.network.vit import ViTConfig
from blip.tokenizer import Specials, load_tokenizer

FEATURES = 1e-5  # absolute; also of the losses of the first step
LOGITS = 5e-5  # which reach 10 in absolute value
LATER = 1e-4  # losses of later steps, and gradients relative to their norm
WEIGHTS = 5e-4  # weights after three steps, relative to their norm
COPIES = (
    "position_ids",
    "predictions.decoder.weight",
    "predictions.decoder.bias",
)  # of other tensors, or of 0, 1, 2 ...


class Golden2:
    """One kind of numbers of the first stage, and the model that gave them."""

    def __init__(self, folder: Path, kind: str, weights: str = ""):
        """`weights`: the kind whose checkpoint is used, if not the same."""
        self.meta = json.loads((folder / "meta.json").read_text())
        self.settings = json.loads((folder / f"{kind}.json").read_text())
        with np.load(folder / f"{kind}.npz") as file:
            self.numbers = {name: torch.from_numpy(file[name]) for name in file.files}
        self.tokenizer = load_tokenizer(str(folder / "vocab.txt"))
        heads = self.meta["vit"]["heads"], self.meta["qformer"]["heads"]
        tower = str(folder / "eva_vit.pth")  # files leave out what was frozen
        path = folder / f"{weights or kind}.pth"
        self.tensors, self.info = convert.read(path, *heads, image_encoder=tower)

    def model(self) -> Blip2Model:
        """With the weights of before the first step, and without dropout."""
        vit, qformer = ViTConfig(**self.info["image_encoder"]), QFormerConfig(**self.info["qformer"])
        specials = Specials(self.tokenizer.pad_id, -1, self.tokenizer.dec_id)  # there is no [ENC]
        model = Blip2Model(vit, qformer, specials, embed_dim=self.info["embed_dim"])
        load_strict(model, self.tensors, "model")
        return model.eval()

    def ids(self, limit: int | None = None) -> tuple[Tensor, Tensor]:
        """The captions, padded to the longest: ids (B, T) and lengths (B,)."""
        encoded = self.tokenizer.encode(self.settings["captions"], limit or self.settings["max_txt_len"])
        lengths = torch.tensor([len(ids) for ids in encoded])
        ids = [ids + [self.tokenizer.pad_id] * (int(lengths.max()) - len(ids)) for ids in encoded]
        return torch.tensor(ids), lengths

    def optimizer(self, model: nn.Module, uniform: bool = False) -> torch.optim.Optimizer:
        """That of the numbers: no decay of vectors and biases, or with `uniform` the same decay of everything."""
        settings = dict(self.settings["optimizer"])
        kind, decay = getattr(torch.optim, settings.pop("kind")), settings["weight_decay"]
        del settings["groups"]
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        kept = [p for name, p in trained.items() if uniform or not (p.ndim == 1 or name.endswith(".bias"))]
        others = [p for p in trained.values() if not any(p is one for one in kept)]
        groups = [{"params": kept, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}]
        return kind(groups, **settings)


def ours_of(name: str) -> str:
    """Our name of a parameter; KeyError for one that the table does not have."""
    ours = rename(name.replace("attn.q_bias", "attn.qkv.bias").replace("attn.v_bias", "attn.qkv.bias"), lavis(None))
    if ours is None:
        raise KeyError(name)
    return ours


def of_published(name: str, tensors: dict[str, Any]) -> Any:
    """The tensor that the published code calls `name`, of those by our names."""
    whole = tensors[ours_of(name)]
    if name.endswith("attn.q_bias"):
        return whole.chunk(3)[0]
    return whole.chunk(3)[2] if name.endswith("attn.v_bias") else whole


def is_keys_bias(name: str) -> bool:
    """Whether its gradient is zero, so that rounding alone decides where training takes it."""
    return name.endswith(".self.key.bias")
