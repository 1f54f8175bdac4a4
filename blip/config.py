"""Configuration: a flat YAML file read into a typed object. An unknown key or a wrong type is an error."""

import difflib
from collections.abc import Mapping
from io import StringIO
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_serializer, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from blip.errors import BlipError
from blip.files import write_whole

Config = TypeVar("Config", bound=BaseModel)


class ConfigError(BlipError):
    """A configuration that cannot be used; the message names the file or option, the key and the reason."""


class WeightedFile(BaseModel):
    """A file, folder or data set of the hub, with what is other than for the rest: how often its records are visited in
    an epoch (fractions: a random part), how it is read, and which records are taken. Empty: as for the rest."""

    model_config = ConfigDict(extra="forbid")
    path: str  # of an annotation file or a folder; or hub:OWNER/NAME
    weight: float = Field(1.0, gt=0)  # how often its records are visited in an epoch
    dataset: str = ""  # the form of the files
    split: str = ""  # its part, where it has several
    image_root: str = ""  # folder that its image paths are relative to
    columns: dict[str, str] = {}  # names of its columns
    limit: int | None = Field(None, gt=0)  # records that are taken of it
    seed: int | None = None  # which of its records are taken; null: the first ones

    @model_serializer
    def _short(self) -> dict[str, Any]:
        """Without what is left open."""
        return {key: value for key, value in self if key in ("path", "weight") or value not in ("", {}, None)}


class RunConfig(BaseModel):
    """Options of every training script: optimisation, device, log and checkpoints."""

    model_config = ConfigDict(extra="forbid", validate_default=True, allow_inf_nan=False)

    # optimisation
    batch_size: int = Field(32, gt=0)  # pairs or questions in one process and one forward pass
    accumulation: int = Field(1, gt=0)  # forward passes in one optimizer step
    epochs: int = Field(20, gt=0)  # passes over the training data
    max_steps: int | None = Field(None, gt=0)  # ends the run early; the schedule follows
    lr: float = Field(3e-4, gt=0)  # peak learning rate, after the warm-up
    lr_reference_batch: int | None = Field(None, gt=0)  # if given, lr is multiplied by global batch / this
    min_lr: float = Field(1e-6, ge=0)  # learning rate at which the schedule ends
    schedule: Literal["cosine", "epoch_decay"] = "cosine"  # how the rate falls after the warm-up
    lr_decay: float = Field(0.9, gt=0, le=1)  # a factor per epoch, with `epoch_decay`
    warmup_steps: int = Field(3000, ge=0)  # optimizer steps of linear warm-up
    weight_decay: float = Field(0.05, ge=0)  # of AdamW
    decay_norms_and_biases: bool = True  # weight decay for norms and biases too, as published
    clip_norm: float | None = Field(None, gt=0)  # largest norm of the gradient; null: no clipping

    # device
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: a GPU if there is one
    precision: Literal["fp32", "bf16"] = "bf16"  # of the forward pass; weights and optimizer stay in fp32
    compile: bool = False  # compile the blocks with torch.compile
    activation_checkpointing: Literal["none", "torch", "fairscale"] = "none"  # less memory, more time
    seed: int = Field(0, ge=0, lt=2**63)  # of weights, data order, augmentation and dropout

    # parts that learn slower or not at all
    layer_decay: float = Field(1.0, gt=0, le=1)  # layer n of L learns at lr * this ** (L - n)
    freeze: list[str] = []  # parts that are not trained, such as image_encoder

    # log and state
    log_every_steps: int = Field(50, gt=0)  # steps between two lines of metrics.jsonl
    eval_every_epochs: int = Field(1, gt=0)  # epochs between two validations
    save_every_steps: int | None = Field(None, gt=0)  # null: at the end of each epoch
    save_every_minutes: float | None = Field(30.0, gt=0)  # null: no checkpoints by time
    keep_checkpoints: int = Field(2, gt=0)  # older ones are deleted
    tensorboard: bool = False  # write a TensorBoard log beside metrics.jsonl


