"""From a checkpoint of any format to a model that is ready to use: `blip.load(path)`."""

import os
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from blip.checkpoints import convert, places
from blip.checkpoints.adapter_files import ADAPTER_INFO, adapter_info, is_adapter, load_adapter
from blip.checkpoints.adapters import merge
from blip.checkpoints.format import (
    INFO,
    CheckpointError,
    check_fit,
    check_numbers,
    find_tokenizer,
    load_strict,
    unique_state,
)
from blip.checkpoints.info import MAX_SIDE, read_info
from blip.checkpoints.initialize import Source, adopt
from blip.errors import InputError
from blip.hardware.precision import AUTO, choose_precision
from blip.inference.load_blip2 import LanguageChoice, load_blip2
from blip.inference.predictor import Predictor
from blip.models.factory import TASKS, model_of, spec_of
from blip.network.embeddings import TextConfig
from blip.network.vit import ViTConfig, fit_image_size
from blip.tokenizer import Tokenizer, load_tokenizer


def load(
    path: str | Path,
    device: str | torch.device = "auto",
    *,
    precision: str = AUTO,
    image_heads: int | None = None,
    text_heads: int | None = None,
    image_size: int | None = None,
    tokenizer: str | Path | Tokenizer | None = None,
    language_model: str | LanguageChoice = "",
) -> Predictor:
    """Loads a checkpoint of this package, a released `.pth` file or a Hugging Face folder, ready to use.

    From the hub or an address it is fetched once. A folder that holds low-rank adapters alone is read together with
    the checkpoint that they were trained on, which takes `peft`; they are merged into the weights.

    Args:
        path: the folder or file; `hub:OWNER/NAME`, also with `@REVISION`; or an `https://` address.
        device: where the model runs: `auto`, which is a GPU if there is one, `cpu`, `cuda` or a device of torch.
        precision: of what the model computes: `fp32`, `tf32`, `bf16`, or `auto`, which is bf16 on a GPU that has it and
            else fp32. Weights, scores and features are float32 in all of them.
        image_heads, text_heads: attention heads, for `.pth` files whose heads are not of width 64.
        image_size: side of the image in pixels, if not the checkpoint's: its position embeddings are interpolated.
        tokenizer: `vocab.txt`, `tokenizer.json`, `hub:NAME` or a `Tokenizer`; needed where the folder has none.
        language_model: of BLIP-2: a folder or `hub:OWNER/NAME`, if not the one that the checkpoint names; or a
            `LanguageChoice`, which also says in which type of number its weights are.

    Raises:
        CheckpointError: the checkpoint cannot be used; the message gives the reason.
        LoraError: the folder holds adapters and `peft` is not installed.
        RemoteError: the checkpoint cannot be fetched.
        InputError: there is no such device, or it does not have the precision.

    Example:
        >>> m = blip.load("checkpoint", device="cpu")
        >>> probability = m.match_probability("chest.png", ["small left effusion", "normal"])  # (2,)
        >>> (caption,) = m.caption("chest.png")
    """
    target = device_of(device)
    precision, path = choose_precision(precision, target), places.local(os.path.expanduser(path))
    if is_adapter(path):
        tensors, info, words = _with_adapter(Path(path), tokenizer)
    else:
        tensors, info = convert.read(path, image_heads, text_heads)
        if "qformer" in info:
            words_of, info = partial(_tokenizer, tokenizer, Path(path)), _fit_blip2(tensors, info, image_size)
            options: dict[str, Any] = {"device": target, "precision": precision, "language": language_model}
            return load_blip2(Path(path), tensors, info, tokenizer=words_of, **options)
        words = _tokenizer(tokenizer, Path(path))
    if language_model:
        raise InputError(f"{path} is no BLIP-2: it has no language model to choose")
    return _predictor(path, tensors, info, words=words, image_size=image_size, device=target, precision=precision)


