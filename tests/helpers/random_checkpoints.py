"""Small random models of every task with a tokenizer, as checkpoints of ours, and images to ask them about."""

from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from blip.checkpoints import convert
from blip.checkpoints.format import unique_state
from blip.models.factory import model_of, spec_of
from blip.tokenizer import Tokenizer
from helpers.tiny import STORED_EMBED, STORED_TEXT, STORED_VIT, add_noise

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
    width = STORED_VIT.width if same_width else STORED_TEXT.width
    heads, images = 2 if same_width else 3, spec_of(task).images
    text = replace(STORED_TEXT, vocab_size=words.size, width=width, heads=heads, images=images)
    torch.manual_seed(5)
    model = model_of(task, STORED_VIT, text, specials=words.specials, embed_dim=STORED_EMBED)
    add_noise(model, std=0.2, seed=5)
    if hasattr(model, "text_decoder"):
        with torch.no_grad():
            model.text_decoder.head.bias[words.sep_id] += 1.5  # texts end, some sooner than others
    about = {"task": task, "image_encoder": asdict(STORED_VIT), **info}
    about |= {part: asdict(getattr(model, part).config) for part in ("text_encoder", "text_decoder")
              if hasattr(model, part)}  # fmt: skip
    about |= {"embed_dim": STORED_EMBED} if task == "retrieval" else {}
    convert.write(folder / task, unique_state(model), about, to="blip", tokenizer_file=folder / f"{task}.words.json")
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
