"""Configuration: a flat YAML file read into a typed object. An unknown key or a wrong type is an error that says so."""

import difflib
from collections.abc import Mapping
from io import StringIO
from pathlib import Path
from typing import Any, Literal, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from blip.errors import BlipError

Config = TypeVar("Config", bound=BaseModel)


class ConfigError(BlipError):
    """A configuration that cannot be used; the message names the file or option, the key and the reason."""


class WeightedFile(BaseModel):
    """An annotation file with the number of times its records are visited in an epoch (fractions: a random part)."""

    model_config = ConfigDict(extra="forbid")
    path: str
    weight: float = Field(1.0, gt=0)


class RunConfig(BaseModel):
    """What every training script can be told: how to optimise, on what device, and what to leave behind."""

    model_config = ConfigDict(extra="forbid", validate_default=True, allow_inf_nan=False)

    # optimisation
    batch_size: int = Field(32, gt=0)  # pairs in one process and one forward pass
    accumulation: int = Field(1, gt=0)  # forward passes in one optimizer step
    epochs: int = Field(20, gt=0)
    max_steps: int | None = Field(None, gt=0)  # ends the run early; the schedule follows
    lr: float = Field(3e-4, gt=0)
    lr_reference_batch: int | None = Field(None, gt=0)  # given: lr is multiplied by global batch / this
    min_lr: float = Field(1e-6, ge=0)
    schedule: Literal["cosine", "epoch_decay"] = "cosine"
    lr_decay: float = Field(0.9, gt=0, le=1)  # a factor an epoch, with `epoch_decay`
    warmup_steps: int = Field(3000, ge=0)
    weight_decay: float = Field(0.05, ge=0)
    decay_norms_and_biases: bool = True
    clip_norm: float | None = Field(None, gt=0)

    # device
    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["fp32", "bf16"] = "bf16"
    compile: bool = False
    activation_checkpointing: Literal["none", "torch", "fairscale"] = "none"
    seed: int = Field(0, ge=0, lt=2**63)

    # small means, applied to the model from outside
    layer_decay: float = Field(1.0, gt=0, le=1)  # each layer learns this much slower than the one above it
    freeze: list[str] = []  # parts that stay as they are, such as image_encoder

    # log and state
    log_every_steps: int = Field(50, gt=0)
    eval_every_epochs: int = Field(1, gt=0)
    save_every_steps: int | None = Field(None, gt=0)  # nothing: at the end of each epoch
    save_every_minutes: float | None = Field(30.0, gt=0)
    keep_checkpoints: int = Field(2, gt=0)
    tensorboard: bool = False


class ModelConfig(RunConfig):
    """What every task's data and model can be told. Sizes in pixels, tokens or units."""

    # data
    train_file: list[str | WeightedFile] = []
    val_file: list[str] = []
    image_root: str = ""  # empty: image paths are relative to their annotation file
    image_size: int = Field(224, gt=0)
    crop_scale: tuple[float, float] | None = (0.2, 1.0)
    randaugment: tuple[int, int] | None = (2, 5)
    horizontal_flip: bool = False  # left is left
    max_text_tokens: int = Field(30, ge=3)
    text_cleaning: Literal["none", "blip"] = "none"
    max_skipped_fraction: float = Field(0.01, ge=0, le=1)
    num_workers: int = Field(4, ge=0)

    # tokenizer: a vocab.txt, a tokenizer.json, hub:NAME, or `train` for one trained on the captions
    tokenizer: str = "train"
    vocab_size: int = Field(30522, ge=16)

    # model
    vit: Literal["tiny", "small", "base", "large", "custom"] = "base"
    vit_width: int | None = Field(None, gt=0)  # these four with `vit: custom`
    vit_depth: int | None = Field(None, gt=0)
    vit_heads: int | None = Field(None, gt=0)
    vit_patch: int | None = Field(None, gt=0)
    drop_path: float = Field(0.0, ge=0, lt=1)
    text_width: int = Field(768, gt=0)
    text_layers: int = Field(12, gt=0)
    text_heads: int = Field(12, gt=0)
    text_hidden: int = Field(3072, gt=0)
    max_positions: int = Field(512, gt=0)
    dropout: float = Field(0.1, ge=0, lt=1)
    embed_dim: int = Field(256, gt=0)

    # where the weights start from
    init_from: str = ""  # a checkpoint of ours or a released .pth; fine-tuning: or a Hugging Face folder
    vision_init: str = ""  # timm/NAME
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
        if self.min_lr > self.lr:
            raise ValueError(f"min_lr {self.min_lr} is above lr {self.lr}")
        if self.init_from and (self.vision_init or self.text_init):
            raise ValueError("init_from gives every weight: --set vision_init= --set text_init=")
        return self


class PretrainConfig(ModelConfig):
    """What `pretrain.py` can be told."""

    temperature: float = Field(0.07, ge=0.001, le=0.5)
    queue_size: int = Field(57600, ge=0)
    momentum: float = Field(0.995, ge=0, le=1)
    alpha: float = Field(0.4, ge=0, le=1)
    alpha_ramp_epochs: float = Field(2.0, ge=0)
    equal_captions: Literal["positives", "negatives"] = "positives"
    label_smoothing: float = Field(0.1, ge=0, lt=1)
    stream_lanes: int = Field(4, gt=0)  # webdataset shards read side by side in a process; a multiple of num_workers
    stream_window: int = Field(1000, gt=0)  # samples among which each of them shuffles


def load_config(path: str | Path, cls: type[Config], overrides: list[str] | None = None) -> Config:
    """Reads a YAML file, applies `key=value` overrides (values in YAML's notation) and returns a `cls`.

    `path` may also be the name of a configuration of the package, see `find_config`.
    """
    path = find_config(path)
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not UTF-8 text: {error}") from error
    values = _parse(text, str(path))
    if not isinstance(values, dict):
        raise ConfigError(f"{path}: expected lines of `key: value`")
    _check_keys(values, cls, str(path))
    for override in overrides or []:
        key, equals, text = override.partition("=")
        if not equals:
            raise ConfigError(f"--set {override}: expected key=value")
        _check_keys({key: None}, cls, f"--set {override}")
        values[key] = _parse(text, f"--set {override}")
    return _validated(cls, values, str(path))


def find_config(name: str | Path) -> Path:
    """The file of a configuration: `name` itself where it is a file, else the package's configuration of that name.

    `pretrain_demo`, `pretrain_demo.yaml` and `configs/pretrain_demo.yaml` all name the packaged one, so that commands
    and configurations that name another configuration work outside a checkout. ConfigError where there is none.
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
    """The configuration with other values; `where` says in a ConfigError which ones they are."""
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
    temporary = Path(f"{path}.partial")
    temporary.write_text(text.getvalue(), encoding="utf-8")
    temporary.replace(path)


def _parse(text: str, where: str) -> Any:
    try:
        return YAML(typ="safe", pure=True).load(text) if text.strip() else ""
    except YAMLError as error:
        raise ConfigError(f"{where}: not YAML: {error}") from error


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
    """The training files, each a path or a path and a weight."""
    return [entry if isinstance(entry, str) else entry.model_dump() for entry in config.train_file]
