"""Small random models of every task with a tokenizer, as checkpoints of ours, and images to ask them about."""

from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from blip.checkpoints import convert
from blip.checkpoints.format import unique_state
from blip.models.factory import model_of
from blip.network.med import TextConfig
from blip.tokenizer import Tokenizer
from helpers.bad_checkpoint_cases import TINY_TEXT, TINY_VIT

TEXTS = ["a large lesion in the left lung", "normal chest x-ray", "is there a lesion", "yes", "no"]
QUESTIONS = ["normal", "is there a large lesion in the left lung", "a chest x-ray"]
ANSWERS = ["yes", "no", "a lesion", "a large lesion", "left", "normal chest"]
CLOSE = {"rtol": 0, "atol": 1e-5}


def random_checkpoint(folder: Path, task: str, same_width: bool = False, **info: object) -> Path:
    """A checkpoint of ours with random weights that are large enough for answers to differ."""
    letters = [sign for letter in "abcdefghijklmnopqrstuvwxyz-" for sign in (letter, f"##{letter}")]
    whole = sorted({word for text in TEXTS for word in text.replace("-", " ").split()} - set(letters))
    vocabulary = folder / f"{task}.vocab.txt"  # not trained, which would give other numbers each time
    vocabulary.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *whole]))
    words = Tokenizer.from_vocab(vocabulary)
    words.save(folder / f"{task}.words.json")
    width = TINY_VIT.width if same_width else TINY_TEXT.width
    text = TextConfig(**{**asdict(TINY_TEXT), "vocab_size": words.size, "width": width, "heads": 2 + (not same_width)})
    text.images = 2 if task == "nlvr" else 1
    torch.manual_seed(5)
    model = model_of(task, TINY_VIT, text, words.specials, 24)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
        if hasattr(model, "text_decoder"):
            model.text_decoder.head.bias[words.sep_id] += 1.5  # texts end, some sooner than others
    about = {"task": task, "image_encoder": asdict(TINY_VIT), **info}
    about |= {part: asdict(getattr(model, part).config) for part in ("text_encoder", "text_decoder")
              if hasattr(model, part)}  # fmt: skip
    about |= {"embed_dim": 24} if task == "retrieval" else {}
    convert.write(folder / task, unique_state(model), about, "blip", folder / f"{task}.words.json")
    return folder / task


def all_checkpoints(folder: Path) -> dict[str, Path]:
    """One of each task that is fine-tuned."""
    info: dict[str, dict] = {"caption": {"prompt": "a"}, "vqa": {"answers": ANSWERS}, "nlvr": {}, "retrieval": {}}
    return {task: random_checkpoint(folder, task, **about) for task, about in info.items()}


def noise_images(folder: Path) -> list[Path]:
    """Three files, one of them in a folder below."""
    noise = np.random.default_rng(0)
    paths = [folder / "a.png", folder / "b.jpg", folder / "c" / "d.png"]
    (folder / "c").mkdir()
    for path in paths:
        Image.fromarray(noise.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(path)
    return paths
