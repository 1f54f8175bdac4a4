"""Tiny runs of BLIP-2 on phantoms: both stages, and a random language model for the second."""

import itertools
import json
from functools import partial
from pathlib import Path
from typing import Any

import torch
from language_model import word_tokenizer

from blip.checkpoints.format import save_weights
from blip.config import load_config
from blip.tasks import blip2, blip2_start
from blip.tasks.blip2_config import Blip2Config
from helpers.fine_tuning import CPU
from helpers.recorded_pretraining import hardest
from helpers.running import join
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


def write_stages(folder: Path, phantoms: Path) -> None:
    """Random tiny weights where commands of the documentation name them: a run of the first stage, runs/q1, one of the
    second that was fine-tuned, runs/roco2, and the language model."""
    language = write_language_model(folder / "language_model", phantoms)
    for config, run, weights in (
        (stage1(phantoms), "q1", "checkpoints/step-00000001"),
        (stage1(phantoms), "demo_blip2/stage1", "checkpoints/step-00000001"),
        (stage2(phantoms, language), "roco2", "best"),
    ):
        output = folder / "runs" / run
        make = blip2.Stage2 if config.language_model else blip2.Stage1
        task = make(config, None, output, resume=None, device=CPU)
        save_weights(output / weights, task.weights(), task.info())
        (output / "tokenizer.json").rename(output / weights / "tokenizer.json")
        (output / "config.yaml").write_text("{}\n")


# ---- in several processes --------------------------------------------------------------------------------------------


def equal_captions_file(phantoms: Path, path: Path) -> Path:
    """Captions of as many tokens each, so that the mean over the tokens of a process is that of all."""
    records = json.loads((phantoms / "captions.json").read_text())[:8]
    orders = list(itertools.permutations(["chest", "head", "left", "right"]))
    made = [{"image": str(phantoms / r["image"]), "caption": " ".join(orders[3 * i])} for i, r in enumerate(records)]
    path.write_text(json.dumps(made))
    return path


def three_steps(config: Blip2Config, folder: Path) -> dict[str, Any]:
    """The weights after three steps whose negatives are not drawn, in this process of however many there are."""
    source = blip2_start.read_source(config)
    make = blip2.Stage2 if blip2_start.is_stage2(config, source) else blip2.Stage1
    task = make(blip2_start.with_sizes_of(config, source), source, folder, resume=None, device=CPU)
    if isinstance(task, blip2.Stage1):
        task.model.forward = partial(task.model.forward, draw=hardest)
    optimizer = torch.optim.AdamW((p for p in task.model.parameters() if p.requires_grad), lr=0.003)
    for number, batch in enumerate(itertools.islice(task.batches(0), 3)):
        task.parallel.train()
        task.step(batch, number).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        task.after_update(number + 1)
    return {name: tensor.clone() for name, tensor in task.weights().items()}


def of_two(rank: int, port: int, folder: Path, configs: list[Blip2Config]) -> None:
    """What each of two processes has after three steps of each configuration."""
    join(rank, port)
    found = [three_steps(config, folder / f"run-{number}") for number, config in enumerate(configs)]
    torch.save(found, folder / f"{rank}.pt")