class ModelConfig(RunConfig):
    """Options of data and model, for every task. Sizes in pixels, tokens or units."""

    # data
    train_file: list[str | WeightedFile] = []  # annotation files, or {path: FILE, weight: NUMBER}
    val_file: list[str | WeightedFile] = []  # annotation files scored after each epoch
    dataset: str = "json"  # the form of the files: see `blip check-data --help`
    train_split: str = "train"  # part of a data set that comes as a folder, or from the hub
    val_split: str = "validation"  # the same for val_file
    columns: dict[str, str] = {}  # names of columns that the files call otherwise, such as {question: Frage}
    max_train_records: int | None = Field(None, gt=0)  # records that are trained on; null: all
    max_val_records: int | None = Field(None, gt=0)  # records of val_file; null: all
    shuffle_records_seed: int | None = None  # which records are taken where they are limited; null: the first ones
    image_root: str = ""  # empty: image paths are relative to their annotation file
    image_size: int = Field(224, gt=0)  # pixels a side after cropping and scaling
    crop_scale: tuple[float, float] | None = (0.2, 1.0)  # share of the image's area in a random crop; null: no crop
    randaugment: tuple[int, int] | None = (2, 5)  # operations per image, magnitude of 10; null: none
    horizontal_flip: bool = False  # off: left and right have a meaning in medical images
    max_text_tokens: int = Field(30, ge=3)  # longer texts are cut
    text_cleaning: Literal["none", "blip"] = "none"  # blip: as the published code cleans captions
    max_skipped_fraction: float = Field(0.01, ge=0, le=1)  # more unreadable images than this end the run
    max_image_mb: int = Field(512, gt=0)  # MiB of an image's file; larger ones count as unreadable
    num_workers: int = Field(4, ge=0)  # processes that load data; 0: the training process itself

    # tokenizer
    tokenizer: str = "train"  # vocab.txt, tokenizer.json, hub:NAME, or `train`: trained on the captions
    vocab_size: int = Field(30522, ge=16)  # tokens, for `tokenizer: train`

    # model
    vit: Literal["tiny", "small", "base", "large", "custom"] = "base"  # size of the image encoder
    vit_width: int | None = Field(None, gt=0)  # this and the next three with `vit: custom`
    vit_depth: int | None = Field(None, gt=0)  # blocks
    vit_heads: int | None = Field(None, gt=0)  # attention heads
    vit_patch: int | None = Field(None, gt=0)  # pixels a side
    drop_path: float = Field(0.0, ge=0, lt=1)  # stochastic depth of the image encoder
    text_width: int = Field(768, gt=0)  # width of the text transformer
    text_layers: int = Field(12, gt=0)  # layers
    text_heads: int = Field(12, gt=0)  # attention heads
    text_hidden: int = Field(3072, gt=0)  # width inside the feed-forward networks
    max_positions: int = Field(512, gt=0)  # position embeddings of the text transformer
    dropout: float = Field(0.1, ge=0, lt=1)  # in the text transformer
    embed_dim: int = Field(256, gt=0)  # width of the features that contrast compares

    # starting weights
    init_from: str = ""  # a checkpoint, or a released .pth; fine-tuning: or a Hugging Face folder
    vision_init: str = ""  # timm/NAME: weights of the image encoder alone
    text_init: str = ""  # folder or file of BERT weights, or hub:NAME

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        custom = (self.vit_width, self.vit_depth, self.vit_heads, self.vit_patch)
        if self.vit == "custom" and None in custom:
            raise ValueError("vit: custom needs vit_width, vit_depth, vit_heads and vit_patch")
        if self.vit != "custom" and any(v is not None for v in custom):
            raise ValueError(f"vit: {self.vit} has its own sizes; vit_width and the like need vit: custom")
        if self.text_width % self.text_heads:
            raise ValueError(f"text_width {self.text_width} is no multiple of text_heads {self.text_heads}")
        if self.max_text_tokens > self.max_positions:
            raise ValueError(f"max_text_tokens {self.max_text_tokens} is above max_positions {self.max_positions}")
        if self.crop_scale is not None and not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise ValueError(f"crop_scale {list(self.crop_scale)} must be two shares, 0 < low <= high <= 1, or null")
        limits = [getattr(self, f"max_{part}_records", None) for part in ("train", "val", "test")]
        if self.shuffle_records_seed is not None and not any(limits):
            raise ValueError("shuffle_records_seed chooses records: set max_train_records or max_val_records too")
        if self.min_lr > self.lr:
            raise ValueError(f"min_lr {self.min_lr} is above lr {self.lr}")
        if self.init_from and (self.vision_init or self.text_init):
            raise ValueError("init_from gives every weight: --set vision_init= --set text_init=")
        return self


class PretrainConfig(ModelConfig):
    """Options of `pretrain.py`."""

    # objectives
    temperature: float = Field(0.07, ge=0.001, le=0.5)  # start value of the learned temperature of ITC
    queue_size: int = Field(57600, ge=0)  # features of earlier batches that ITC compares with; 0: none
    momentum: float = Field(0.995, ge=0, le=1)  # of the momentum encoders
    alpha: float = Field(0.4, ge=0, le=1)  # weight of the momentum encoders' soft targets
    alpha_ramp_epochs: float = Field(2.0, ge=0)  # epochs in which alpha rises from 0
    equal_captions: Literal["positives", "negatives"] = "positives"  # what pairs of equal captions are in ITC
    label_smoothing: float = Field(0.1, ge=0, lt=1)  # of language modelling

    # webdataset shards
    stream_lanes: int = Field(4, gt=0)  # webdataset shards read side by side in a process; a multiple of num_workers
    stream_window: int = Field(1000, gt=0)  # samples among which each lane shuffles


