"""What `BlipProcessor` and `pipeline` of transformers read beside the weights: images, texts and generation."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers.processors import TemplateProcessing

from blip.checkpoints.format import TOKENIZER
from blip.files import json_text, write_whole
from blip.tokenizer import BERT_SPECIAL, Tokenizer, load_tokenizer

VOCABULARY, TOKENIZER_CONFIG = "vocab.txt", "tokenizer_config.json"
IMAGES, GENERATION = "preprocessor_config.json", "generation_config.json"
FILES = (IMAGES, GENERATION, TOKENIZER, VOCABULARY, TOKENIZER_CONFIG)
MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)  # as BLIP was trained
BICUBIC = 3  # PIL's number
# as `blip caption` and `blip answer --generate`
NEW_TOKENS, NEW_TOKENS_OF_ANSWERS, BEAMS = 30, 10, 3


def write_processor(
    folder: Path, info: dict[str, Any], tokenizer_file: str | Path | None, *, special: dict[str, int], answers: bool
) -> None:
    """Writes the files into a folder of Hugging Face.

    Args:
        info: the content of `model.json`.
        tokenizer_file: `tokenizer.json` or `vocab.txt`; without it, the folder has no files of a tokenizer.
        special: ids of [PAD], [SEP] and [DEC].
        answers: the model answers questions, which takes fewer tokens than a caption.
    """
    images = image_processor(info["image_encoder"]["image_size"])
    generation = {
        "bos_token_id": special["[DEC]"],
        "eos_token_id": special["[SEP]"],
        "pad_token_id": special["[PAD]"],
        "max_new_tokens": NEW_TOKENS_OF_ANSWERS if answers else NEW_TOKENS,
        "num_beams": BEAMS,
    }
    for name, content in ((IMAGES, images), (GENERATION, generation)):
        write_whole(folder / name, json_text(content))
    if tokenizer_file:
        text = info.get("text_encoder") or info["text_decoder"]
        write_tokenizer(folder, load_tokenizer(str(tokenizer_file)), text["max_positions"])


def image_processor(side: int, processor_class: str = "BlipProcessor") -> dict[str, Any]:
    """The configuration of transformers' image processor; `side` in pixels."""
    return {
        "image_processor_type": "BlipImageProcessor",
        "processor_class": processor_class,
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"height": side, "width": side},
        "resample": BICUBIC,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": MEAN,
        "image_std": STD,
    }


def write_tokenizer(folder: Path, words: Tokenizer, longest: int, *, added: Sequence[str] = ("[DEC]", "[ENC]")) -> None:
    """Our tokenizer frames texts by itself, the one of a file by its last step. `added` are BLIP's own tokens."""
    words.save(folder / TOKENIZER)
    backend = tokenizers.Tokenizer.from_str((folder / TOKENIZER).read_text(encoding="utf-8"))
    backend.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", words.cls_id), ("[SEP]", words.sep_id)],
    )
    write_whole(folder / TOKENIZER, backend.to_str(pretty=True) + "\n")
    by_id = sorted(words.vocabulary().items(), key=lambda entry: entry[1])
    if [number for _, number in by_id] == list(range(words.size)):  # a line for each id
        write_whole(folder / VOCABULARY, "".join(f"{token}\n" for token, _ in by_id))
    normalizer = backend.normalizer
    config = {
        "tokenizer_class": "BertTokenizer",
        "processor_class": "Blip2Processor" if len(added) == 1 else "BlipProcessor",
        "do_lower_case": getattr(normalizer, "lowercase", True),
        "strip_accents": getattr(normalizer, "strip_accents", None),
        "tokenize_chinese_chars": getattr(normalizer, "handle_chinese_chars", True),
        "model_max_length": longest,
        "model_input_names": ["input_ids", "attention_mask"],
        "additional_special_tokens": list(added),
        **{f"{token.strip('[]').lower()}_token": token for token in BERT_SPECIAL if token in words.vocabulary()},
    }
    write_whole(folder / TOKENIZER_CONFIG, json_text(config))
