"""Options of the fine-tuning tasks, beside those that `blip/config.py` has for every run.

Defaults are those of the published code (Li et al. 2022, appendix; its configuration files).
"""

from collections.abc import Sequence
from dataclasses import fields
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator
from torch import Tensor

from blip.checkpoints.places import answers_of
from blip.config import ModelConfig, WeightedFile
from blip.errors import did_you_mean
from blip.hashing import stable_hash
from blip.models.decoding import Decoding, uniforms_of
from blip.tasks.part_options import Blip2Options, LanguageOptions, LoraConfig

VAL_LOSS = "val_loss"


class FineTuneConfig(ModelConfig):
    """Options of every fine-tuning script."""

    scores: ClassVar[tuple[str, ...]] = ()  # names of the scores of a task's evaluation; `_KIND` may follow

    test_file: list[str | WeightedFile] = Field(default_factory=list)  # evaluated once, with the best checkpoint
    test_split: str = "test"  # part of a data set that comes as a folder, or from the hub
    max_test_records: int | None = Field(None, gt=0)  # of test_file; null: all [records]
    tokenizer: str = ""  # empty: the tokenizer of `init_from`
    crop_scale: tuple[float, float] | None = (0.5, 1.0)
    lora: LoraConfig | None = None  # low-rank adapters, see below; null: every weight is trained
    best_metric: str = ""  # the weights that are best by this validation score are kept in `best`
    best_is: Literal["highest", "lowest"] = "highest"  # whether a high or a low best_metric is good
    image_heads: int | None = Field(None, gt=0)  # of a .pth file whose heads are not of width 64 [heads]

    def evaluates_with_training_files(self) -> bool:
        """Whether an evaluation alone needs the training files."""
        return False

    @model_validator(mode="after")
    def _best_metric_is_known(self) -> Self:
        # checked here, because an unknown name would end the run only at its first evaluation
        known = [f"val_{name}" for name in self.scores]
        if self.best_metric == VAL_LOSS and not (self.val_loss and self.best_is == "lowest"):
            raise ValueError(f"best_metric {VAL_LOSS} needs best_is: lowest, and val_loss: true")
        known += [VAL_LOSS] if known else []
        if known and not f"{self.best_metric}_".startswith(tuple(f"{name}_" for name in known)):
            raise ValueError(f"best_metric {self.best_metric!r} is unknown; {did_you_mean(self.best_metric, known)}")
        return self


class RetrievalConfig(Blip2Options, FineTuneConfig):
    """Options of `train_retrieval.py`."""

    scores = tuple(f"{by}_{way}r_mean" for by in ("itc", "itm") for way in ("", "i2t_", "t2i_")) + tuple(
        f"{by}_{way}_{name}" for by in ("itc", "itm") for way in ("i2t", "t2i")
        for name in ("r1", "r5", "r10", "median_rank")
    )  # fmt: skip
    image_size: int = Field(384, gt=0)
    max_text_tokens: int = Field(35, ge=3)
    temperature: float = Field(0.07, ge=0.001, le=0.5)  # start value of the learned temperature of ITC [factor]
    queue_size: int = Field(57600, ge=0)  # features of earlier batches that ITC compares with; 0: none [features]
    momentum: float = Field(0.995, ge=0, le=1)  # of the momentum encoders [factor]
    alpha: float = Field(0.4, ge=0, le=1)  # weight of the momentum encoders' soft targets [share]
    alpha_ramp_epochs: float = Field(1.0, ge=0)  # epochs in which alpha rises from 0 [epochs]
    equal_captions: Literal["positives", "negatives"] = "positives"  # pairs of one image always are positives
    negative_all_rank: bool = False  # hard negatives from the batches of all processes
    k_test: int = Field(256, gt=0)  # candidates that matching re-ranks [images or texts]
    best_metric: str = "val_itm_r_mean"


DECODING_KEYS = {"temperature": "sampling_temperature"}  # options of `Decoding` whose key has another name


