"""Small random BLIP-2 of both stages with a language model, in every format."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from blip.checkpoints import convert
from blip.checkpoints.format import unique_state
from blip.checkpoints.language_models import describe
from blip.models.blip2 import Blip2Model
from blip.models.blip2_language import Blip2LanguageModel
from blip.network.qformer import QFormerConfig
from blip.network.vit import ViTConfig
from blip.tokenizer import Tokenizer
from helpers.language import WIDTH, random_module, small_tokenizer
from helpers.tiny import add_noise

VIT = ViTConfig(image_size=28, patch=14, width=32, depth=2, heads=2, norm_eps=1e-5)
TOWER = "visual_encoder."


def language_folder(folder: Path) -> Path:
    """A folder of transformers with a random OPT and its tokenizer."""
    random_module("opt").save_pretrained(folder)
    small_tokenizer("opt").save_pretrained(folder)
    return folder


def random_stages(words: Tokenizer, language: Path) -> dict[str, tuple[dict[str, Tensor], dict[str, Any]]]:
    """Tensors and info of both stages, by the name of their task."""
    sizes = {"width": 24, "layers": 2, "heads": 2, "hidden": 40, "max_positions": 96, "image_width": 32, "queries": 4}
    read = QFormerConfig(vocab_size=words.dec_id + 1, **sizes)
    look = QFormerConfig(**sizes, text=False)
    torch.manual_seed(0)
    models = {
        "blip2": Blip2Model(VIT, read, words.specials, embed_dim=12),
        "blip2_language": Blip2LanguageModel(VIT, look, WIDTH),
    }
    about: dict[str, dict[str, Any]] = {
        "blip2": {"qformer": asdict(read), "embed_dim": 12},
        "blip2_language": {"qformer": asdict(look), "language_model": describe(str(language))},
    }
    found = {}
    for task, model in models.items():
        add_noise(model, std=0.2)
        with torch.no_grad():
            model.get_parameter("temperature").fill_(0.07) if task == "blip2" else None
        found[task] = unique_state(model), {"task": task, "image_encoder": asdict(VIT), **about[task]}
    return found


def write_everything(folder: Path, words: Path) -> None:
    """In `folder`: `language`, our folders and those of transformers, and files of LAVIS with a tower apart."""
    language = language_folder(folder / "language")
    for task, (tensors, info) in random_stages(Tokenizer.from_file(words), language).items():
        beside = words if task == "blip2" else None
        convert.write(folder / task, tensors, info, tokenizer_file=beside)
        convert.write(folder / f"{task}_hf", tensors, info, to="huggingface", tokenizer_file=beside)
        file = folder / f"{task}.pth"
        convert.write(file, tensors, info, to="salesforce")
        state = torch.load(file, weights_only=True)["model"]
        tower = {name.removeprefix(TOWER): tensor for name, tensor in state.items() if name.startswith(TOWER)}
        torch.save({"model": {name: tensor for name, tensor in state.items() if not name.startswith(TOWER)}}, file)
        torch.save(tower, folder / f"{task}_tower.pth")
