"""Which model a task has."""

from blip.errors import InputError
from blip.models.caption import CaptionModel
from blip.models.nlvr import NlvrModel
from blip.models.pretrain import PretrainModel
from blip.models.retrieval import RetrievalModel
from blip.models.vqa import VqaModel
from blip.network.embeddings import TextConfig
from blip.network.vit import ViTConfig
from blip.tokenizer import Specials

Model = PretrainModel | RetrievalModel | CaptionModel | VqaModel | NlvrModel
TASKS = ("pretrain", "retrieval", "caption", "vqa", "nlvr")


def model_of(
    task: str,
    vit: ViTConfig,
    text: TextConfig,
    specials: Specials,
    embed_dim: int = 256,
    answer: TextConfig | None = None,
    label_smoothing: float = 0.1,
) -> Model:
    """A model with random weights. `embed_dim` where there are features, `answer` as in `VqaModel`."""
    match task:
        case "pretrain":
            return PretrainModel(vit, text, specials, embed_dim=embed_dim, label_smoothing=label_smoothing)
        case "retrieval":
            return RetrievalModel(vit, text, specials, embed_dim=embed_dim)
        case "caption":
            return CaptionModel(vit, text, specials, label_smoothing=label_smoothing)
        case "vqa":
            return VqaModel(vit, text, specials, answer=answer, label_smoothing=label_smoothing)
        case "nlvr":
            return NlvrModel(vit, text, specials)
    raise InputError(f"there is no task {task!r}; there are {', '.join(TASKS)}")
