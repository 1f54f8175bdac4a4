"""A pre-training step of ours and the published one, with their sizes and the batch that both are given.

`train_step.py` measures them; `gpu_parts.py` and `blip2_stage1.py` use parts of this.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from blip.models.momentum import TEMPERATURE_RANGE, Entries, Queue, Twin, candidates, update_twin
from blip.models.pretrain import PretrainModel
from blip.network.med import TextConfig
from blip.network.vit import VIT_SIZES, ViTConfig
from blip.tokenizer import Specials
from blip.train.parallel import compile_model, padded_lengths

PAD, ENC, DEC = 0, 30523, 30522
CLS, SEP = 101, 102
LONGEST, MEAN_LENGTH = 30, 20
EMBED, MOMENTUM, ALPHA, LR, WEIGHT_DECAY = 256, 0.995, 0.4, 1e-5, 0.05
Losses = tuple[Tensor, Tensor, Tensor]


@dataclass
class Size:
    vit: ViTConfig
    text: TextConfig
    queue: int


def sizes(name: str) -> Size:
    """`base` is ViT-B/16 at 224 px with BERT-base; `small` only shows that the script runs."""
    if name == "small":
        vit = ViTConfig(32, 8, 64, 2, 4)
        return Size(vit, TextConfig(width=64, layers=2, heads=4, hidden=128, image_width=64, dropout=0.0), 64)
    width, depth, heads, patch = VIT_SIZES[name]
    vit = ViTConfig(224, patch, width, depth, heads)
    return Size(vit, TextConfig(image_width=width, dropout=0.0), 57600)


@dataclass
class Batch:
    images: Tensor  # (B, 3, height, width)
    ids: Tensor  # (B, LONGEST), padded
    lengths: Tensor  # (B,)

    def to(self, device: str) -> "Batch":
        return Batch(self.images.to(device), self.ids.to(device), self.lengths)  # lengths stay on the CPU


def make_batch(count: int, image_size: int, seed: int) -> Batch:
    """Random images, and captions of 10 to 30 tokens, 20 on average to the token, special tokens included."""
    g = torch.Generator().manual_seed(seed)
    lengths = (MEAN_LENGTH + 5 * torch.randn(count, generator=g)).round().long().clamp(10, LONGEST)
    while (excess := int(lengths.sum()) - MEAN_LENGTH * count) != 0:
        step = 1 if excess < 0 else -1
        places = ((lengths + step >= 10) & (lengths + step <= LONGEST)).nonzero().squeeze(1)
        lengths[places[torch.randint(len(places), (), generator=g)]] += step
    ids = torch.randint(1000, 30522, (count, LONGEST), generator=g)
    ids[:, 0] = CLS
    ids[torch.arange(count), lengths - 1] = SEP
    ids[torch.arange(LONGEST) >= lengths[:, None]] = PAD
    return Batch(torch.randn(count, 3, image_size, image_size, generator=g), ids, lengths)


def most_similar(weights: Tensor) -> tuple[Tensor, Tensor]:
    return weights.argmax(dim=1), weights.sum(dim=1) > 0


class Ours:
    """The package's training step."""

    def __init__(self, size: Size, device: str):
        self.device = device
        self.model = PretrainModel(size.vit, size.text, Specials(PAD, ENC, DEC), embed_dim=EMBED).to(device)
        self.twin = Twin(self.model).to(device)
        self.queue = Queue(size.queue, EMBED).to(device)
        self.padded: tuple[int, ...] = ()  # lengths of texts when compiled
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=LR, weight_decay=WEIGHT_DECAY, fused=True)

    def compile(self, **options: Any) -> None:
        """Compiles the blocks as `compile: true` does; `options` as in `compile_model`."""
        self.padded = padded_lengths(LONGEST)
        compile_model(self.model, **options)
        compile_model(self.twin, **options)

    def step(self, batch: Batch, bf16: bool = False) -> Losses:
        """A step of a batch on the device, which nothing in it waits for."""
        images, longest = batch.images, int(batch.lengths.max())
        width = next((length for length in self.padded if length > longest), longest)
        ids = F.pad(batch.ids, (0, width - batch.ids.shape[1]), value=PAD).contiguous()
        pair_ids = torch.arange(len(ids), device=self.device)
        with torch.autocast(self.device, torch.bfloat16, enabled=bf16):
            image_m, text_m = self.twin(images, ids, batch.lengths)
            entries = Entries(image_m, text_m, pair_ids, pair_ids)
            others = candidates(entries, self.queue, equal_captions=False, equal_images=False)
            out = self.model(images, ids, batch.lengths, others, ALPHA, draw=most_similar)
        self.optimizer.zero_grad()
        (out.itc + out.itm + out.lm).backward()
        self.optimizer.step()
        with torch.no_grad():
            self.model.temperature.clamp_(*TEMPERATURE_RANGE)
        update_twin(*self.twin.pairs_with(self.model), MOMENTUM)
        self.queue.push(entries)
        return out.itc.detach(), out.itm.detach(), out.lm.detach()


class Theirs:
    """The published step: its model moves the twin, pushes the queue and clamps the temperature itself."""

    def __init__(self, size: Size, device: str):
        from benchmarks.peers import PublishedPretrain

        self.device = device
        self.model = PublishedPretrain(size.vit, size.text, PAD, ENC, DEC, EMBED, size.queue).to(device).train()
        self.optimizer = torch.optim.AdamW(self.model.trained(), lr=LR, weight_decay=WEIGHT_DECAY)

    def step(self, batch: Batch, bf16: bool = False) -> Losses:
        with torch.autocast(self.device, torch.bfloat16, enabled=bf16):
            itc, itm, lm = self.model(batch.images, batch.ids, ALPHA, most_similar)
        self.optimizer.zero_grad()
        (itc + itm + lm).backward()
        self.optimizer.step()
        return itc.detach(), itm.detach(), lm.detach()


def compare(ours: Ours, theirs: Theirs, batch: Batch) -> dict:
    """Two steps of both in float32, from the same weights: losses and their largest difference."""
    theirs.model.load_ours(ours.model.state_dict(), ours.queue.state_dict())
    steps = [(_floats(ours.step(batch)), _floats(theirs.step(batch))) for _ in range(2)]
    differences = [max(abs(a - b) for a, b in zip(mine, peer, strict=True)) for mine, peer in steps]
    return {
        "losses": ["itc", "itm", "lm"],
        "ours": [mine for mine, _ in steps],
        "theirs": [peer for _, peer in steps],
        "largest_difference": differences,
    }


def _floats(losses: Losses) -> list[float]:
    return [float(loss) for loss in losses]
