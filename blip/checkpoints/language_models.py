"""Language models of transformers for the second stage of BLIP-2: found by name, checked, loaded frozen.

A name is a folder, `hub:OWNER/NAME` with or without `@REVISION`, or `OWNER/NAME` where there is no such folder. The
folder holds a causal or an encoder-decoder model, or a BLIP-2 of transformers, which stands for its language model.
"""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from blip.checkpoints.info import CheckpointError
from blip.checkpoints.language_files import TOKENIZERS, fingerprint_of_files, hub_name, local_folder, revision_of
from blip.checkpoints.states import read_state
from blip.console.bars import no_bars_of_transformers
from blip.errors import InputError

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
STORED = "stored"  # as the file has them, for conversion
QUANTISED = {"int8": (7, 5), "nf4": (6, 0)}  # the least compute capability of a GPU
PREFIX = "language_model."  # of its tensors in a folder of BLIP-2
PARTS = {"fingerprint": "weights", "tokenizer": "tokenizer", "kind": "kind", "width": "width"}


@dataclass
class LoadedLanguageModel:
    """A frozen language model in evaluation mode with its tokenizer; `info` is `language_model` of `model.json`."""

    module: Any = field(repr=False)  # of transformers
    tokenizer: Any = field(repr=False)  # of transformers
    info: dict[str, Any]
    folder: Path


def load_language_model(
    name: str,
    *,
    dtype: str = "fp32",
    device: str | torch.device = "cpu",
    beside: Path | None = None,
    expected: dict[str, Any] | None = None,
    activation: str = "",
) -> LoadedLanguageModel:
    """Loads a language model and its tokenizer. All parameters are frozen.

    Args:
        name: see above.
        dtype: of the weights: `fp32`, `bf16` or `fp16`; `int8` or `nf4` by bitsandbytes, on a GPU.
        device: where the weights go.
        beside: a checkpoint, to whose folder a relative name may belong.
        expected: `language_model` of the checkpoint's `model.json`: what it was trained with.
        activation: of T5's feed-forward networks, if it is not the configuration's: LAVIS has `gelu` for Flan-T5.

    Raises:
        InputError: there is no such dtype, or not on this device.
        CheckpointError: there is no such model, it is damaged, or it is not the expected one.
        RemoteError: it cannot be fetched.
    """
    check_dtype(dtype, torch.device(device))
    transformers, known = needs_transformers(), expected or {}
    pinned = f"{name}@{known['revision']}" if known.get("revision") and name == known.get("name") else name
    folder = local_folder(pinned, beside)
    config, whole = _config(transformers, folder)
    if dtype == "fp16" and config.model_type in ("t5", "mt5", "umt5"):
        raise InputError(f"language model {name}: T5 overflows in fp16 and gives NaN: choose bf16 or fp32")
    if activation and hasattr(config, "dense_act_fn"):
        config.dense_act_fn = activation
    info = _described(folder, config, whole)
    _check(info, expected or {}, name, only=("fingerprint", "kind"))  # before much is read
    tokenizer = _tokenizer(transformers, folder)
    module = _module(transformers, folder, config, whole=whole, dtype=dtype, device=torch.device(device))
    rows_and_width = module.get_input_embeddings().weight.shape
    info |= {
        "width": rows_and_width[1],
        "tokenizer": tokenizer_fingerprint(tokenizer),
        "dtype": dtype,
    }
    info |= {"activation": activation} if activation else {}
    _check(info, expected or {}, name, only=tuple(PARTS))
    if len(tokenizer) > rows_and_width[0]:
        counts = f"{len(tokenizer)} tokens, its weights {rows_and_width[0]}"
        raise CheckpointError(f"language model {name}: its tokenizer has {counts}")
    return LoadedLanguageModel(module.requires_grad_(False).eval(), tokenizer, info, folder)


def describe(name: str, *, beside: Path | None = None) -> dict[str, Any]:
    """What `language_model` of `model.json` says of a model, without loading its weights. Errors as of
    `load_language_model`."""
    transformers, folder = needs_transformers(), local_folder(name, beside)
    config, whole = _config(transformers, folder)
    width = getattr(config, "word_embed_proj_dim", None) or getattr(config, "d_model", None) or config.hidden_size
    tokenizer = tokenizer_fingerprint(_tokenizer(transformers, folder))
    return {
        **_described(folder, config, whole),
        "width": int(width),
        "tokenizer": tokenizer,
        "dtype": "fp32",
    }


def with_language_model(info: dict[str, Any], name: str) -> dict[str, Any]:
    """The content of `model.json` with the language model of this name.

    Raises:
        CheckpointError: the checkpoint has none, or one of another kind, width or other weights.
    """
    stated = info.get("language_model")
    if stated is None:
        raise CheckpointError(f"a checkpoint of {info['task']} has no language model: leave out language_model")
    found = describe(name)
    _check(found, stated, name, only=tuple(PARTS))
    return {**info, "language_model": {**stated, **found, "dtype": stated.get("dtype", "fp32")}}


