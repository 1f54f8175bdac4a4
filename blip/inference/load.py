"""From a checkpoint of any format to a model that is ready to use: `blip.load(path)`."""

from pathlib import Path

import torch

from blip.checkpoints import convert
from blip.checkpoints.format import CheckpointError, find_tokenizer, load_strict
from blip.errors import InputError
from blip.inference.predictor import Predictor
from blip.models.factory import TASKS, model_of, spec_of
from blip.network.embeddings import TextConfig
from blip.network.vit import ViTConfig, fit_image_size
from blip.tokenizer import Tokenizer, load_tokenizer


def load(
    path: str | Path,
    device: str | torch.device = "cpu",
    image_heads: int | None = None,
    text_heads: int | None = None,
    image_size: int | None = None,
    tokenizer: str | Path | Tokenizer | None = None,
) -> Predictor:
    """Loads a checkpoint of ours, a released `.pth` file or a Hugging Face folder, ready to use.

    Args:
        path: the folder or file.
        device: where the model runs.
        image_heads, text_heads: attention heads, for `.pth` files whose heads are not of width 64.
        image_size: side of the image in pixels, when not the checkpoint's: its position embeddings are interpolated.
        tokenizer: `vocab.txt`, `tokenizer.json`, `hub:NAME` or a `Tokenizer`; needed where the folder has none.

    Raises:
        CheckpointError: the checkpoint cannot be used; the message says why.
    """
    tensors, info = convert.read(path, image_heads, text_heads)
    words = _tokenizer(Path(path), tokenizer)
    tensors, _, _ = convert.split(tensors)
    vit, text, answer = _sizes(info, path)
    if image_size is not None and image_size != vit.image_size:
        if image_size < vit.patch or image_size % vit.patch:
            raise InputError(f"image_size is {image_size}; it has to be a multiple of the patch, {vit.patch}")
        vit.image_size = image_size
        fit_image_size(tensors, vit)
        info = {**info, "image_encoder": {**info["image_encoder"], "image_size": image_size}}
    if words.size != text.vocab_size:
        raise CheckpointError(
            f"{path} has {text.vocab_size} tokens and the tokenizer {words.size}, [DEC] and [ENC] included: "
            "it is not the one that the model was trained with"
        )
    model = model_of(info["task"], vit, text, words.specials, embed_dim=info.get("embed_dim", 0), answer=answer)
    for name in spec_of(info["task"]).may_lack:
        tensors.setdefault(name, model.get_parameter(name).detach())
    load_strict(model, tensors, str(path))
    return Predictor(model, words, info, device)


def _tokenizer(path: Path, given: str | Path | Tokenizer | None) -> Tokenizer:
    if isinstance(given, Tokenizer):
        return given
    if given is not None:
        return load_tokenizer(str(given))
    return load_tokenizer(str(find_tokenizer(path)))


def _sizes(info: dict, path: str | Path) -> tuple[ViTConfig, TextConfig, TextConfig | None]:
    """Image encoder, text transformer, and the decoder where it has sizes of its own beside the encoder's."""
    if info.get("task") not in TASKS:
        raise CheckpointError(f"{path} is a checkpoint of {info.get('task')}; {', '.join(TASKS)} can be loaded")
    try:
        text, decoder = info.get("text_encoder"), info.get("text_decoder")
        if spec_of(info["task"]).has_features and "embed_dim" not in info:
            raise KeyError("embed_dim is missing")
        own = TextConfig(**decoder) if text and decoder else None
        return ViTConfig(**info["image_encoder"]), TextConfig(**(text or decoder or info["text_encoder"])), own
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{path} does not say the model's sizes: {error}") from error
