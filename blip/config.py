"""Configuration: a flat YAML file read into a typed object. An unknown key or a wrong type is an error.

The comment behind a field is its meaning, in `blip options` and in the documentation; it may end with a unit in
brackets. `load_config` and the others that read and write files are those of `blip.options.reading`.
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_serializer, model_validator

from blip.options.reading import (
    Config,
    ConfigError,
    dump_config,
    find_config,
    load_config,
    load_run_config,
    with_options,
)

__all__ = [
    "Config",
    "ConfigError",
    "ModelConfig",
    "PairConfig",
    "PretrainConfig",
    "RunConfig",
    "WeightedFile",
    "annotation_files",
    "dump_config",
    "find_config",
    "load_config",
    "load_run_config",
    "with_options",
]


class WeightedFile(BaseModel):
    """A file, folder or data set of the hub, with what is other than for the rest: how often its records are visited in
    an epoch (fractions: a random part), how it is read, and which records are taken. Empty: as for the rest."""

    model_config = ConfigDict(extra="forbid")
    path: str  # of an annotation file or a folder; or hub:OWNER/NAME
    weight: float = Field(1.0, gt=0)  # how often its records are visited in an epoch [passes]
    dataset: str = ""  # the form of the files
    split: str = ""  # its part, where it has several
    image_root: str = ""  # folder that its image paths are relative to
    columns: dict[str, str] = {}  # names of its columns
    limit: int | None = Field(None, gt=0)  # records that are taken of it [records]
    seed: int | None = None  # which of its records are taken; null: the first ones [number]

    @model_serializer
    def _short(self) -> dict[str, Any]:
        """Without what is left open."""
        return {key: value for key, value in self if key in ("path", "weight") or value not in ("", {}, None)}


class RunConfig(BaseModel):
    """Options of every training script: optimisation, device, log and checkpoints."""

    model_config = ConfigDict(extra="forbid", validate_default=True, allow_inf_nan=False)

    # optimisation
    batch_size: int = Field(32, gt=0)  # pairs or questions in one process and one forward pass [samples]
    accumulation: int = Field(1, gt=0)  # forward passes in one optimizer step [passes]
    epochs: int = Field(20, gt=0)  # passes over the training data [epochs]
    max_steps: int | None = Field(None, gt=0)  # ends the run early; the schedule follows [steps]
    lr: float = Field(3e-4, gt=0)  # peak learning rate, after the warm-up [step size]
    lr_reference_batch: int | None = Field(None, gt=0)  # if given, lr is multiplied by global batch / this [samples]
    min_lr: float = Field(1e-6, ge=0)  # learning rate at which the schedule ends [step size]
    schedule: Literal["cosine", "epoch_decay"] = "cosine"  # how the rate falls after the warm-up
    lr_decay: float = Field(0.9, gt=0, le=1)  # a factor per epoch, with `epoch_decay` [factor]
    warmup_steps: int = Field(3000, ge=0)  # optimizer steps of linear warm-up [steps]
    weight_decay: float = Field(0.05, ge=0)  # of AdamW [factor]
    adam_betas: tuple[float, float] = (0.9, 0.999)  # of AdamW: its means forget by these factors a step [factors]
    decay_norms_and_biases: bool = True  # weight decay for norms and biases too, as published
    clip_norm: float | None = Field(None, gt=0)  # largest norm of the gradient; null: no clipping [norm]

    # device
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: a GPU if there is one
    precision: Literal["fp32", "tf32", "bf16"] = "bf16"  # of products; weights and optimizer stay in fp32
    compile: bool = False  # compile the blocks with torch.compile, the twin's too; evaluations run eagerly
    activation_checkpointing: Literal["none", "torch", "fairscale"] = "none"  # less memory, more time
    parallel: Literal["ddp", "fsdp"] = "ddp"  # fsdp: every process keeps a part of the weights, for models above 2 B
    gradient_compression: Literal["none", "bf16"] = "none"  # bf16: half the bytes between processes, gradients rounded
    seed: int = Field(0, ge=0, lt=2**63)  # of weights, data order, augmentation and dropout [number]

    # parts that learn slower or not at all
    layer_decay: float = Field(1.0, gt=0, le=1)  # layer n of L learns at lr * this ** (L - n) [factor]
    freeze: list[str] = []  # parts that are not trained, such as image_encoder

    # log and state
    log_every_steps: int = Field(50, gt=0)  # steps between two lines of metrics.jsonl [steps]
    eval_every_epochs: int = Field(1, gt=0)  # epochs between two validations [epochs]
    report: bool = False  # make report.html, the page of `blip report`, again after each evaluation
    val_loss: bool = True  # an evaluation also computes the losses of the validation data
    save_every_steps: int | None = Field(None, gt=0)  # null: at the end of each epoch [steps]
    save_every_minutes: float | None = Field(30.0, gt=0)  # null: no checkpoints by time [minutes]
    save_async: bool | None = None  # write checkpoints beside the training, from a copy in memory; null: on a GPU
    keep_checkpoints: int = Field(2, gt=0)  # older ones are deleted [checkpoints]
    config_file: str = ""  # the configuration that a run began with; the training scripts set it
    tensorboard: bool = False  # write a TensorBoard log beside metrics.jsonl


class ModelConfig(RunConfig):
    """Options of data and model, for every task. Sizes in pixels, tokens or units."""

    older_runs: ClassVar[dict[str, Any]] = {"image_pipeline": "pil"}  # see `load_run_config`

    # data
    train_file: list[str | WeightedFile] = []  # annotation files, or {path: FILE, weight: NUMBER}
    val_file: list[str | WeightedFile] = []  # annotation files scored after each epoch
    dataset: str = "json"  # the form of the files: see `blip check-data --help`
    train_split: str = "train"  # part of a data set that comes as a folder, or from the hub
    val_split: str = "validation"  # the same for val_file
    columns: dict[str, str] = {}  # names of columns that the files call otherwise, such as {question: Frage}
    sections: list[str] = ["findings", "impression"]  # of reports, those that are the text (mimic_cxr, iu_xray)
    views: list[str] = ["frontal", "lateral", "other"]  # of a study, those whose pictures are read (mimic_cxr)
    priors: int = Field(0, ge=0)  # earlier studies of the patient, whose pictures precede (mimic_cxr) [studies]
    max_train_records: int | None = Field(None, gt=0)  # records that are trained on; null: all [records]
    max_val_records: int | None = Field(None, gt=0)  # of val_file; null: all [records]
    shuffle_records_seed: int | None = None  # which records limits take; null: the first ones [number]
    image_root: str = ""  # empty: image paths are relative to their annotation file
    window: str = ""  # of CT and NIfTI scans: lung, soft, brain, bone, ... or LEVEL/WIDTH; empty: the file's own
    channels: list[str] = []  # of CT and NIfTI scans: three windows as red, green and blue: lung, soft, bone
    image_size: int = Field(224, gt=0)  # a side, after cropping and scaling [pixels]
    image_sizes: dict[int, int] = {}  # smaller sides for early epochs, {0: 112, 4: 224}: 112 from epoch 0 on [pixels]
    patch_dropout: float = Field(0.0, ge=0, lt=1)  # patches that training leaves out of each image, at random [share]
    full_patches_epochs: float = Field(1.0, ge=0)  # last epochs, which leave out none [epochs]
    crop_scale: tuple[float, float] | None = (0.2, 1.0)  # of the image's area in a random crop; null: no crop [shares]
    randaugment: tuple[int, int] | None = (2, 5)  # operations per image, their magnitude of 10; null: none [numbers]
    image_pipeline: Literal["fast", "pil"] = "fast"  # of training; pil: as in earlier versions, slower, equally random
    horizontal_flip: bool = False  # off: left and right have a meaning in medical images
    max_text_tokens: int = Field(30, ge=3)  # longer texts are cut [tokens]
    text_cleaning: Literal["none", "blip"] = "none"  # blip: as the published code cleans captions
    max_skipped_fraction: float = Field(0.01, ge=0, le=1)  # more unreadable images than this end the run [share]
    max_image_mb: int = Field(512, gt=0)  # of an image's file; larger ones count as unreadable [MiB]
    max_pictures: int = Field(16, gt=0)  # of an item of several; further ones are left out evenly [pictures]
    frames: int = Field(8, gt=0)  # of a video whose reference does not say how many [frames]
    slices: int = Field(16, gt=0)  # of a volume whose reference does not say how many [slices]
    num_workers: int = Field(4, ge=0)  # processes that load data; 0: the training process itself [processes]

    # tokenizer
    tokenizer: str = "train"  # vocab.txt, tokenizer.json, hub:NAME, or `train`: trained on the captions
    vocab_size: int = Field(30522, ge=16)  # tokens, for `tokenizer: train` [tokens]

    # model
    vit: Literal["tiny", "small", "base", "large", "eva_g", "clip_l14", "custom"] = "base"  # of the image encoder
    vit_width: int | None = Field(None, gt=0)  # this and the next three with `vit: custom` [units]
    vit_depth: int | None = Field(None, gt=0)  # depth of the image encoder [blocks]
    vit_heads: int | None = Field(None, gt=0)  # of attention [heads]
    vit_patch: int | None = Field(None, gt=0)  # a patch's side [pixels]
    picture_embeddings: Literal["none", "place", "time"] = "none"  # what tells the pictures of an item apart
    drop_path: float = Field(0.0, ge=0, lt=1)  # stochastic depth of the image encoder [probability]
    text_width: int = Field(768, gt=0)  # width of the text transformer [units]
    text_layers: int = Field(12, gt=0)  # depth of the text transformer [layers]
    text_heads: int = Field(12, gt=0)  # of attention, in the text transformer [heads]
    text_hidden: int = Field(3072, gt=0)  # width inside the feed-forward networks [units]
    max_positions: int = Field(512, gt=0)  # position embeddings of the text transformer [tokens]
    dropout: float = Field(0.1, ge=0, lt=1)  # in the text transformer [probability]
    embed_dim: int = Field(256, gt=0)  # width of the features that contrast compares [units]

    # starting weights
    init_from: str = ""  # a checkpoint, released .pth, Hugging Face folder, hub:OWNER/NAME or https:// address
    vision_init: str = ""  # timm/NAME: weights of the image encoder alone
    text_init: str = ""  # folder or file of BERT weights, or hub:NAME such as hub:bert-base-uncased

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
        self._check_image_tokens()
        limits = [getattr(self, f"max_{part}_records", None) for part in ("train", "val", "test")]
        if self.shuffle_records_seed is not None and not any(limits):
            raise ValueError("shuffle_records_seed chooses records: set max_train_records or max_val_records too")
        if not all(0 <= beta < 1 for beta in self.adam_betas):
            raise ValueError(f"adam_betas {list(self.adam_betas)} must be two factors from 0 to below 1")
        if self.min_lr > self.lr:
            raise ValueError(f"min_lr {self.min_lr} is above lr {self.lr}")
        if self.init_from and (self.vision_init or self.text_init):
            raise ValueError("init_from gives every weight: --set vision_init= --set text_init=")
        return self

    @field_validator("image_sizes", mode="before")
    @classmethod
    def _sizes_by_epoch(cls, sizes: Any) -> Any:
        if not isinstance(sizes, Mapping) or None in sizes.values():  # {0:112} without a space is a key of YAML
            raise ValueError("sizes by the epoch that each begins with, and a space after colons: {0: 112, 12: 224}")
        return sizes

    @field_validator("image_sizes")
    @classmethod
    def _in_order(cls, sizes: dict[int, int]) -> dict[int, int]:
        return dict(sorted(sizes.items()))

    def _check_image_tokens(self) -> None:
        if self.patch_dropout and self.full_patches_epochs >= self.epochs:
            raise ValueError(
                f"patch_dropout {self.patch_dropout} has no effect in {self.epochs} epochs, since the last ones, "
                f"full_patches_epochs {self.full_patches_epochs:g}, leave out no patch: lower that, or train longer"
            )
        if not self.image_sizes:
            return
        if min(self.image_sizes.values()) < 1:
            raise ValueError(f"image_sizes {self.image_sizes} has to give sides in pixels")
        first, last = min(self.image_sizes), max(self.image_sizes)
        if first != 0 or last >= self.epochs:
            raise ValueError(
                f"sizes of image_sizes begin with the epochs {list(self.image_sizes)}: the first of them is 0, and the "
                f"last of the run's {self.epochs} epochs is {self.epochs - 1}"
            )
        if self.image_sizes[last] != self.image_size:
            raise ValueError(
                f"image_sizes ends with {self.image_sizes[last]} and image_size is {self.image_size}: make them equal"
            )


class PairConfig(ModelConfig):
    """Options of every pre-training, of BLIP and of BLIP-2, on images with captions."""

    # contrast and language modelling
    temperature: float = Field(0.07, ge=0.001, le=0.5)  # start value of the learned temperature of ITC [factor]
    equal_captions: Literal["positives", "negatives"] = "positives"  # what pairs of equal captions are in ITC
    label_smoothing: float = Field(0.1, ge=0, lt=1)  # of language modelling [share]

    # webdataset shards
    stream_lanes: int = Field(4, gt=0)  # read side by side in a process; a multiple of num_workers [shards]
    stream_window: int = Field(1000, gt=0)  # samples among which each lane shuffles [samples]


class PretrainConfig(PairConfig):
    """Options of `pretrain.py`."""

    # momentum contrast
    queue_size: int = Field(57600, ge=0)  # features of earlier batches that ITC compares with; 0: none [features]
    momentum: float = Field(0.995, ge=0, le=1)  # of the momentum encoders [factor]
    alpha: float = Field(0.4, ge=0, le=1)  # weight of the momentum encoders' soft targets [share]
    alpha_ramp_epochs: float = Field(2.0, ge=0)  # epochs in which alpha rises from 0 [epochs]


def annotation_files(config: ModelConfig) -> list[str | Mapping[str, Any]]:
    """The training files, each a path or a path and what is other than for the rest."""
    return [entry if isinstance(entry, str) else entry.model_dump() for entry in config.train_file]
