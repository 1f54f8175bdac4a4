"""Tiny runs of BLIP-2 on phantoms: both stages, and a random language model for the second."""

import json
from pathlib import Path
from typing import Any

import torch
from language_model import word_tokenizer

from blip.config import load_config
from blip.tasks import blip2
from blip.tasks.blip2_config import Blip2Config
from helpers.fine_tuning import CPU
from helpers.tiny import TINY

SIZES = {"queries": 4, "cross_every": 2, "max_text_tokens": 24}
SHARED: dict[str, object] = {
    **{key: value for key, value in TINY.items() if key not in ("queue_size", "randaugment")},
    **SIZES,
    "batch_size": 4,
    "max_steps": 4,
    "epochs": 100,
    "warmup_steps": 2,
    "lr": 0.003,
    "save_every_steps": 2,
}
SIZED = ("vit", "vit_width", "vit_depth", "vit_heads", "vit_patch", "text_width", "text_layers", "text_heads",
         "text_hidden", "max_positions", "embed_dim", "queries", "cross_every")  # fmt: skip


def write_language_model(folder: Path, phantoms: Path, width: int = 24) -> Path:
    """A random OPT that knows the words of the phantoms' captions and questions."""
    import transformers

    texts = [record["caption"] for record in json.loads((phantoms / "captions.json").read_text())]
    for record in json.loads((phantoms / "questions.json").read_text()):
        texts += [record["question"], record["answer"], "Question: Answer:"]
    tokenizer = word_tokenizer(texts)
    torch.manual_seed(0)
    config = transformers.OPTConfig(
        vocab_size=len(tokenizer) + 2, hidden_size=width, word_embed_proj_dim=width, num_hidden_layers=2,
        num_attention_heads=4, ffn_dim=48, max_position_embeddings=128, dropout=0.1, pad_token_id=0, bos_token_id=1,
        eos_token_id=1,
    )  # fmt: skip
    transformers.OPTForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def stage1(phantoms: Path, *options: str, **values: Any) -> Blip2Config:
    """The configuration of a tiny run of the first stage."""
    files = {"train_file": f"[{phantoms}/captions.json]", "tokenizer": f"{phantoms}/tokenizer.json"}
    return _config(phantoms, {**SHARED, **files, **values}, options)


def stage2(phantoms: Path, language: Path, *options: str, **values: Any) -> Blip2Config:
    """The configuration of a tiny run of the second stage; without `init_from` its weights are random."""
    given = {key: value for key, value in SHARED.items() if not (values.get("init_from") and key in SIZED)}
    files = {"train_file": f"[{phantoms}/captions.json]", "language_model": language, "language_dtype": "fp32"}
    return _config(phantoms, {**given, **files, **values}, options)


def _config(folder: Path, values: dict[str, Any], options: tuple[str, ...]) -> Blip2Config:
    path = folder / "blip2.yaml"
    path.write_text("".join(f"{key}: {value}\n" for key, value in values.items()))
    return load_config(path, Blip2Config, list(options))


def train(config: Blip2Config, output: Path, resume: str = "") -> Path:
    """Runs a stage to its end -> its newest checkpoint."""
    assert blip2.run(config, output, resume, device=CPU)
    return output / "checkpoints" / "latest"
