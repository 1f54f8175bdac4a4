"""Options of both stages of BLIP-2.

Defaults are those of the paper (Li et al. 2023, section 4) where it names them, else of the published code.
"""

from typing import Self

from pydantic import Field, model_validator

from blip.config import PairConfig
from blip.tasks.part_options import LanguageOptions, LoraConfig


class Blip2Config(LanguageOptions, PairConfig):
    """Options of `pretrain_blip2.py`: stage 1, and stage 2 where `language_model` is set."""

    # contrast of the first stage
    gather_gradients: bool = False  # contrast also trains the features that are compared with; off: as published

    # stage 2
    prompt: str = ""  # what captions begin with; its tokens are no targets
    min_new_tokens: int = Field(1, ge=0)  # of captions that are written for the log [tokens]
    max_new_tokens: int = Field(30, gt=0)  # of captions that are written for the log [tokens]
    lora: LoraConfig | None = None  # low-rank adapters on parts, see below; null: none

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
        if self.lora and self.lora.targets:
            raise ValueError("lora: targets is for BLIP; of BLIP-2 give language_model, qformer or image_encoder")
        return self
