"""Options of BLIP-2: of both stages of pre-training, and those that its fine-tuning adds to captions and questions.

Defaults are those of the paper (Li et al. 2023, section 4) where it names them, else of the published code.
"""

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from blip.config import PairConfig


class PartsLora(BaseModel):
    """Low-rank adapters on the linear layers of a part of BLIP-2 whose names end as given, such as `q_proj`."""

    model_config = ConfigDict(extra="forbid")
    rank: int = Field(16, gt=0)  # rank of the adapters [units]
    language_model: list[str] = []  # endings of names of its linear layers, such as q_proj, v_proj
    qformer: list[str] = []  # of the Q-Former: query, key, value, or longer, such as cross_attention.value
    image_encoder: list[str] = []  # of the tower, such as qkv
    alpha: float | None = Field(None, gt=0)  # null: the rank [factor]
    dropout: float = Field(0.0, ge=0, lt=1)  # before the adapters [probability]

    @model_validator(mode="after")
    def _of_a_part(self) -> Self:
        if not (self.language_model or self.qformer or self.image_encoder):
            raise ValueError("lora names no layers: such as language_model: [q_proj, v_proj] or qformer: [query]")
        return self


class LanguageOptions(BaseModel):
    """The frozen language model of stage 2, and of fine-tuning that follows it."""

    language_model: str = ""  # a folder of transformers, or hub:NAME; empty: stage 1, or that of `init_from`
    language_dtype: Literal["fp32", "bf16", "fp16", "int8", "nf4"] = "bf16"  # of its weights; the last two: on a GPU
    language_dropout: bool = False  # its own dropout is active in training, as published


class Blip2Config(LanguageOptions, PairConfig):
    """Options of `pretrain_blip2.py`: stage 1, and stage 2 where `language_model` is set."""

    # the Q-Former; text_width and the like are its sizes
    queries: int = Field(32, gt=0)  # learned queries, of which each gives the language model one token [queries]
    cross_every: int = Field(2, gt=0)  # every so many layers attend to the image, from the first on [layers]
    train_image_encoder: bool = False  # off: the tower is frozen and in evaluation mode; its last norm always trains
    gather_gradients: bool = False  # contrast also trains the features that are compared with; off: as published

    # stage 2
    prompt: str = ""  # what captions begin with; its tokens are no targets
    min_new_tokens: int = Field(1, ge=0)  # of captions that are written for the log [tokens]
    max_new_tokens: int = Field(30, gt=0)  # of captions that are written for the log [tokens]
    lora: PartsLora | None = None  # low-rank adapters on parts, see below; null: none

    # what differs from other pre-training
    crop_scale: tuple[float, float] | None = (0.5, 1.0)
    randaugment: tuple[int, int] | None = None
    max_text_tokens: int = Field(32, ge=3)
    lr: float = Field(1e-4, gt=0)
    min_lr: float = Field(1e-5, ge=0)
    warmup_steps: int = Field(2000, ge=0)
    epochs: int = Field(10, gt=0)
    adam_betas: tuple[float, float] = (0.9, 0.98)
    decay_norms_and_biases: bool = False

    @model_validator(mode="after")
    def _of_one_stage(self) -> Self:
        if self.parallel == "fsdp":
            raise ValueError("parallel: fsdp does not know frozen parts: BLIP-2 trains with ddp, which keeps them once")
        if not self.language_model:
            stage2 = [key for key in ("prompt", "lora") if getattr(self, key)]
            if self.lora and not self.lora.language_model:
                stage2.remove("lora")
            if stage2:
                raise ValueError(f"{stage2[0]} is for stage 2: set language_model")
        return self
