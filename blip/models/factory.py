"""What each task is: one `TaskSpec` per task, read wherever code depends on the task.

To add a task, write its model and add a line to `TASKS`; CONTRIBUTING.md has the other steps.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from blip.errors import InputError
from blip.models.blip2 import Blip2Model
from blip.models.blip2_language import Blip2LanguageModel
from blip.models.caption import CaptionModel
from blip.models.dialogue import DialogueModel
from blip.models.nlvr import NlvrModel
from blip.models.pretrain import PretrainModel
from blip.models.retrieval import RetrievalModel
from blip.models.vqa import VqaModel
from blip.network.embeddings import TextConfig
from blip.network.qformer import QFormerConfig
from blip.network.vit import ViTConfig
from blip.tokenizer import Specials

Model = (
    PretrainModel
    | RetrievalModel
    | CaptionModel
    | VqaModel
    | NlvrModel
    | DialogueModel
    | Blip2Model
    | Blip2LanguageModel
)


@dataclass
class Sizes:
    """What a model is built from.

    `embed_dim` is the width of contrastive features, where a task has them. `answer` holds the sizes of a decoder that
    differ from the question encoder's (see `VqaModel`); `qformer` those of a Q-Former, which is then read in place of
    `text`; `language_width` the width of the embeddings of the language model behind it.
    """

    vit: ViTConfig
    text: TextConfig
    specials: Specials
    embed_dim: int = 256
    answer: TextConfig | None = None
    label_smoothing: float = 0.1
    qformer: QFormerConfig | None = None
    language_width: int = 0

    def qformer_sizes(self) -> QFormerConfig:
        """`qformer`, where a task needs one."""
        if self.qformer is None:
            raise InputError("the sizes of the Q-Former are missing")
        return self.qformer


@dataclass(frozen=True)
class TaskSpec:
    """A task: its model, what the model can do, and how its checkpoints relate to those of other tasks.

    Args:
        build: sizes to an `nn.Module` with random weights.
        can: any of `encode` (features), `match`, `caption`, `answer`, `judge` and `rank` (answers in a dialogue).
        images: images that a text attends to.
        has_features: the model has contrastive features, whose width `model.json` gives as `embed_dim`.
        shares_text: the decoder shares the text encoder's weights; foreign files hold these twice.
        explained_as: what `blip explain` explains by default: `match`, `caption` or `answer`; empty: nothing.
        scored_from: other tasks whose checkpoints can be evaluated at this task without training.
        new_parts: parts of tensor names that a checkpoint of pre-training lacks; they start at random, as expected.
        may_lack: tensors that released files lack and that predictions do not use.
        decoder_reads_question: the decoder attends to the states of a question, not of an image, so that its
            cross-attention has other shapes than that of other tasks.
        foreign_modules: top-level modules that together identify a foreign checkpoint of this task.
        queue_names: tensor names of the momentum queue in the released file, and ours.
        huggingface: the `transformers` class that holds this task, and the modules of ours that it holds.
        has_language_model: a frozen language model of transformers reads and writes the text.
        exports_as: tasks whose `transformers` class can hold a checkpoint of this task, the usual one first.
    """

    build: Callable[[Sizes], Any]
    can: frozenset[str]
    images: int = 1
    has_features: bool = False
    shares_text: bool = False
    explained_as: str = ""
    scored_from: tuple[str, ...] = ()
    new_parts: tuple[str, ...] = ()
    may_lack: tuple[str, ...] = ()
    decoder_reads_question: bool = False
    foreign_modules: frozenset[str] = frozenset()
    queue_names: dict[str, str] = field(default_factory=dict)
    huggingface: tuple[str, tuple[str, ...]] | None = None
    has_language_model: bool = False
    exports_as: tuple[str, ...] = ()


TASKS: dict[str, TaskSpec] = {
    "pretrain": TaskSpec(
        build=lambda s: PretrainModel(
            s.vit, s.text, s.specials, embed_dim=s.embed_dim, label_smoothing=s.label_smoothing
        ),
        can=frozenset({"encode", "match", "caption"}),
        has_features=True,
        shares_text=True,
        explained_as="match",
        foreign_modules=frozenset({"text_encoder", "text_decoder", "vision_proj"}),
        queue_names={"queue_ptr": "queue.pointer"},
        exports_as=("retrieval", "caption"),
    ),
    "retrieval": TaskSpec(
        build=lambda s: RetrievalModel(s.vit, s.text, s.specials, embed_dim=s.embed_dim),
        can=frozenset({"encode", "match"}),
        has_features=True,
        explained_as="match",
        scored_from=("pretrain",),
        may_lack=("temperature",),
        foreign_modules=frozenset({"text_encoder", "vision_proj"}),
        queue_names={"ptr_queue": "queue.pointer", "idx_queue": "queue.image_ids"},
        huggingface=(
            "BlipForImageTextRetrieval",
            ("image_encoder", "text_encoder", "image_proj", "text_proj", "itm_head"),
        ),
        exports_as=("retrieval",),
    ),
    "caption": TaskSpec(
        build=lambda s: CaptionModel(s.vit, s.text, s.specials, label_smoothing=s.label_smoothing),
        can=frozenset({"caption"}),
        explained_as="caption",
        scored_from=("pretrain",),
        foreign_modules=frozenset({"text_decoder"}),
        huggingface=("BlipForConditionalGeneration", ("image_encoder", "text_decoder")),
        exports_as=("caption",),
    ),
    "vqa": TaskSpec(
        build=lambda s: VqaModel(s.vit, s.text, s.specials, answer=s.answer, label_smoothing=s.label_smoothing),
        can=frozenset({"answer"}),
        explained_as="answer",
        new_parts=(".cross_attention.k.", ".cross_attention.v."),
        decoder_reads_question=True,
        foreign_modules=frozenset({"text_encoder", "text_decoder"}),
        huggingface=("BlipForQuestionAnswering", ("image_encoder", "text_encoder", "text_decoder")),
        exports_as=("vqa",),
    ),
    "nlvr": TaskSpec(
        build=lambda s: NlvrModel(s.vit, s.text, s.specials),
        can=frozenset({"judge"}),
        images=2,
        new_parts=("cls_head.", ".cross_attention.merge."),
        foreign_modules=frozenset({"text_encoder", "cls_head"}),
    ),
    "dialogue": TaskSpec(
        build=lambda s: DialogueModel(s.vit, s.text, s.specials),
        can=frozenset({"rank"}),
        scored_from=("pretrain", "retrieval"),
        foreign_modules=frozenset({"text_encoder", "itm_head"}),
    ),
    "blip2": TaskSpec(
        build=lambda s: Blip2Model(
            s.vit, s.qformer_sizes(), s.specials, embed_dim=s.embed_dim, label_smoothing=s.label_smoothing
        ),
        can=frozenset({"encode", "match", "caption"}),
        has_features=True,
        explained_as="match",
    ),
    "blip2_language": TaskSpec(
        build=lambda s: Blip2LanguageModel(s.vit, s.qformer_sizes(), s.language_width),
        can=frozenset({"caption", "answer"}),
        explained_as="caption",
        new_parts=("language_proj.",),
        has_language_model=True,
    ),
}


def spec_of(task: str) -> TaskSpec:
    """The spec of a task; InputError for a name that `TASKS` does not have."""
    if task not in TASKS:
        raise InputError(f"there is no task {task!r}; there are {', '.join(TASKS)}")
    return TASKS[task]


def model_of(
    task: str,
    vit: ViTConfig,
    text: TextConfig,
    *,
    specials: Specials,
    embed_dim: int = 256,
    answer: TextConfig | None = None,
    label_smoothing: float = 0.1,
    qformer: QFormerConfig | None = None,
    language_width: int = 0,
) -> Any:
    """A model of a task (an `nn.Module`) with random weights; the arguments are those of `Sizes`."""
    sizes = Sizes(vit, text, specials, embed_dim, answer, label_smoothing, qformer, language_width)
    return spec_of(task).build(sizes)
