"""What a fine-tuning run starts from: the sizes, the weights and the words of another checkpoint, or nothing.

A checkpoint of any task can start a run of any other: what both have is taken, and what only the new task has starts
at random and is named in the log.
"""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from blip import distributed
from blip.checkpoints import convert, initialize, places
from blip.checkpoints.format import CheckpointError, load_strict, load_weights, unique_state
from blip.checkpoints.initialize import Source, adopt, check_heads, init_text, init_vision, parts_of
from blip.config import ConfigError, ModelConfig, PretrainConfig, load_config
from blip.models.factory import TASKS, Model, model_of, spec_of
from blip.models.momentum import Queue, Twin, update_twin
from blip.models.pretrain import PretrainModel
from blip.network.med import TextConfig
from blip.network.vit import ViTConfig, fit_image_size, form_of, named_vit
from blip.tasks.config import FineTuneConfig
from blip.tasks.data_options import inputs_of, saved_config
from blip.tasks.image_tokens import check_image_sizes
from blip.tasks.sizes import TEXT_KEYS, VIT_KEYS, with_sizes
from blip.tokenizer import Specials, Tokenizer
from blip.train.freeze import freeze

Run = TypeVar("Run", bound=ModelConfig)
# what the optimizer's state depends on: it cannot change within a run
FIXED = ("lora", "freeze", "layer_decay", "decay_norms_and_biases")
# entries of `model.json` that describe how inputs were prepared
SETTINGS = ("image_size", "max_text_tokens", "max_answer_tokens", "text_cleaning", "prompt", "window", "channels")


def as_begun(config: Run, resume: Path) -> Run:
    """The configuration of a resumed run: `init_from` and `embed_dim`, unless given, are those of its `config.yaml`.

    ConfigError for options that cannot change within a run.
    """
    saved = saved_config(resume)
    if saved is None:
        return config
    before = load_config(saved, type(config))
    other = [f"{key} {getattr(before, key)} -> {getattr(config, key)}" for key in FIXED
             if getattr(before, key) != getattr(config, key)]  # fmt: skip
    if other:
        raise ConfigError(f"cannot change within a run: {', '.join(other)}; start a new one with --init_from {resume}")
    kept: dict[str, Any] = {"init_from": config.init_from or before.init_from}
    if "embed_dim" not in config.model_fields_set:  # weights without features do not show their width
        kept["embed_dim"] = before.embed_dim
    return config.model_copy(update=kept)


def read_source(config: FineTuneConfig, resume: Path | None = None) -> Source | None:
    """The checkpoint that `init_from` names, or None. Its momentum twin and queue are left out.

    A resumed run starts from its own checkpoint. A run with adapters starts from `init_from` again, because the
    checkpoints that it writes have the adapters merged into the weights.
    """
    if resume is not None and config.lora is None:
        return _known(Source(*distributed.tensors_from_main(lambda: load_weights(resume)), str(resume)))
    if not config.init_from:
        return None
    path = places.local(config.init_from)
    given = "text_heads" in config.model_fields_set and path.suffix == ".pth"
    heads = config.image_heads, config.text_heads if given else None
    tensors, info = distributed.tensors_from_main(lambda: convert.read(path, *heads))
    return _known(Source(convert.split(tensors)[0], info, config.init_from))


def _known(source: Source) -> Source:
    """The checkpoint itself; CheckpointError unless `model.json` gives a task of this package and the model's sizes."""
    task, sizes = source.info.get("task"), [source.info.get("image_encoder"), source.info.get("text_encoder")]
    if task not in TASKS:
        raise CheckpointError(
            f"{source.path} is a checkpoint of {task or 'no task'}; a run can start from {', '.join(TASKS)}"
        )
    needed = [*VIT_KEYS.values()], [*TEXT_KEYS.values(), "vocab_size"]
    for part, names in zip([sizes[0], sizes[1] or source.info.get("text_decoder")], needed, strict=True):
        if not isinstance(part, dict) or not set(names) <= part.keys():
            raise CheckpointError(f"{source.path} does not give the model's sizes: {', '.join(names)}")
    return source


