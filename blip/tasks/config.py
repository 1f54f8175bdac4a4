"""What the fine-tuning scripts can be told, beside what `config.py` says of every run.

Defaults are those of the published code (Li et al. 2022, appendix; its configuration files).
"""

import difflib
from typing import ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from blip.config import ModelConfig
from blip.models.decoding import Decoding


class LoraConfig(BaseModel):
    """Low-rank adapters (Hu et al. 2021) on the linear layers whose names end as `targets` say."""

    model_config = ConfigDict(extra="forbid")
    rank: int = Field(16, gt=0)
    targets: list[str] = Field(min_length=1)
    alpha: float | None = Field(None, gt=0)  # nothing: the rank
    dropout: float = Field(0.0, ge=0, lt=1)
    trainable: list[str] = Field(default_factory=list)  # parts trained whole, such as a new head


class FineTuneConfig(ModelConfig):
    """What every fine-tuning script can be told."""

    scores: ClassVar[tuple[str, ...]] = ()  # what the evaluation of a task gives; `_KIND` may follow

    dataset: str = "json"  # the form of the files: see `blip check-data --help`
    test_file: list[str] = Field(default_factory=list)  # evaluated once, after training, with the best checkpoint
    train_split: str = "train"  # the part of a data set that comes as a folder
    val_split: str = "validation"
    test_split: str = "test"
    tokenizer: str = ""  # empty: the tokenizer of `init_from`
    crop_scale: tuple[float, float] | None = (0.5, 1.0)
    lora: LoraConfig | None = None
    best_metric: str = ""  # of the validation; the weights that are best by it are kept in `best`
    best_is: Literal["highest", "lowest"] = "highest"
    image_heads: int | None = Field(None, gt=0)  # of a .pth file whose heads are not of width 64

    @model_validator(mode="after")
    def _best_metric_is_known(self) -> Self:
        # a name that the first evaluation does not give would cost the epoch before it
        known = [f"val_{name}" for name in self.scores]
        if known and not f"{self.best_metric}_".startswith(tuple(f"{name}_" for name in known)):
            near = difflib.get_close_matches(self.best_metric, known, n=3, cutoff=0.0)
            raise ValueError(f"best_metric {self.best_metric!r} is unknown; the nearest are {', '.join(near)}")
        return self


class RetrievalConfig(FineTuneConfig):
    """What `train_retrieval.py` can be told."""

    scores = tuple(f"{by}_{way}r_mean" for by in ("itc", "itm") for way in ("", "i2t_", "t2i_")) + tuple(
        f"{by}_{way}_{name}" for by in ("itc", "itm") for way in ("i2t", "t2i")
        for name in ("r1", "r5", "r10", "median_rank")
    )  # fmt: skip
    image_size: int = Field(384, gt=0)
    max_text_tokens: int = Field(35, ge=3)
    temperature: float = Field(0.07, ge=0.001, le=0.5)
    queue_size: int = Field(57600, ge=0)
    momentum: float = Field(0.995, ge=0, le=1)
    alpha: float = Field(0.4, ge=0, le=1)
    alpha_ramp_epochs: float = Field(1.0, ge=0)
    equal_captions: Literal["positives", "negatives"] = "positives"  # pairs of one image always are positives
    negative_all_rank: bool = False  # hard negatives from the batches of all processes
    k_test: int = Field(256, gt=0)  # candidates that matching re-ranks; 0.. above the set's size means all
    best_metric: str = "val_itm_r_mean"


class WritingConfig(FineTuneConfig):
    """How texts are written in evaluation: see `generation.Decoding`, which these become."""

    beams: int = 3
    sample: bool = False
    top_p: float = 1.0
    top_k: int = 0
    sampling_temperature: float = 1.0
    min_new_tokens: int = 1
    max_new_tokens: int = 20
    length_penalty: float = 1.0
    length_norm: Literal["generated", "whole"] = "generated"
    repetition_penalty: float = 1.0
    no_repeat_ngram: int = 0

    def decoding(self) -> Decoding:
        """ValueError where these do not go together."""
        return Decoding(
            beams=self.beams,
            sample=self.sample,
            top_p=self.top_p,
            top_k=self.top_k,
            temperature=self.sampling_temperature,
            min_new_tokens=self.min_new_tokens,
            max_new_tokens=self.max_new_tokens,
            length_penalty=self.length_penalty,
            length_norm=self.length_norm,
            repetition_penalty=self.repetition_penalty,
            no_repeat_ngram=self.no_repeat_ngram,
        )

    @model_validator(mode="after")
    def _can_be_written(self) -> Self:
        if self.sample and "beams" not in self.model_fields_set:
            self.beams = 1
        self.decoding()
        return self


class CaptionConfig(WritingConfig):
    """What `train_caption.py` can be told."""

    scores = ("exact", "bleu1", "bleu4", "rouge_l", "cider", "meteor")
    image_size: int = Field(384, gt=0)
    max_text_tokens: int = Field(40, ge=3)
    prompt: str = "a picture of "
    label_smoothing: float = Field(0.1, ge=0, lt=1)
    bert_score_model: str = ""  # folder of a BERT-like model, for BERTScore
    best_metric: str = "val_cider"


class VqaConfig(WritingConfig):
    """What `train_vqa.py` can be told."""

    scores = ("exact_match", "token_recall", "token_f1", "bleu1", "vqa_accuracy")
    image_size: int = Field(480, gt=0)
    max_text_tokens: int = Field(35, ge=3)  # of questions
    text_cleaning: Literal["none"] = "none"
    max_answer_tokens: int = Field(30, ge=3)
    drop_path: float = Field(0.1, ge=0, lt=1)
    label_smoothing: float = Field(0.1, ge=0, lt=1)
    inference: Literal["rank", "generate", "choices"] = "rank"  # choices: a question's own, where it brings them
    k_test: int = Field(128, gt=0)  # answers that are scored whole
    answer_file: str = ""  # a JSON list, or a text file of one answer a line; empty: the answers of the training set
    max_new_tokens: int = 10
    split_shares: tuple[float, float, float] | None = None  # train, val, test by image, of train_file alone
    best_metric: str = "val_exact_match"

    @model_validator(mode="after")
    def _held_out_once(self) -> Self:
        if self.split_shares and (self.val_file or self.test_file):
            raise ValueError("split_shares divides train_file: leave out val_file and test_file")
        return self


class NlvrConfig(FineTuneConfig):
    """What `train_nlvr.py` can be told."""

    scores = ("accuracy",)
    image_size: int = Field(384, gt=0)
    max_text_tokens: int = Field(35, ge=3)
    text_cleaning: Literal["none"] = "none"
    drop_path: float = Field(0.1, ge=0, lt=1)
    best_metric: str = "val_accuracy"
