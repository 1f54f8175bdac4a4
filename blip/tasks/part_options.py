"""Options of parts of a model: low-rank adapters, and the frozen parts of BLIP-2."""

from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from blip.config import ConfigError

PARTS = ("language_model", "qformer", "image_encoder")  # of BLIP-2 that can have adapters of their own


class LoraConfig(BaseModel):
    """Low-rank adapters (Hu et al. 2021) on the linear layers whose names end as given: of the whole model (`targets`),
    or of parts of BLIP-2, whose other parts stay as they are."""

    model_config = ConfigDict(extra="forbid")
    rank: int = Field(16, gt=0)  # rank of the adapters [units]
    targets: list[str] = []  # endings of names of linear layers; everything else is frozen
    alpha: float | None = Field(None, gt=0)  # null: the rank [factor]
    dropout: float = Field(0.0, ge=0, lt=1)  # before the adapters [probability]
    trainable: list[str] = Field(default_factory=list)  # with targets: parts trained whole, such as a new head

    # parts of BLIP-2
    language_model: list[str] = []  # endings of names of its layers, such as q_proj, v_proj
    qformer: list[str] = []  # of the Q-Former: query, key, value, or longer, such as cross_attention.value
    image_encoder: list[str] = []  # of the tower, such as qkv

    @model_validator(mode="after")
    def _of_one_kind(self) -> Self:
        parts = self.of_parts()
        if not (self.targets or parts):
            raise ValueError(f"name layers: targets, or of a part of BLIP-2, {', '.join(PARTS)}")
        if parts and (self.targets or self.trainable):
            raise ValueError(f"targets and trainable are of the whole model: leave them out, or {', '.join(parts)}")
        return self

    def of_parts(self) -> dict[str, list[str]]:
        """The layers of each part that has some."""
        return {part: layers for part in PARTS if (layers := getattr(self, part))}

    def of_whole_model(self) -> dict[str, Any]:
        """Arguments of `add_lora`.

        Raises:
            ConfigError: the layers are those of parts.
        """
        if parts := self.of_parts():
            raise ConfigError(f"lora: {', '.join(parts)}: parts are for BLIP-2; give targets: [qkv] or the like")
        return self.model_dump(exclude=set(PARTS))


class Blip2Options(BaseModel):
    """Tower and Q-Former of BLIP-2; `text_width` and the like are the Q-Former's sizes too."""

    queries: int = Field(32, gt=0)  # learned queries, of which each gives the language model one token [queries]
    cross_every: int = Field(2, gt=0)  # every so many layers attend to the image, from the first on [layers]
    train_image_encoder: bool = False  # off: the tower is frozen and in evaluation mode; its last norm always trains


class LanguageOptions(Blip2Options):
    """The frozen language model of BLIP-2."""

    language_model: str = ""  # a folder of transformers, or hub:NAME; empty: that of `init_from`, if it has one
    language_dtype: Literal["fp32", "bf16", "fp16", "int8", "nf4"] = "bf16"  # of its weights; the last two: on a GPU
    language_dropout: bool = False  # its own dropout is active in training, as published
