"""BLIP-2 as a folder of transformers: its weights, those of the language model, and what its processor reads."""

import re
from pathlib import Path
from typing import Any

from blip.checkpoints import processor
from blip.checkpoints.blip2_names import HUGGINGFACE_BLIP2, HUGGINGFACE_QFORMER, LANGUAGE_MODEL
from blip.checkpoints.blip2_sizes import huggingface_config, qformer_config
from blip.checkpoints.format import WEIGHTS, CheckpointError, disk_errors, save_tensors, unique_state
from blip.checkpoints.language_models import LoadedLanguageModel, load_language_model
from blip.checkpoints.names import Tensors, inverse, prefixed, rename
from blip.files import json_text, write_whole
from blip.models.factory import spec_of
from blip.tokenizer import load_tokenizer

PROCESSOR = "processor_config.json"
# hf_class of each task, the usual one first: the class of transformers
CLASSES = {
    "blip2": {"retrieval": "Blip2ForImageTextRetrieval", "qformer": "Blip2QFormerModel"},
    "blip2_language": {
        "caption": "Blip2ForConditionalGeneration",
        "model": "Blip2Model",
        "qformer": "Blip2QFormerModel",
    },
}
_TEXTS = re.compile(r"qformer\.(embeddings\.(words|positions)\.|layers\.\d+\.feed_forward\.)")  # of the Q-Former


def write_huggingface(
    folder: Path, tensors: Tensors, info: dict[str, Any], *, tokenizer_file: str | Path | None, hf_class: str | None
) -> list[str]:
    """Writes a folder of transformers; returns the names of what its class cannot hold.

    Args:
        folder: where to.
        tensors, info: of a checkpoint of BLIP-2.
        tokenizer_file: of the first stage; the second has that of its language model.
        hf_class: of `CLASSES`; the task's usual one unless given.

    Raises:
        CheckpointError: no class holds this model, or its language model is not there.
    """
    classes = CLASSES[info["task"]]
    hf_class = next(iter(classes)) if hf_class in (None, "", info["task"]) else hf_class
    if hf_class not in classes:
        options = " or ".join(f"{option} ({name})" for option, name in classes.items())
        raise CheckpointError(f"no class {hf_class} of transformers holds a checkpoint of {info['task']}: {options}")
    _check_tower(info["image_encoder"], classes[hf_class])
    state, kept = _renamed(tensors, hf_class)
    language = None
    if hf_class == "qformer":
        config = qformer_config(info["qformer"])
    else:
        language = _language_model(info, folder) if spec_of(info["task"]).has_language_model else None
        config = huggingface_config(info, *_of_language(language))
        config["qformer_config"]["use_qformer_text_input"] = language is None  # the class of the second reads none
    if language is not None:
        weights = unique_state(language.module)
        state |= {f"{LANGUAGE_MODEL}{name}": tensor.cpu() for name, tensor in weights.items()}
    config = {"architectures": [classes[hf_class]], **config}
    folder.mkdir(parents=True, exist_ok=True)
    with disk_errors("the checkpoint", folder):
        # safetensors refuses tensors that share memory
        save_tensors({name: tensor.detach().clone() for name, tensor in state.items()}, folder / WEIGHTS)
        write_whole(folder / "config.json", json_text(config))
        if hf_class != "qformer":
            _write_processor(folder, info, language, tokenizer_file)
    lost = [name for name in tensors if name not in kept]
    vision = info["image_encoder"]
    same = vision.get("norm_eps", 1e-6) == vision.get("block_eps", 1e-6)
    return lost + ([] if same or hf_class == "qformer" else ["model.json: norm_eps"])


def _check_tower(vision: dict[str, Any], class_name: str) -> None:
    has = [("pre_norm", "a norm before the blocks"), ("patch_bias", "no bias of the patches")]
    usual = {"pre_norm": False, "patch_bias": True}
    wrong = [words for name, words in has if vision.get(name, usual[name]) != usual[name]]
    wrong += ["CLIP's activation"] if vision.get("activation", "gelu") != "gelu" else []
    if wrong and class_name != "Blip2QFormerModel":
        raise CheckpointError(f"{class_name} cannot hold this image encoder: it has {', '.join(wrong)}")


def _renamed(tensors: Tensors, hf_class: str) -> tuple[Tensors, set[str]]:
    """The tensors that a class holds, by its names; and ours of these."""
    if hf_class == "qformer":
        table = inverse(prefixed(HUGGINGFACE_QFORMER, "", "qformer."))
    else:
        table = inverse(HUGGINGFACE_BLIP2)
    state, kept = {}, set()
    for name, tensor in tensors.items():
        theirs = rename(name, table)
        if theirs is not None and not (hf_class in ("caption", "model") and _TEXTS.match(name)):
            state[theirs] = tensor
            kept.add(name)
    return state, kept


def _language_model(info: dict[str, Any], folder: Path) -> LoadedLanguageModel:
    stated = info["language_model"]
    return load_language_model(
        stated.get("name") or "",
        dtype="stored",
        beside=folder,
        expected=stated,
        activation=stated.get("activation", ""),
    )


def _of_language(language: LoadedLanguageModel | None) -> tuple[dict[str, Any] | None, int | None]:
    """The configuration of a language model, and the id of the token in the place of queries.

    It is that of the tokenizer's `<image>`, which the processor adds as the first free row where it is absent.
    """
    if language is None:
        return None, None
    rows = len(language.module.get_input_embeddings().weight)
    config = language.module.config.to_diff_dict()
    config |= {
        "model_type": language.module.config.model_type,
        "is_encoder_decoder": language.info["kind"] == "seq2seq",
    }
    place = language.tokenizer.get_vocab().get("<image>", len(language.tokenizer))
    return config, place if place < rows else None


def _write_processor(
    folder: Path, info: dict[str, Any], language: LoadedLanguageModel | None, tokenizer_file: str | Path | None
) -> None:
    images = processor.image_processor(info["image_encoder"]["image_size"], "Blip2Processor")
    write_whole(folder / processor.IMAGES, json_text(images))
    about = {"processor_class": "Blip2Processor", "num_query_tokens": info["qformer"]["queries"]}
    write_whole(folder / PROCESSOR, json_text(about))
    if language is not None:
        language.tokenizer.save_pretrained(folder)
        language.module.generation_config.save_pretrained(folder)
    elif tokenizer_file:
        longest = info["qformer"]["max_positions"]
        processor.write_tokenizer(folder, load_tokenizer(str(tokenizer_file)), longest, added=["[DEC]"])