class WritingConfig(FineTuneConfig):
    """Options of generation in evaluation, of `train_caption.py` and `train_vqa.py`."""

    beams: int = 3  # 1: no beam search [beams]
    sample: bool = Decoding.sample  # draw tokens instead of searching
    top_p: float = Decoding.top_p  # draw from the fewest tokens that hold this probability [probability]
    top_k: int = Decoding.top_k  # draw from this many tokens; 0: from all [tokens]
    sampling_temperature: float = Decoding.temperature  # of the distribution that is drawn from [factor]
    min_new_tokens: int = 1  # tokens before the text may end [tokens]
    max_new_tokens: int = 20  # tokens at most, the prompt not counted [tokens]
    length_penalty: float = Decoding.length_penalty  # beam score: log-probability / length to this power [power]
    length_norm: Literal["generated", "whole", "whole_blip2"] = "generated"  # whole: prompt included, as published
    repetition_penalty: float = Decoding.repetition_penalty  # above 1: repeated tokens become less likely [factor]
    no_repeat_ngram: int = Decoding.no_repeat_ngram  # no run of this many tokens occurs twice; 0: it may [tokens]

    def decoding(self) -> Decoding:
        """The options of `Decoding` that have a key here; the others keep their defaults.

        Raises:
            InputError: the options exclude each other.
        """
        values = {}
        for option in fields(Decoding):
            key = DECODING_KEYS.get(option.name, option.name)
            if key in type(self).model_fields:
                values[option.name] = getattr(self, key)
        return Decoding(**values)

    def uniforms(self, indices: Sequence[int]) -> Tensor | None:
        """What draws the samples for the records `indices`, see `uniforms_of`: they follow from the seed of the run and
        the record, and training's random numbers stay the same."""
        return uniforms_of([stable_hash("samples", self.seed, index) for index in indices], self.decoding())

    @model_validator(mode="after")
    def _can_be_written(self) -> Self:
        if self.sample and "beams" not in self.model_fields_set:
            self.beams = 1
        self.decoding()
        return self


class CaptionConfig(LanguageOptions, WritingConfig):
    """Options of `train_caption.py`."""

    scores = ("exact", "bleu1", "bleu4", "rouge_l", "cider", "meteor")
    image_size: int = Field(384, gt=0)
    max_text_tokens: int = Field(40, ge=3)
    prompt: str = "a picture of "  # what captions begin with
    label_smoothing: float = Field(0.1, ge=0, lt=1)  # of the captions' tokens [share]
    bert_score_model: str = ""  # folder of a BERT-like model, for BERTScore
    best_metric: str = "val_cider"


class VqaConfig(LanguageOptions, WritingConfig):
    """Options of `train_vqa.py`."""

    scores = ("exact_match", "token_recall", "token_f1", "bleu1", "vqa_accuracy")
    image_size: int = Field(480, gt=0)
    max_text_tokens: int = Field(35, ge=3)  # of questions [tokens]
    text_cleaning: Literal["none"] = "none"  # texts are not cleaned
    max_answer_tokens: int = Field(30, ge=3)  # longer answers are cut [tokens]
    drop_path: float = Field(0.1, ge=0, lt=1)
    label_smoothing: float = Field(0.1, ge=0, lt=1)  # of the answers' tokens [share]
    question_prompt: str = "Question: {} Answer:"  # of BLIP-2: what its language model reads of a question
    question_in_qformer: bool = False  # of BLIP-2: the Q-Former reads the question too, beside its queries
    inference: Literal["rank", "generate", "choices"] = "rank"  # choices: a question's own, where the data set has them
    k_test: int = Field(128, gt=0)  # answers that are scored whole [answers]
    answer_file: str = ""  # JSON list, or one answer per line; empty: the answers of the training set
    max_new_tokens: int = 10
    split_shares: tuple[float, float, float] | None = None  # train, val, test by image, of train_file alone [shares]
    best_metric: str = "val_exact_match"

    def evaluates_with_training_files(self) -> bool:
        """Where their images are divided, and where neither a file nor the checkpoint has the answers to rank."""
        known = self.inference != "rank" or self.answer_file or answers_of(self.init_from)
        return self.split_shares is not None or not known

    @model_validator(mode="after")
    def _held_out_once(self) -> Self:
        if self.split_shares and (self.val_file or self.test_file):
            raise ValueError("split_shares divides train_file: leave out val_file and test_file")
        return self


class NlvrConfig(FineTuneConfig):
    """Options of `train_nlvr.py`."""

    scores = ("accuracy",)
    image_size: int = Field(384, gt=0)
    max_text_tokens: int = Field(35, ge=3)
    text_cleaning: Literal["none"] = "none"  # texts are not cleaned
    drop_path: float = Field(0.1, ge=0, lt=1)
    best_metric: str = "val_accuracy"


class DialogueConfig(FineTuneConfig):
    """Options of `train_visdial.py`."""

    scores = ("mrr", "r1", "r5", "r10", "mean_rank", "ndcg")
    image_size: int = Field(384, gt=0)
    max_text_tokens: int = Field(250, ge=3)  # of what was said, a question and its answer [tokens]
    max_caption_tokens: int = Field(40, ge=3)  # of captions, which are read apart [tokens]
    max_turn_tokens: int = Field(20, ge=2)  # of a question, and of a past one with its answer [tokens]
    max_answer_tokens: int = Field(8, ge=1)  # longer answers are cut, the last [SEP] not counted [tokens]
    text_cleaning: Literal["none"] = "none"  # texts are not cleaned
    best_metric: str = "val_mrr"
