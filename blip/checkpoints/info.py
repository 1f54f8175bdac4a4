"""The content of `model.json`: the task, the sizes of each part, and how the model reads images and texts."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from blip.errors import BlipError
from blip.files import ReadError, checked_as, read_json

FORMAT_VERSION = 1
MAX_INFO = 1 << 28  # bytes of a file; it may list the answers of a data set
MAX_SIDE = 4096  # pixels: position embeddings are interpolated to an image's size, so no tensor limits it

Size = Annotated[int, Field(gt=0, le=1 << 24)]
Layers = Annotated[int, Field(gt=0, le=512)]  # modules are made for each before their tensors are compared
Limit = Annotated[int, Field(ge=0, le=1 << 24)]  # 0 stands for the model's own


class CheckpointError(BlipError):
    """A checkpoint that cannot be used; the message names it, the reason and what to do."""


class _Typed(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


class _Part(_Typed):
    width: Size = 768
    heads: Size = 12

    @model_validator(mode="after")
    def _divisible(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"{self.heads} heads do not divide the width {self.width}")
        return self


class ImageSizes(_Part):
    """As in `network.vit.ViTConfig`."""

    image_size: int = Field(224, gt=0, le=MAX_SIDE)
    patch: int = Field(16, gt=0, le=MAX_SIDE)
    depth: Layers = 12
    mlp_ratio: float = Field(4, gt=0, le=1 << 16)
    drop_path: float = Field(0.0, ge=0, lt=1)
    norm_eps: float = Field(1e-6, gt=0, lt=1)
    block_eps: float = Field(1e-6, gt=0, lt=1)
    pre_norm: bool = False
    activation: Literal["gelu", "quick_gelu"] = "gelu"
    patch_bias: bool = True
    picture_embeddings: Literal["none", "place", "time"] = "none"
    max_pictures: int = Field(0, ge=0, le=1 << 16)


class TextSizes(_Part):
    """As in `network.embeddings.TextConfig`."""

    vocab_size: Size = 30524
    layers: Layers = 12
    hidden: Size = 3072
    max_positions: Size = 512
    image_width: Size = 768
    dropout: float = Field(0.1, ge=0, lt=1)
    images: int = Field(1, ge=1, le=2)


class QFormerSizes(_Part):
    """As in `network.qformer.QFormerConfig`."""

    vocab_size: Size = 30523
    layers: Layers = 12
    hidden: Size = 3072
    max_positions: Size = 512
    image_width: Size = 1408
    dropout: float = Field(0.1, ge=0, lt=1)
    queries: Size = 32
    cross_every: Layers = 2
    text: bool = True


class LanguageModelInfo(_Typed):
    """The language model of BLIP-2's second stage, which a checkpoint names and does not hold.

    `tokenizer` and `fingerprint` say which ones it was trained with; they are empty where that is not known.
    """

    name: str = ""  # a folder, or hub:OWNER/NAME
    revision: str = ""  # the commit of a repository of the hub
    fingerprint: str = ""
    tokenizer: str = ""
    kind: Literal["causal", "seq2seq"]
    width: Size
    dtype: Literal["fp32", "bf16", "fp16", "int8", "nf4"] = "fp32"
    activation: str = ""  # of T5's feed-forward networks, where it is not that of its configuration


class LoraInfo(_Typed):
    """Adapters of BLIP-2, whose numbers are among the tensors: of each part the endings of names of its layers."""

    rank: int = Field(gt=0, le=1 << 16)
    alpha: float
    dropout: float = Field(ge=0, lt=1)
    parts: dict[str, list[str]] = Field(min_length=1)


class FrozenPart(_Typed):
    """A part that a checkpoint names and does not hold."""

    name: str
    fingerprint: str


class _Header(BaseModel):
    model_config = ConfigDict(strict=True)

    format_version: int = Field(ge=1)
    task: str = ""


class ModelInfo(BaseModel):
    """The entries that the package reads; others are kept as they are."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)

    task: str = ""
    image_encoder: ImageSizes | None = None
    text_encoder: TextSizes | None = None
    text_decoder: TextSizes | None = None
    qformer: QFormerSizes | None = None
    language_model: LanguageModelInfo | None = None
    lora: LoraInfo | None = None
    frozen: dict[Literal["image_encoder"], FrozenPart] | None = None
    embed_dim: Size | None = None
    max_text_tokens: Limit | None = None
    max_pictures: Size | None = None  # of an item that are read, and frames and slices where a reference does not say
    frames: Size | None = None
    slices: Size | None = None
    max_answer_tokens: Limit | None = None
    max_caption_tokens: Limit | None = None
    max_turn_tokens: Limit | None = None
    text_cleaning: Literal["none", "blip"] | None = None
    window: str = Field("", max_length=40)
    channels: list[str] = Field([], max_length=3)
    prompt: str = ""
    question_prompt: str = ""
    answers: list[str] = []


def read_info(path: Path) -> dict[str, Any]:
    """The content of a `model.json`, checked.

    Raises:
        CheckpointError: it is damaged, of a newer version, or gives sizes that no model has.
    """
    try:
        version = read_json(path, _Header, MAX_INFO).format_version
        info: dict[str, Any] = read_json(path, dict[str, Any], MAX_INFO)
    except ReadError as error:
        raise CheckpointError(f"{path} is damaged: {error.problem}") from error
    if version > FORMAT_VERSION:
        raise CheckpointError(
            f"{path.parent} was written by a newer blip (format {version}, this one reads {FORMAT_VERSION}): "
            "update blip"
        )
    check_info(info, path)
    return info


def check_info(info: dict[str, Any], path: Path) -> None:
    """CheckpointError where the sizes or settings of a model, read from `path`, are none that a model can have."""
    try:
        checked_as(info, ModelInfo, path)
    except ReadError as error:
        raise CheckpointError(f"{path} does not give the model's sizes: {error.problem}") from error