def _predictor(
    path: Path,
    tensors: dict[str, Tensor],
    info: dict[str, Any],
    *,
    words: Tokenizer,
    image_size: int | None,
    device: torch.device,
    precision: str,
) -> Predictor:
    """The predictor of a checkpoint of BLIP; arguments as of `load`, chosen and read."""
    tensors, _, _ = convert.split(tensors)
    vit, text, answer = _sizes(info, path)
    if image_size is not None and image_size != vit.image_size:
        _fit(tensors, vit, image_size)
        info = {**info, "image_encoder": {**info["image_encoder"], "image_size": image_size}}
    if words.size != text.vocab_size:
        raise CheckpointError(
            f"{path} has {text.vocab_size} tokens and the tokenizer {words.size}, [DEC] and [ENC] included: "
            "it is not the one that the model was trained with"
        )
    outline = _outline(info, vit, text, answer=answer, tokenizer=words)
    may_lack = spec_of(info["task"]).may_lack
    check_fit(outline, {**{name: outline.get_parameter(name) for name in may_lack}, **tensors}, str(path))
    model = _model(info, vit, text, answer=answer, tokenizer=words)
    for name in may_lack:
        tensors.setdefault(name, model.get_parameter(name).detach())
    load_strict(model, tensors, str(path))
    return Predictor(model, words, info, device=device, precision=precision)


def _fit_blip2(tensors: dict[str, Tensor], info: dict[str, Any], image_size: int | None) -> dict[str, Any]:
    """The content of `model.json` for images of another size, to which positions among the tensors are interpolated."""
    vit = ViTConfig(**info["image_encoder"])
    if image_size is None or image_size == vit.image_size:
        return info
    _fit(tensors, vit, image_size)
    return {**info, "image_encoder": {**info["image_encoder"], "image_size": image_size}}


def _fit(tensors: dict[str, Tensor], vit: ViTConfig, image_size: int) -> None:
    """Interpolates the positions among the tensors to images of another size, and sets it in the configuration.

    Raises:
        InputError: there is no grid of patches of that size.
    """
    if image_size < vit.patch or image_size % vit.patch or image_size > MAX_SIDE:
        limits = f"a multiple of the patch, {vit.patch}, and at most {MAX_SIDE}"
        raise InputError(f"image_size is {image_size}; it has to be {limits}")
    vit.image_size = image_size
    fit_image_size(tensors, vit)


def device_of(name: str | torch.device) -> torch.device:
    """The device of a name: `auto` is a GPU if there is one. InputError where there is no such device."""
    if isinstance(name, torch.device):
        return name
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"device is {name!r}; it can be auto, cpu, cuda or a device of torch") from error
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise InputError(f"device is {name}, but torch finds {torch.cuda.device_count()} GPUs here; use auto or cpu")
    return device


def _tokenizer(given: str | Path | Tokenizer | None, *folders: Path) -> Tokenizer:
    """The given tokenizer, or that of the first folder that has one."""
    if isinstance(given, Tokenizer):
        return given
    if given is not None:
        return load_tokenizer(str(given))
    return load_tokenizer(str(find_tokenizer(*folders)))


def _model(info: dict, vit: ViTConfig, text: TextConfig, *, answer: TextConfig | None, tokenizer: Tokenizer) -> Any:
    """A model of these sizes with random weights."""
    return model_of(
        info["task"], vit, text, specials=tokenizer.specials, embed_dim=info.get("embed_dim", 0), answer=answer
    )


def _outline(info: dict, vit: ViTConfig, text: TextConfig, *, answer: TextConfig | None, tokenizer: Tokenizer) -> Any:
    """The same without memory: names and shapes are compared before memory is taken for what no file holds."""
    with torch.device("meta"):
        return _model(info, vit, text, answer=answer, tokenizer=tokenizer)


