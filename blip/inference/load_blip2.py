"""From a checkpoint of BLIP-2 to a predictor; `load.py` calls this."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from blip.checkpoints.format import CheckpointError, check_fit, load_strict, unique_state
from blip.checkpoints.language_models import load_language_model
from blip.checkpoints.part_adapters import ADAPTER, restore_adapters
from blip.errors import InputError
from blip.inference.blip2 import Blip2Predictor
from blip.inference.language import LanguagePredictor
from blip.inference.predictor import Predictor
from blip.models.blip2_language import Blip2LanguageModel
from blip.models.factory import model_of
from blip.models.language_models import language_model
from blip.network.embeddings import TextConfig
from blip.network.qformer import QFormerConfig
from blip.network.vit import ViTConfig
from blip.tokenizer import Specials, Tokenizer

MAY_LACK = ("temperature", "qformer.head.")  # of the first stage: no class of transformers holds them
MAX_TOKENS = 512  # of a prompt, where `model.json` gives no limit
NONE = Specials(pad=0, enc=-1, dec=-1)  # the second stage places no tokens of ours


@dataclass
class LanguageChoice:
    """A language model in place of the one that a checkpoint names, such as the same in another folder.

    Args:
        name: a folder, or `hub:OWNER/NAME`; the checkpoint's own unless given.
        dtype: `fp32`, `bf16`, `fp16`, `int8` or `nf4`; unless given, bf16 where the predictor computes in it, else
            fp32.
    """

    name: str = ""
    dtype: str = ""


def load_blip2(
    path: Path,
    tensors: dict[str, Tensor],
    info: dict[str, Any],
    *,
    device: torch.device,
    precision: str,
    tokenizer: Callable[[], Tokenizer],
    language: str | LanguageChoice = "",
) -> Predictor:
    """The predictor of a checkpoint of either stage.

    Args:
        path: of the checkpoint, for messages, and where a language model may lie.
        tensors, info: as `convert.read` returns them, at the size of images that the predictor is to have.
        device, precision: chosen ones.
        tokenizer: loads that of the Q-Former's texts.
        language: the language model, if not the one that the checkpoint names.

    Raises:
        CheckpointError: the checkpoint cannot be used, or its language model is absent or another one.
        InputError: the language model cannot have this dtype here.
    """
    qformer = QFormerConfig(**info["qformer"])
    words = _words(tokenizer, qformer, path) if qformer.text else None
    options: dict[str, Any] = {"device": device, "precision": precision}
    adapters = {name: tensor for name, tensor in tensors.items() if ADAPTER in name}
    tensors = {name: tensor for name, tensor in tensors.items() if name not in adapters}
    if "language_model" not in info:
        model, lacks = _first_stage(path, tensors, info, qformer=qformer, words=words)
        if info.get("lora"):
            restore_adapters(model, info["lora"], adapters, str(path))
        return Blip2Predictor(model, words, {**info, "lacks": lacks} if lacks else info, **options)  # type: ignore[arg-type]
    choice = language if isinstance(language, LanguageChoice) else LanguageChoice(language)
    stated = info["language_model"]
    found = load_language_model(
        choice.name or stated.get("name", ""),
        dtype=choice.dtype or ("bf16" if precision == "bf16" else "fp32"),
        device=device,
        beside=path if path.is_dir() else path.parent,
        expected=stated,
        activation=stated.get("activation", ""),
    )
    limit = int(info.get("max_text_tokens") or MAX_TOKENS) + int(info.get("max_answer_tokens") or 0)
    adapter, tokens = language_model(found.module, found.tokenizer, limit, end=info.get("end_text"))
    model = _second_stage(path, tensors, info, qformer=qformer).attach(adapter)
    if info.get("lora"):
        restore_adapters(model, info["lora"], adapters, str(path))
    return LanguagePredictor(model, words, info, tokens=tokens, **options)


def only_blip(model: Predictor, command: str) -> Predictor:
    """The model; InputError where it is a BLIP-2, for commands that read the text transformer of BLIP."""
    if "qformer" in model.info:
        raise InputError(
            f"{command} is for BLIP, and this is a BLIP-2: it works with caption, match, answer and explain"
        )
    return model


def without_language_model(model: Predictor, command: str) -> Predictor:
    """The model; InputError where it is a second stage, for commands that read the first stage of BLIP-2 as well."""
    if "language_model" in model.info:
        raise InputError(f"{command} is for BLIP and the first stage of BLIP-2, and this is the second stage")
    return model


def _words(tokenizer: Callable[[], Tokenizer], qformer: QFormerConfig, path: Path) -> Tokenizer:
    """The tokenizer of the Q-Former, whose last word is [DEC]; ours have [ENC] behind it."""
    words = tokenizer()
    if qformer.vocab_size not in (words.size, words.size - 1) or words.dec_id >= qformer.vocab_size:
        raise CheckpointError(
            f"{path} has {qformer.vocab_size} tokens and the tokenizer {words.size - 1}, [DEC] included: it is not the "
            "one that the model was trained with"
        )
    return words


def _first_stage(
    path: Path, tensors: dict[str, Tensor], info: dict[str, Any], *, qformer: QFormerConfig, words: Tokenizer | None
) -> tuple[nn.Module, list[str]]:
    """The model, and what the checkpoint lacks of it."""
    if words is None:
        raise CheckpointError(f"{path}: its Q-Former reads no texts, which the first stage needs")
    model = _built(info, qformer, words.specials, meta=False)
    own = unique_state(model)
    lacks = [name for name in own if name not in tensors and name.startswith(MAY_LACK)]
    tensors = {**{name: own[name] for name in lacks}, **tensors}
    load_strict(model, tensors, str(path))
    return model, [name for name in lacks if name != "temperature"]


def _second_stage(
    path: Path, tensors: dict[str, Tensor], info: dict[str, Any], *, qformer: QFormerConfig
) -> Blip2LanguageModel:
    check_fit(_built(info, qformer, NONE, meta=True), tensors, str(path))
    model: Blip2LanguageModel = _built(info, qformer, NONE, meta=False)
    load_strict(model, tensors, str(path))
    return model


def _built(info: dict[str, Any], qformer: QFormerConfig, specials: Specials, *, meta: bool) -> Any:
    """A model of these sizes with random weights; `meta`: without memory."""
    with torch.device("meta" if meta else "cpu"):
        return model_of(
            info["task"],
            ViTConfig(**info["image_encoder"]),
            TextConfig(),
            specials=specials,
            embed_dim=info.get("embed_dim") or 256,
            qformer=qformer,
            language_width=(info.get("language_model") or {}).get("width", 0),
        )
