"""Options of `blip capfilt run`."""

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class CapFiltConfig(BaseModel):
    """Options of `blip capfilt run`. `*_set` hold options that override those of the file beside them."""

    model_config = ConfigDict(extra="forbid", validate_default=True, allow_inf_nan=False)

    # data
    web_file: list[str] = Field(min_length=1)  # noisy pairs
    human_file: list[str] = Field(min_length=1)  # clean ones: captioner and filter learn from them, and all are kept
    image_root: str = ""  # empty: image paths are relative to their annotation file

    # models
    start: str = ""  # the pre-trained checkpoint that the first round begins with; empty: pre-trained here
    pretrain: str = ""  # configuration of pre-training; empty: rounds end with the annotations
    pretrain_set: dict[str, Any] = Field(default_factory=dict)  # options that override those of `pretrain`
    captioner: str = "configs/caption_coco.yaml"  # configuration of the captioner's fine-tuning
    captioner_set: dict[str, Any] = Field(default_factory=dict)  # options that override it
    filter: str = "configs/retrieval_coco.yaml"  # configuration of the filter's fine-tuning
    filter_set: dict[str, Any] = Field(default_factory=dict)  # options that override it
    shared: str = ""  # if given: one model for both, trained by this configuration of pre-training
    shared_set: dict[str, Any] = Field(default_factory=dict)  # options that override it
    rounds: int = Field(1, gt=0)  # each starts from the model of the one before [rounds]

    # captions
    captions_per_image: int = Field(1, gt=0)  # texts written for each noisy image [captions]
    beams: int = Field(0, ge=0)  # 0: nucleus sampling [beams]
    top_p: float = Field(0.9, gt=0, le=1)  # nucleus: the fewest tokens that hold this probability [probability]
    max_new_tokens: int = Field(30, gt=0)  # tokens at most, the prompt not counted [tokens]
    min_new_tokens: int = Field(0, ge=0)  # tokens before the text may end [tokens]
    prompt: str | None = None  # null: the captioner's own

    # selection
    threshold: float | None = Field(0.5, ge=0, le=1)  # of the match probability [probability]
    itc_threshold: float | None = Field(None, ge=-1, le=1)  # of the cosine, in addition [cosine]
    fraction: float | None = Field(None, gt=0, le=1)  # instead of a threshold: this share of all texts [share]

    # work
    shard_size: int = Field(1024, gt=0)  # images in a file of captions or scores [images]
    batch_size: int = Field(32, gt=0)  # images at once [images]
    precision: Literal["fp32", "tf32", "bf16", "auto"] = "fp32"  # of captions and scores; auto: bf16 on a GPU
    num_workers: int = Field(2, gt=0)  # threads that open images [threads]
    max_image_mb: int = Field(512, gt=0)  # of an image's file; larger ones count as unreadable [MiB]
    max_skipped_fraction: float = Field(0.05, ge=0, le=1)  # of a shard's images; more unreadable ones end it [share]
    seed: int = Field(0, ge=0, lt=2**63)  # of sampling [number]
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: a GPU if there is one

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.rounds > 1 and not self.pretrain:
            raise ValueError("a second round needs a new model: set pretrain, its configuration")
        if not (self.start or self.pretrain):
            raise ValueError("there is nothing to start from: set start, a checkpoint, or pretrain, a configuration")
        return self
