"""The published code's numbers, read with every size from their folder, and how they are compared."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from blip.checkpoints import convert
from blip.checkpoints.format import load_strict
from blip.checkpoints.names import SALESFORCE, rename
from blip.models.momentum import Queue, Twin
from blip.models.pretrain import PretrainModel
from blip.models.retrieval import RetrievalModel
from blip.network.embeddings import TextConfig
from blip.network.packing import Rows
from blip.network.vit import ViTConfig
from blip.tokenizer import load_tokenizer

FEATURES = 1e-5  # absolute; also of the first step's losses
LATER = 1e-4  # AdamW amplifies rounding; also of gradients, relative to their norm


class Golden:
    """One kind of checkpoint with its numbers: every size comes from the folder."""

    def __init__(self, folder: Path, kind: str):
        self.meta = json.loads((folder / "meta.json").read_text())
        self.settings = json.loads((folder / f"{kind}.json").read_text())
        with np.load(folder / f"{kind}.npz") as file:
            self.numbers = {name: torch.from_numpy(file[name]) for name in file.files}
        self.tokenizer = load_tokenizer(str(folder / "vocab.txt"))
        heads = self.meta["vit"]["heads"], self.meta["text"]["heads"]
        tensors, self.info = convert.read(folder / f"{kind}.pth", *heads)
        self.model_tensors, self.twin_tensors, self.queue_tensors = convert.split(tensors)
        self.vit = ViTConfig(**self.info["image_encoder"])
        self.text = TextConfig(**(self.info.get("text_encoder") or self.info["text_decoder"]))

        self.specials = self.tokenizer.specials

    def ids(self, what: str = "captions") -> tuple[Tensor, Tensor]:
        """The captions (or questions, answers, texts), padded: ids (B, T) and lengths (B,)."""
        limit = self.settings.get("max_text_tokens", self.text.max_positions)
        encoded = self.tokenizer.encode(self.settings[what], limit)
        lengths = torch.tensor([len(ids) for ids in encoded])
        ids = [ids + [self.tokenizer.pad_id] * (int(lengths.max()) - len(ids)) for ids in encoded]
        return torch.tensor(ids), lengths

    def rows(self, lengths: Tensor, packed: bool) -> Rows:
        return Rows(lengths, int(lengths.max()), lengths.device, packed=packed)

    def pretrain_model(self) -> tuple[PretrainModel, Twin, Queue]:
        model = PretrainModel(self.vit, self.text, self.specials, embed_dim=self.info["embed_dim"])
        twin = Twin(model)
        queue = Queue(self.settings["queue_size"], self.info["embed_dim"])
        load_strict(model, self.model_tensors, "model")
        load_strict(twin, self.twin_tensors, "twin")
        load_strict(queue, self.queue_tensors, "queue")
        return model.eval(), twin.eval(), queue  # dropout is off in these numbers

    def retrieval_model(self) -> RetrievalModel:
        model = RetrievalModel(self.vit, self.text, self.specials, embed_dim=self.info["embed_dim"])
        load_strict(model, {"temperature": torch.tensor(0.07), **self.model_tensors}, "model")
        return model.eval()


def close(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    torch.testing.assert_close(actual.detach(), expected, rtol=0, atol=tolerance)


def arg_max(weights: Tensor) -> tuple[Tensor, Tensor]:
    return weights.argmax(dim=1), weights.sum(dim=1) > 0


def train(golden: Golden, model: nn.Module, loss_of: Callable[[int], Tensor]) -> None:
    """Three optimizer steps: each loss, and the gradients of the first."""
    settings = dict(golden.settings["optimizer"])
    optimizer = getattr(torch.optim, settings.pop("kind"))(model.parameters(), **settings)
    for step, expected in enumerate(golden.settings["losses"]):
        loss = loss_of(step)
        close(loss, torch.tensor(expected[0]), FEATURES if step == 0 else LATER)
        optimizer.zero_grad()
        loss.backward()
        if step == 0:
            check_gradients(golden, model)
        optimizer.step()


def check_gradients(golden: Golden, model: torch.nn.Module) -> None:
    gradients = {name: p.grad for name, p in model.named_parameters()}
    compared = 0
    for name, expected in golden.numbers.items():
        if name.startswith("grad0."):
            gradient: Any = gradients[rename(name.removeprefix("grad0."), SALESFORCE)]
            assert (gradient - expected).norm() <= LATER * expected.norm(), name
            compared += 1
    assert compared > 0


def check_twin(golden: Golden, twin: Twin) -> None:
    weights = dict(twin.named_parameters())
    names = [n for n in golden.numbers if n.startswith("after.") and "_m." in n]
    for name in names:
        ours = str(rename(name.removeprefix("after."), SALESFORCE)).removeprefix("twin.")
        close(weights[ours], golden.numbers[name], LATER)
    assert names