def load_config(path: str | Path, cls: type[Config], overrides: list[str] | None = None) -> Config:
    """Reads a YAML file, applies `key=value` overrides (values in YAML's notation) and returns a `cls`.

    `path` may also be the name of a configuration of the package, see `find_config`.

    Raises:
        ConfigError: there is no such file, it is not YAML, or a key or value cannot be used.
    """
    path = find_config(path)
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text: {error}") from error
    values = _parse(text, str(path))
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected lines of `key: value`")
    values = {_present_name(key, cls): value for key, value in values.items()}
    _check_keys(values, cls, str(path))
    for override in overrides or []:
        key, equals, text = override.partition("=")
        if not equals:
            raise ConfigError(f"--set {override}: expected key=value")
        key = _present_name(key, cls)
        _check_keys({key: None}, cls, f"--set {override}")
        values[key] = _parse(text, f"--set {override}")
    return _validated(cls, values, str(path))


def find_config(name: str | Path) -> Path:
    """The file of a configuration: `name` itself where it is a file, else the package's configuration of that name.

    `pretrain_demo`, `pretrain_demo.yaml` and `configs/pretrain_demo.yaml` all name the packaged one, so that commands
    and configurations that name another configuration work outside a checkout.

    Raises:
        ConfigError: there is no such configuration; the message names similar ones.
    """
    path = Path(name)
    if path.is_file():
        return path
    packaged = {file.stem: file for file in _packaged_configs().glob("*.yaml")}
    stem = path.name.removesuffix(".yaml")
    if path.parent in (Path(), Path("configs")) and stem in packaged:
        return packaged[stem]
    near = sorted(str(file) for file in Path("configs").glob("*.yaml"))
    near = near or difflib.get_close_matches(stem, packaged, n=3)
    raise ConfigError(f"there is no configuration {path}" + (f"; there are {', '.join(near)}" if near else ""))


def _packaged_configs() -> Path:
    """The folder of configurations: inside an installed package, at the top of a checkout."""
    package = Path(__file__).resolve().parent
    inside, beside = package / "configs", package.parent / "configs"
    return inside if inside.is_dir() else beside


def with_options(config: Config, values: dict[str, Any], where: str) -> Config:
    """The configuration with other values; `where` names their origin in a ConfigError."""
    _check_keys(values, type(config), where)
    return _validated(type(config), {**config.model_dump(exclude_unset=True), **values}, where)


def _validated(cls: type[Config], values: dict[str, Any], where: str) -> Config:
    try:
        return cls(**values)
    except ValidationError as error:
        raise ConfigError(f"{where}:\n" + "\n".join(_explain(e) for e in error.errors())) from error


def dump_config(config: BaseModel, path: str | Path) -> None:
    """Writes every key with its resolved value; `load_config` reads it back to an equal object."""
    text = StringIO()
    YAML(typ="safe", pure=True).dump(config.model_dump(mode="json"), text)
    write_whole(path, text.getvalue())


def _parse(text: str, where: str) -> Any:
    try:
        return YAML(typ="safe", pure=True).load(text) if text.strip() else ""
    except YAMLError as error:
        raise ConfigError(f"{where}: not YAML: {error}") from error


def _present_name(key: str, cls: type[BaseModel]) -> str:
    """The name of an option today; `former_names` of a class maps the names of earlier versions to it."""
    former: dict[str, str] = getattr(cls, "former_names", {})
    return former.get(key, key)


def _check_keys(values: dict, cls: type[BaseModel], where: str) -> None:
    for key in values:
        if key not in cls.model_fields:
            near = difflib.get_close_matches(str(key), cls.model_fields, n=1, cutoff=0.0)
            raise ConfigError(f"{where}: unknown key {key!r}; did you mean {near[0]!r}?")


def _explain(error: Any) -> str:
    key = ".".join(str(part) for part in error["loc"])
    message = error["msg"].removeprefix("Value error, ")
    return f"  {key}: {message} (got {error['input']!r})" if key else f"  {message}"


def annotation_files(config: ModelConfig) -> list[str | Mapping[str, Any]]:
    """The training files, each a path or a path and what is other than for the rest."""
    return [entry if isinstance(entry, str) else entry.model_dump() for entry in config.train_file]