def check_dtype(dtype: str, device: torch.device) -> None:
    """InputError where weights of this kind cannot be on this device."""
    if dtype in (*DTYPES, STORED):
        return
    if dtype not in QUANTISED:
        raise InputError(f"the dtype of a language model can be {', '.join((*DTYPES, *QUANTISED))}; not {dtype!r}")
    if device.type != "cuda":
        raise InputError(f"{dtype} weights of a language model need a GPU; on a CPU choose fp32 or bf16")
    capability = torch.cuda.get_device_capability(device)
    if capability < QUANTISED[dtype]:
        least, has = (".".join(map(str, one)) for one in (QUANTISED[dtype], capability))
        raise InputError(f"{dtype} needs a GPU of compute capability {least} or more, this one has {has}: choose fp16")
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise InputError(f"{dtype} needs bitsandbytes: pip install bitsandbytes ({error})") from error


def needs_transformers() -> ModuleType:
    """The package `transformers`; InputError where it is not installed."""
    try:
        import transformers
    except ImportError as error:
        raise InputError(f"language models need transformers: pip install -e '.[blip2]' ({error})") from error
    return transformers


def tokenizer_fingerprint(tokenizer: Any) -> str:
    """12 hexadecimal digits from the tokens, their ids and the special ones."""
    special = [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id]
    tokens = sorted(tokenizer.get_vocab().items())
    return hashlib.sha256(repr((special, tokens)).encode("utf-8", "surrogatepass")).hexdigest()[:12]


def _described(folder: Path, config: Any, whole: bool) -> dict[str, Any]:
    return {
        "name": hub_name(folder),
        "revision": revision_of(folder),
        "fingerprint": fingerprint_of_files(folder, PREFIX if whole else ""),
        "kind": "seq2seq" if config.is_encoder_decoder else "causal",
    }


def _check(info: dict[str, Any], expected: dict[str, Any], name: str, *, only: tuple[str, ...]) -> None:
    """CheckpointError where a model is not the one that a checkpoint was trained with."""
    for key in only:
        if expected.get(key) and key in info and expected[key] != info[key]:
            raise CheckpointError(
                f"language model {name} has another {PARTS[key]} than the one that the checkpoint was trained with: "
                f"{info[key]}, not {expected[key]}" + (f" ({expected['name']})" if expected.get("name") else "")
            )


def _config(transformers: Any, folder: Path) -> tuple[Any, bool]:
    """The configuration of the language model, and whether the folder holds a whole BLIP-2."""
    try:
        config = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{folder / 'config.json'} is no configuration of a language model: {_line(error)}"
        ) from error
    whole = config.model_type == "blip-2"
    config = config.text_config if whole else config
    known = transformers.models.auto.modeling_auto
    if config.model_type not in {
        *known.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        *known.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    }:
        raise CheckpointError(f"{folder} holds a model of type {config.model_type}, which is no language model")
    return config, whole


def _tokenizer(transformers: Any, folder: Path) -> Any:
    if not any((folder / name).is_file() for name in TOKENIZERS):  # transformers would return one without words
        raise CheckpointError(
            f"language model {folder} comes without its tokenizer: put its {TOKENIZERS[0]} into the folder, or save it "
            "there by `save_pretrained`"
        )
    try:
        return transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # each library of tokenizers raises its own
        raise CheckpointError(f"language model {folder}: its tokenizer cannot be read: {_line(error)}") from error


def _module(transformers: Any, folder: Path, config: Any, *, whole: bool, dtype: str, device: torch.device) -> Any:
    """The model with its weights; a tensor that is missing or of another shape is an error."""
    several = config.is_encoder_decoder
    auto = transformers.AutoModelForSeq2SeqLM if several else transformers.AutoModelForCausalLM
    options: dict[str, Any] = {"config": config, "output_loading_info": True, "local_files_only": True}
    if dtype in QUANTISED:
        options |= {"quantization_config": _quantisation(transformers, dtype), "device_map": {"": device}}
    options["dtype"] = "auto" if dtype == STORED else DTYPES.get(dtype, torch.float16)
    place: Path | None = folder
    if whole:
        place, options["state_dict"] = None, _language_tensors(folder, DTYPES.get(dtype))
        options["dtype"] = DTYPES.get(dtype, torch.float32)
    try:
        # without a folder the automatic classes ask for one
        kind = auto._model_mapping[type(config)] if whole else auto
        with no_bars_of_transformers():
            module, found = kind.from_pretrained(place, **options)
    except Exception as error:  # safetensors, pickle, torch and transformers raise their own
        raise CheckpointError(f"language model {folder} cannot be loaded: {_line(error)}") from error
    if missing := sorted(found["missing_keys"]):
        raise CheckpointError(
            f"language model {folder} is incomplete: {len(missing)} tensors are missing, such as {missing[0]}"
        )
    return module if dtype in QUANTISED else module.to(device)


def _language_tensors(folder: Path, dtype: torch.dtype | None) -> dict[str, Tensor]:
    """The tensors of the language model in a folder of BLIP-2, by its own names, each converted as it is read."""
    state = read_state(folder, lambda name: name.startswith(PREFIX), dtype)
    return {name.removeprefix(PREFIX): tensor for name, tensor in state.items()}


def _quantisation(transformers: Any, dtype: str) -> Any:
    if dtype == "int8":
        return transformers.BitsAndBytesConfig(load_in_8bit=True)
    return transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float16
    )


def _line(error: BaseException) -> str:
    """The first line of a foreign message."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