def _with_adapter(
    folder: Path, given: str | Path | Tokenizer | None
) -> tuple[dict[str, Tensor], dict[str, Any], Tokenizer]:
    """Tensors, `model.json` and tokenizer of the base checkpoint with a folder's adapters merged into it."""
    about = adapter_info(folder)
    info, base = _info_of_adapter(folder, about), _base(folder, about)
    tokenizer = _tokenizer(given, folder, base)
    vit, text, answer = _sizes(info, folder)
    heads = (vit.heads, text.heads) if base.suffix == ".pth" else (None, None)
    tensors, base_info = convert.read(base, *heads)
    _check_base(folder, base_info, vit, text=text)
    source = Source(convert.split(tensors)[0], base_info, str(base))
    outline = _outline(info, vit, text, answer=answer, tokenizer=tokenizer)
    missing = adopt(outline, info["task"], source, vit=vit)
    known = {*about.get("new", []), *about["trainable"], *spec_of(info["task"]).may_lack}
    if absent := [name for name in missing if name not in known]:
        raise CheckpointError(
            f"{folder} cannot be loaded with its base {base} alone: neither holds {', '.join(absent[:4])}; load a "
            "checkpoint of the run, whose weights have the adapters merged"
        )
    model = _model(info, vit, text, answer=answer, tokenizer=tokenizer)
    adopt(model, info["task"], source, vit=vit)
    load_adapter(model, folder)
    merge(model)
    merged = unique_state(model)
    check_numbers(merged, f"{folder} merged with {base}")
    return merged, info, tokenizer


def _info_of_adapter(folder: Path, about: dict) -> dict:
    if "model" in about:
        return about["model"]
    if (folder / INFO).is_file():
        return read_info(folder / INFO)
    raise CheckpointError(f"{folder / ADAPTER_INFO} does not describe the model: copy the run's {INFO} into the folder")


def _check_base(folder: Path, base: dict, vit: ViTConfig, *, text: TextConfig) -> None:
    """CheckpointError where adapters describe another model than their base, whose sizes are those of its tensors."""
    theirs = base.get("text_encoder") or base["text_decoder"]
    pairs = [(name, getattr(vit, name), base["image_encoder"][name]) for name in ("patch", "width", "depth")]
    names = ("width", "layers", "hidden", "vocab_size", "max_positions")
    pairs += [(f"text {name}", getattr(text, name), theirs[name]) for name in names]
    if wrong := [f"{name} {own} (the base has {other})" for name, own, other in pairs if own != other]:
        raise CheckpointError(f"{folder} does not fit its base checkpoint: {', '.join(wrong)}")


def _base(folder: Path, about: dict) -> Path:
    """The checkpoint that adapters belong to; a relative path counts from the working directory or from the folder."""
    base = about.get("base")
    if not base:
        raise CheckpointError(
            f"{folder} holds adapters alone, and {ADAPTER_INFO} names no base checkpoint to add them to"
        )
    if places.is_remote(base):
        return places.local(base)
    for place in (Path(base), folder / base):
        if place.exists():
            return place
    raise CheckpointError(
        f"{folder} holds adapters alone, and their base checkpoint {base} does not exist: restore it there, or set "
        f"`base` in {ADAPTER_INFO} to where it is now"
    )


def _sizes(info: dict, path: str | Path) -> tuple[ViTConfig, TextConfig, TextConfig | None]:
    """Image encoder, text transformer, and the decoder where it has sizes of its own beside the encoder's."""
    if info.get("task") not in TASKS:
        task = info.get("task") or "no task"
        raise CheckpointError(f"{path} is a checkpoint of {task}; {', '.join(TASKS)} can be loaded")
    try:
        text, decoder = info.get("text_encoder"), info.get("text_decoder")
        if spec_of(info["task"]).has_features and info.get("embed_dim") is None:
            raise KeyError("embed_dim is missing")
        own = TextConfig(**decoder) if text and decoder else None
        encoder = TextConfig(**(text or decoder or info["text_encoder"]))
        if encoder.images == 1:  # as NLVR2 runs from nothing stored it in earlier versions, whatever they had
            encoder.images = spec_of(info["task"]).images
        return ViTConfig(**info["image_encoder"]), encoder, own
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{path} does not give the model's sizes: {error}") from error