def with_sizes_of(config: FineTuneConfig, source: Source | None) -> FineTuneConfig:
    """The configuration with the sizes of the checkpoint that it starts from; ConfigError where its own differ."""
    if source is None:
        return config
    sizes: dict[str, Any] = {key: source.info["image_encoder"][name] for key, name in VIT_KEYS.items()}
    sizes |= {key: source.text[name] for key, name in TEXT_KEYS.items()}
    if "embed_dim" in source.info:
        sizes["embed_dim"] = source.info["embed_dim"]
    sized = with_sizes(config, sizes, source.path)
    if config.max_text_tokens > sizes["max_positions"]:
        raise ConfigError(
            f"max_text_tokens {config.max_text_tokens} is above the {sizes['max_positions']} positions of {source.path}"
        )
    return sized


def start_model(
    task: str, config: FineTuneConfig, source: Source | None, *, tokenizer: Tokenizer
) -> tuple[Model, list[str]]:
    """The task's model -> (it, the names of what starts at random although there is a checkpoint)."""
    specials = tokenizer.specials
    vit, text = vit_config(config), text_config(config, tokenizer.size)
    if source is not None:
        vit = with_form_of(vit, source.info["image_encoder"], config)
    text.images = spec_of(task).images
    smoothing = getattr(config, "label_smoothing", 0.1)
    model = model_of(task, vit, text, specials=specials, embed_dim=config.embed_dim, label_smoothing=smoothing)
    if source is None:  # a model of pre-training gives the start: from nothing, or from ViT and BERT weights
        one_image = replace(text, images=1)  # a copy: the model keeps its configuration, which goes into model.json
        whole = PretrainModel(vit, one_image, specials, embed_dim=config.embed_dim)
        if config.vision_init:
            initialize.init_vision(whole, config.vision_init)
        if config.text_init:
            initialize.init_text(whole, config.text_init)
        adopt(model, task, Source(unique_state(whole), {"task": "pretrain"}, "a new model"), vit=vit)
        return model, []
    known = source.text["vocab_size"]
    if known != tokenizer.size:
        raise CheckpointError(f"{source.path} has {known} tokens and the tokenizer {tokenizer.size}: use its own")
    return model, adopt(model, task, source, vit=vit)


def advice(task: str, source: Source, missing: list[str]) -> str:
    """A line for the log: what the run starts from, and which parts start at random; "" for a usual start."""
    theirs = source.info["task"]
    new = [name for name in missing if not any(part in name for part in spec_of(task).new_parts)]
    new = [name for name in new if name not in spec_of(task).may_lack]
    if not new and theirs in ("pretrain", task):
        return ""
    said = f"{source.path} is a checkpoint of {theirs}, not one that {task} usually starts from: "
    if missing:
        return said + f"{len(missing)} tensors of {', '.join(parts_of(missing))} start at random"
    return said + f"every tensor is taken from it, but it was trained for {theirs}"


def check_task(task: str, source: Source) -> None:
    """CheckpointError for a checkpoint that cannot be scored at a task, whether or not its tensors would fit."""
    if source.info["task"] not in (task, *spec_of(task).scored_from):
        raise CheckpointError(
            f"{source.path} cannot be evaluated: it is a checkpoint of {source.info['task']}, which never learned "
            f"{task}; fine-tune it for {task} first"
        )


def other_settings(info: dict[str, Any], source: Source) -> list[str]:
    """Settings that scores depend on and that differ from those the checkpoint was made with, in words."""
    now, before = _flat(info), _flat(source.info)
    return [f"{name} {before[name]!r}, here it is {now[name]!r}" for name in SETTINGS
            if name in before and name in now and before[name] != now[name]]  # fmt: skip


def _flat(info: dict[str, Any]) -> dict[str, Any]:
    return {**info, "image_size": info["image_encoder"].get("image_size")}


