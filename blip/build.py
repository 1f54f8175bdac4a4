"""From a configuration to a model: its sizes, and the weights that it starts from."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from blip import distributed
from blip.checkpoints import convert
from blip.checkpoints.format import TOKENIZER, CheckpointError, load_strict
from blip.checkpoints.initialize import check_heads, init_text, init_vision
from blip.config import ConfigError, ModelConfig, PretrainConfig
from blip.models.momentum import Queue, Twin, update_twin
from blip.models.pretrain import PretrainModel
from blip.network.med import TextConfig
from blip.network.vit import VIT_SIZES, ViTConfig, fit_image_size
from blip.tokenizer import Specials, Tokenizer, load_tokenizer


def annotation_files(config: ModelConfig) -> list[str | Mapping[str, Any]]:
    """The training files, each a path or a path and a weight."""
    return [entry if isinstance(entry, str) else entry.model_dump() for entry in config.train_file]


def choose_tokenizer(config: ModelConfig, texts: Iterable[str], output: Path, resume: Path | None) -> Tokenizer:
    """The checkpoint's tokenizer (training one is not reproducible), else the configured one, saved with the run.

    `tokenizer: train` learns one from `texts`; none named means that of `init_from`.
    """
    saved = output / TOKENIZER
    if resume is not None:
        tokenizer = load_tokenizer(str(resume / TOKENIZER))
        if distributed.is_main() and not saved.is_file():  # the run goes on in another folder
            output.mkdir(parents=True, exist_ok=True)
            tokenizer.save(saved)
        return tokenizer
    if distributed.is_main():
        if config.tokenizer == "train":
            tokenizer = Tokenizer.train(texts, config.vocab_size)
        else:
            tokenizer = load_tokenizer(config.tokenizer or str(own_tokenizer(config.init_from)))
        output.mkdir(parents=True, exist_ok=True)
        tokenizer.save(saved)
        check_vocabulary(saved, config.init_from)
    distributed.barrier()
    return load_tokenizer(str(saved))


def own_tokenizer(checkpoint: str) -> Path:
    """The tokenizer that lies in a checkpoint's folder."""
    if not checkpoint:
        raise ConfigError("without init_from there is no tokenizer: set tokenizer, or tokenizer: train")
    for name in (TOKENIZER, "vocab.txt"):
        if (Path(checkpoint) / name).is_file():
            return Path(checkpoint) / name
    raise ConfigError(
        f"{checkpoint} comes without a tokenizer: set tokenizer; for the released models it is the vocab.txt of "
        "bert-base-uncased"
    )


def check_vocabulary(tokenizer_file: Path, init_from: str) -> None:
    """ConfigError where the weights that the run starts from know other words, even if as many."""
    theirs = Path(init_from) / TOKENIZER
    if init_from and theirs.is_file():
        vocab, known = (json.loads(file.read_text("utf-8"))["model"]["vocab"] for file in (tokenizer_file, theirs))
        if vocab != known:
            raise ConfigError(f"{init_from} was trained with another tokenizer: set tokenizer: {theirs}")


def vit_config(config: ModelConfig) -> ViTConfig:
    """The image encoder's sizes: those of a name, or the four numbers of `vit: custom`."""
    if config.vit == "custom":
        sizes = (config.vit_width, config.vit_depth, config.vit_heads, config.vit_patch)
    else:
        sizes = VIT_SIZES[config.vit]
    width, depth, heads, patch = (int(size or 0) for size in sizes)
    return ViTConfig(config.image_size, patch, width, depth, heads, drop_path=config.drop_path)


def text_config(config: ModelConfig, vocab_size: int) -> TextConfig:
    """The text transformer's sizes."""
    return TextConfig(
        vocab_size=vocab_size,
        width=config.text_width,
        layers=config.text_layers,
        heads=config.text_heads,
        hidden=config.text_hidden,
        max_positions=config.max_positions,
        image_width=vit_config(config).width,
        dropout=config.dropout,
    )


def build_pretrain(
    config: PretrainConfig, vocab_size: int, specials: Specials, device: torch.device, fresh: bool = True
) -> tuple[PretrainModel, Twin, Queue]:
    """The model, its momentum twin and its queue, with the starting weights that the configuration names.

    Not `fresh`, all weights are random: a checkpoint's are loaded next.
    """
    vit, text = vit_config(config), text_config(config, vocab_size)
    model = PretrainModel(vit, text, specials, config.embed_dim, config.temperature, config.label_smoothing)
    queue = Queue(config.queue_size, config.embed_dim)
    foreign: dict[str, Tensor] = {}
    if fresh:
        if config.vision_init:
            init_vision(model, config.vision_init)
        if config.text_init:
            init_text(model, config.text_init)
        if config.init_from:
            foreign = _foreign(config, vit, text)
    own, twin_tensors, queue_tensors = convert.split(foreign)
    if own:
        fit_image_size(own, vit)
        load_strict(model, own, config.init_from)
    twin = Twin(model)
    if twin_tensors:
        fit_image_size(twin_tensors, vit)
        load_strict(twin, twin_tensors, f"{config.init_from} (momentum twin)")
        # the published code saves a twin that is one update behind
        update_twin(*twin.pairs_with(model), config.momentum)
    if queue_tensors and queue_tensors["images"].shape == queue.images.shape:
        load_strict(queue, queue_tensors, f"{config.init_from} (queue)")
    return model.to(device), twin.to(device), queue.to(device)


def _foreign(config: PretrainConfig, vit: ViTConfig, text: TextConfig) -> dict[str, Tensor]:
    """The tensors of `init_from`; CheckpointError where it is of another task or has other heads."""
    says_heads = not config.init_from.endswith(".pth")
    tensors, info = convert.read(config.init_from, *((None, None) if says_heads else (vit.heads, text.heads)))
    if info["task"] != "pretrain":
        raise CheckpointError(
            f"{config.init_from} is a checkpoint of {info['task']}, which lacks parts that pre-training needs; start "
            "from one of pre-training, or from ViT and BERT weights (vision_init, text_init)"
        )
    check_heads(info, vit.heads, text.heads, config.init_from)
    return tensors


def describe(config: PretrainConfig, model: PretrainModel) -> dict:
    """What `model.json` says of a pre-trained model: enough to build it again and to prepare its inputs."""
    return {
        "task": "pretrain",
        "image_encoder": asdict(model.image_encoder.config),
        "text_encoder": asdict(model.text_encoder.config),
        "embed_dim": config.embed_dim,
        "max_text_tokens": config.max_text_tokens,
        "text_cleaning": config.text_cleaning,
    }


def buckets(longest: int) -> tuple[int, ...]:
    """Text lengths, in tokens, that compiled code meets: few, and none above `longest`."""
    return (*(n for n in (8, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384) if n < longest), longest)


def blocks(model: nn.Module) -> list[nn.Module]:
    """The modules that are compiled, or whose activations are recomputed, one by one."""
    parts = (("image_encoder", "blocks"), ("text_encoder", "layers"), ("text_decoder", "layers"))
    found: list[nn.Module] = []
    for part, name in parts:
        if hasattr(model, part):
            found += getattr(getattr(model, part), name)
    return found


def recomputable(model: nn.Module, kind: str) -> list[nn.Module]:
    """The blocks whose activations `kind` of checkpointing can recompute.

    fairscale follows tensors among the arguments alone. Text layers get an image's keys inside an object: its backward
    pass would run through what is behind them once for each layer, which fails.
    """
    return list(model.get_submodule("image_encoder.blocks").children()) if kind == "fairscale" else blocks(model)
