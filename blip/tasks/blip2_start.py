"""What a run of BLIP-2 starts from: the sizes and weights of a checkpoint, of a tower and of BERT, or nothing."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from blip import distributed
from blip.checkpoints import convert, places
from blip.checkpoints.blip2_initialize import init_qformer
from blip.checkpoints.format import CheckpointError, unique_state
from blip.checkpoints.initialize import Source
from blip.checkpoints.language_models import load_language_model
from blip.checkpoints.towers import load_tower
from blip.config import ModelConfig
from blip.models.blip2 import Blip2Model
from blip.models.blip2_language import Blip2LanguageModel
from blip.models.language_models import LanguageModel, language_model
from blip.models.language_tokens import LanguageTokens
from blip.network.qformer import QFormerConfig
from blip.network.vit import ViTConfig, fit_image_size
from blip.tasks.blip2_kind import BLIP2
from blip.tasks.data_options import inputs_of
from blip.tasks.sizes import VIT_KEYS, with_sizes
from blip.tasks.start import vit_config, with_form_of
from blip.tokenizer import Tokenizer

Run = TypeVar("Run", bound=ModelConfig)
# configuration key -> the size of the Q-Former that it gives
QFORMER_KEYS = {
    "text_width": "width",
    "text_layers": "layers",
    "text_heads": "heads",
    "text_hidden": "hidden",
    "max_positions": "max_positions",
    "queries": "queries",
    "cross_every": "cross_every",
}
Frozen = dict[str, Any]  # `frozen` of `model.json`


def read_source(config: ModelConfig, resume: Path | None = None) -> Source | None:
    """The checkpoint that the run starts from: that it resumes, else `init_from`, else None.

    Raises:
        CheckpointError: it is of another task than BLIP-2, or lacks the sizes of the tower or the Q-Former.
    """
    if resume is None and not config.init_from:
        return None
    path = resume or places.local(config.init_from)
    tensors, info = distributed.tensors_from_main(lambda: convert.read(path))
    source = Source(tensors, info, str(resume or config.init_from))
    task = source.info.get("task")
    if task not in BLIP2:
        raise CheckpointError(
            f"{source.path} is a checkpoint of {task or 'no task'}; BLIP-2 starts from its own stages, or from "
            "vision_init and text_init, which takes the text encoder of such a checkpoint"
        )
    for part in ("image_encoder", "qformer"):
        if not isinstance(source.info.get(part), dict):
            raise CheckpointError(f"{source.path} does not give the sizes of its {part}")
    return source


def check_task(task: str, source: Source) -> None:
    """CheckpointError for a checkpoint that cannot be scored at a task, whether or not its tensors would fit."""
    if source.info["task"] != task:
        raise CheckpointError(
            f"{source.path} cannot be evaluated: it is a checkpoint of {source.info['task']}, which never learned "
            f"{task}; train it for that first"
        )


def with_sizes_of(config: Run, source: Source | None) -> Run:
    """The configuration with the sizes of the checkpoint that it starts from; ConfigError where its own differ."""
    if source is None:
        return config
    tower, qformer = ViTConfig(**source.info["image_encoder"]), QFormerConfig(**source.info["qformer"])
    sizes: dict[str, Any] = {key: getattr(tower, name) for key, name in VIT_KEYS.items()}
    sizes |= {key: getattr(qformer, name) for key, name in QFORMER_KEYS.items()}
    if "embed_dim" in source.info:
        sizes["embed_dim"] = source.info["embed_dim"]
    return with_sizes(config, sizes, source.path)


def tower_config(config: ModelConfig, source: Source | None) -> ViTConfig:
    """The sizes and the form of the tower."""
    vit = vit_config(config)
    return with_form_of(vit, source.info["image_encoder"], config) if source else vit


def qformer_config(config: Any, image_width: int, words: int, *, text: bool = True) -> QFormerConfig:
    """The sizes of the Q-Former; `text` as in `QFormerConfig`."""
    sizes = {name: getattr(config, key) for key, name in QFORMER_KEYS.items()}
    return QFormerConfig(vocab_size=words, image_width=image_width, dropout=config.dropout, text=text, **sizes)


def words_of(tokenizer: Tokenizer) -> int:
    """The words of a Q-Former: up to [DEC], which is the last one; BLIP-2 has no [ENC]."""
    return tokenizer.dec_id + 1


def stage1_model(config: Any, source: Source | None, tokenizer: Tokenizer) -> tuple[Blip2Model, Frozen]:
    """The model of stage 1 with its starting weights, see `fill`."""
    vit = tower_config(config, source)
    model = Blip2Model(
        vit,
        qformer_config(config, vit.width, words_of(tokenizer)),
        tokenizer.specials,
        embed_dim=config.embed_dim,
        temperature=config.temperature,
        label_smoothing=getattr(config, "label_smoothing", 0.1),
    )
    return model, fill(model, config, source)


def fill(model: Any, config: ModelConfig, source: Source | None, *, may_lack: tuple[str, ...] = ()) -> Frozen:
    """Starting weights: those of `source`, or of a tower and a text encoder that the configuration names, or none.

    Returns:
        which file the tower is from, as `frozen` of `model.json` says it; {} where that is not known.
    """
    if source is not None:
        take(model, source, model.image_encoder.config, may_lack=may_lack)
        return dict(source.info.get("frozen") or {})
    if config.text_init:
        init_qformer(model, config.text_init)
    if not config.vision_init:
        return {}
    return {"image_encoder": load_tower(model.image_encoder, config.vision_init)}


# ---- stage 2 ---------------------------------------------------------------------------------------------------------


@dataclass
class Language:
    """A frozen language model with its tokens, and what `language_model` of `model.json` says of it."""

    model: LanguageModel
    tokens: LanguageTokens
    info: dict[str, Any]


def is_stage2(config: Any, source: Source | None) -> bool:
    """Whether a language model takes part: the configuration names one, or the checkpoint has one."""
    return bool(config.language_model) or (source is not None and source.info["task"] == "blip2_language")


def open_language_model(config: Any, source: Source | None, device: torch.device, *, max_tokens: int = 0) -> Language:
    """Loads the language model that the configuration names, else that of the checkpoint that the run starts from.

    Args:
        max_tokens: of a text; `max_text_tokens` unless given.

    Raises:
        CheckpointError: there is none, or it is not the one that the checkpoint was trained with.
        InputError: its dtype cannot be had on this device.
    """
    known = source.info.get("language_model") if source else None
    name = config.language_model or (known or {}).get("name", "")
    found = load_language_model(
        name,
        activation=(known or {}).get("activation", ""),
        dtype=config.language_dtype,
        device=device,
        beside=Path(source.path) if source else None,
        expected=known,
    )
    limit = max_tokens or config.max_text_tokens
    end = source.info.get("end_text") if source else None
    adapter, tokens = language_model(found.module, found.tokenizer, limit, end=end, dropout=config.language_dropout)
    return Language(adapter, tokens, found.info)


def stage2_model(
    config: Any, source: Source | None, language: Language, *, words: int = 0
) -> tuple[Blip2LanguageModel, Frozen]:
    """The model of stage 2 with its starting weights, see `fill`, and its language model.

    Args:
        words: of the Q-Former, which reads questions; 0: it reads images alone.
    """
    vit = tower_config(config, source)
    qformer = qformer_config(config, vit.width, words or 30523, text=bool(words))
    model = Blip2LanguageModel(vit, qformer, language.model.width)
    if words:  # what reads a question and writes nothing has no use for these, and they would get no gradient
        reads: Any = model.qformer
        for parameter in (*reads.head.parameters(), *reads.layers[-1].feed_forward.parameters()):
            parameter.requires_grad_(parameter is reads.embeddings.words.weight)
    known = source.tensors.get("language_proj.weight") if source else None
    if source is not None and known is not None and len(known) != language.model.width:
        raise CheckpointError(
            f"{source.path} was trained with a language model whose embeddings are {len(known)} wide; those of "
            f"{language.info['name']} are {language.model.width} wide"
        )
    new = ("language_proj.",) if source and source.info["task"] == "blip2" else ()
    frozen = fill(model, config, source, may_lack=new)
    return model.attach(language.model), frozen


def take(model: nn.Module, source: Source, vit: ViTConfig, *, may_lack: tuple[str, ...] = ()) -> list[str]:
    """Copies the tensors of `source` into a model -> the names of what the source lacks.

    Raises:
        CheckpointError: a tensor has another shape, or one is missing whose part is not in `may_lack`.
    """
    tensors: dict[str, Tensor] = dict(source.tensors)
    fit_image_size(tensors, vit)
    missing = []
    for name, own in unique_state(model).items():
        theirs = tensors.get(name)
        if theirs is None:
            missing.append(name)
        elif theirs.shape != own.shape:
            raise CheckpointError(f"{source.path}: {name} is {tuple(theirs.shape)}, the model needs {tuple(own.shape)}")
        else:
            own.copy_(theirs)
    if lost := [name for name in missing if not name.startswith(may_lack)]:
        raise CheckpointError(f"{source.path} is half a checkpoint: it lacks {len(lost)} tensors, such as {lost[0]}")
    return missing


def describe(task: str, config: Any, model: Any, **more: Any) -> dict[str, Any]:
    """The contents of `model.json`: enough to build the model again and to prepare its inputs."""
    info: dict[str, Any] = {"task": task}
    for part in ("image_encoder", "qformer"):
        info[part] = asdict(getattr(model, part).config)
    if hasattr(model, "text_proj"):
        info["embed_dim"] = config.embed_dim
    return {**info, **inputs_of(config), **more}