def describe(task: str, config: FineTuneConfig, model: Model, **more: Any) -> dict:
    """The contents of `model.json`: enough to build the model again and to prepare its inputs."""
    info: dict[str, Any] = {"task": task, "image_encoder": asdict(model.image_encoder.config)}
    for part in ("text_encoder", "text_decoder"):
        if hasattr(model, part) and not (part == "text_decoder" and spec_of(task).shares_text):
            info[part] = asdict(getattr(model, part).config)
    if hasattr(model, "text_proj"):
        info["embed_dim"] = config.embed_dim
    return {**info, **inputs_of(config), **more}


def vit_config(config: ModelConfig) -> ViTConfig:
    """The image encoder's sizes: those of a name, or the four numbers of `vit: custom`."""
    if config.vit != "custom":
        vit = named_vit(config.vit, config.image_size)
    else:
        sizes = (config.vit_width, config.vit_depth, config.vit_heads, config.vit_patch)
        width, depth, heads, patch = (int(size or 0) for size in sizes)
        vit = ViTConfig(config.image_size, patch, width, depth, heads)
    check_image_sizes(config, vit.patch)
    return _with_pictures(replace(vit, drop_path=config.drop_path), config)


def with_form_of(vit: ViTConfig, stored: dict[str, Any], config: ModelConfig) -> ViTConfig:
    """Sizes of an image encoder with the form that `model.json` gives of it, and with embeddings of pictures where the
    configuration asks for some."""
    return _with_pictures(replace(vit, **form_of(stored)), config)


def _with_pictures(vit: ViTConfig, config: ModelConfig) -> ViTConfig:
    kind = vit.picture_embeddings if config.picture_embeddings == "none" else config.picture_embeddings
    return replace(vit, picture_embeddings=kind, max_pictures=0 if kind == "none" else config.max_pictures)


def freeze_parts(model: nn.Module, config: ModelConfig) -> None:
    """Takes the parts that `freeze` names out of training; errors as of `blip.train.freeze.freeze`.

    Embeddings of pictures that the configuration asks for stay in it, also where adapters alone are trained, unless
    `freeze` names them: they start at zero, and would stay there.
    """
    freeze(model, config.freeze)
    embeddings = getattr(getattr(model, "image_encoder", None), "picture_embeddings", None)
    named = any("picture_embeddings" in part for part in config.freeze)
    if embeddings is not None and config.picture_embeddings != "none" and not named:
        embeddings.requires_grad_(True)


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
    config: PretrainConfig, vocab_size: int, specials: Specials, *, device: torch.device, fresh: bool = True
) -> tuple[PretrainModel, Twin, Queue]:
    """The model, its momentum twin and its queue, with the starting weights that the configuration names.

    Not `fresh`, all weights are random: a checkpoint's are loaded next.
    """
    vit, text = vit_config(config), text_config(config, vocab_size)
    model = PretrainModel(
        vit,
        text,
        specials,
        embed_dim=config.embed_dim,
        temperature=config.temperature,
        label_smoothing=config.label_smoothing,
    )
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
    path = places.local(config.init_from)
    heads = (vit.heads, text.heads) if path.suffix == ".pth" else (None, None)
    tensors, info = distributed.tensors_from_main(lambda: convert.read(path, *heads))
    if info["task"] != "pretrain":
        raise CheckpointError(
            f"{config.init_from} is a checkpoint of {info['task']}, which lacks parts that pre-training needs; start "
            "from one of pre-training, or from ViT and BERT weights (vision_init, text_init)"
        )
    check_heads(info, vit.heads, text.heads, path=config.init_from)
    kind = info["image_encoder"].get("picture_embeddings", "none")
    if kind not in ("none", vit.picture_embeddings):
        raise ConfigError(f"{config.init_from} has embeddings of pictures: set picture_embeddings: {kind}")
    return tensors


def describe_pretraining(config: PretrainConfig, model: PretrainModel) -> dict:
    """The contents of `model.json` for a pre-trained model: enough to build it again and to prepare its inputs."""
    return {
        "task": "pretrain",
        "image_encoder": asdict(model.image_encoder.config),
        "text_encoder": asdict(model.text_encoder.config),
        "embed_dim": config.embed_dim,
        **inputs_of(config),
    }
