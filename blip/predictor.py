"""A model that takes images and strings: `blip.load(path)`.

Shapes: B images, R texts, T tokens of the longest, N image tokens, E embedding width.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from blip import convert
from blip.data.transforms import eval_transform, open_image
from blip.generation import greedy
from blip.med import TextConfig
from blip.models.decoding import DecoderStep
from blip.models.matching import match_logits, project
from blip.models.pretrain import PretrainModel
from blip.models.retrieval import RetrievalModel
from blip.rows import Rows, Specials, with_first
from blip.tokenizer import Tokenizer, blip_cleaning, load_tokenizer
from blip.vit import ViTConfig, fit_image_size
from blip.weights import TOKENIZER, CheckpointError, load_strict

ImageInput = str | Path | Image.Image
Images = ImageInput | Sequence[ImageInput]
Texts = str | Sequence[str]
Model = PretrainModel | RetrievalModel


def load(
    path: str | Path,
    device: str | torch.device = "cpu",
    image_heads: int | None = None,
    text_heads: int | None = None,
    image_size: int | None = None,
    tokenizer: str | Path | Tokenizer | None = None,
) -> "Predictor":
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
    vit, text = _configs(info, path)
    if image_size is not None and image_size != vit.image_size:
        if image_size < vit.patch or image_size % vit.patch:
            raise ValueError(f"image_size is {image_size}; it has to be a multiple of the patch, {vit.patch}")
        vit.image_size = image_size
        fit_image_size(tensors, vit)
        info = {**info, "image_encoder": {**info["image_encoder"], "image_size": image_size}}
    if words.size != text.vocab_size:
        raise CheckpointError(
            f"{path} has {text.vocab_size} tokens and the tokenizer {words.size}, [DEC] and [ENC] included: "
            "it is not the one that the model was trained with"
        )
    model = _build(info, vit, text, words, path)
    # matching models are released without a temperature; nothing here uses it
    tensors.setdefault("temperature", model.temperature.detach())
    load_strict(model, tensors, str(path))
    return Predictor(model, words, info, device)


class Predictor:
    """A model in evaluation mode with its tokenizer and image transform.

    Images are paths, PIL images or lists of them; texts are strings or lists. `[CLS]`, `[ENC]` and `[DEC]` are put
    here. Work goes through the model in batches of `batch_size`.
    """

    def __init__(self, model: Model, tokenizer: Tokenizer, info: dict, device: str | torch.device = "cpu"):
        self.device = torch.device(device)
        self.model = model.to(self.device).eval()
        self.tokenizer, self.info = tokenizer, info
        self.transform = eval_transform(model.image_encoder.config.image_size)
        self.max_text_tokens = int(info.get("max_text_tokens") or model.text_encoder.config.max_positions)

    @torch.no_grad()
    def encode_image(self, images: Images, batch_size: int = 32) -> Tensor:
        """Projected features of unit length (B, E)."""
        parts = []
        for batch in _batches(_list(images), batch_size):
            states = self.model.image_encoder(self.pixels(batch), cls_only=True)
            parts.append(project(self.model.image_proj, states[:, 0]))
        return torch.cat(parts) if parts else self._empty(self.model.image_proj.out_features)

    @torch.no_grad()
    def encode_text(self, texts: Texts, batch_size: int = 32) -> Tensor:
        """Projected features of unit length (R, E)."""
        parts = []
        for batch in _batches(_list(texts), batch_size):
            ids, lengths = self.ids(batch)
            rows = Rows(lengths, ids.shape[1], self.device)
            parts.append(project(self.model.text_proj, self.model.text_encoder.text(ids, rows, first_only=True)))
        return torch.cat(parts) if parts else self._empty(self.model.text_proj.out_features)

    def itc_score(self, images: Images, texts: Texts) -> Tensor:
        """Cosine of every image to every text (B, R), not divided by the temperature."""
        return self.encode_image(images) @ self.encode_text(texts).T

    @torch.no_grad()
    def match_logits(self, images: Images, texts: Texts, batch_size: int = 32) -> Tensor:
        """Logits (B, 2) of image i with text i; class 1 = match.

        One image goes with all texts, one text with all images. The texts of one image lie side by side on the query
        axis: it is encoded once.
        """
        images, texts = _list(images), _list(texts)
        if len(texts) == 1:
            texts = texts * len(images)
        if len(images) not in (1, len(texts)):
            raise ValueError(f"{len(images)} images and {len(texts)} texts: give as many, or one of either")
        parts, keys = [], None
        for start in range(0, len(texts), batch_size):
            ids, lengths = self.ids(texts[start : start + batch_size])
            if keys is None or len(images) > 1:
                states = self.model.image_encoder(self.pixels(images[start : start + batch_size]))
                keys = self.model.text_encoder.project(states)
            ids = with_first(ids, self.tokenizer.enc_id)
            logits = match_logits(self.model.text_encoder, self.model.itm_head, ids, lengths, keys)
            parts.append(logits.float())
        return torch.cat(parts) if parts else self._empty(2)

    def match_probability(self, images: Images, texts: Texts, batch_size: int = 32) -> Tensor:
        """Probability (B,) that image and text belong together; pairs as in `match_logits`."""
        return self.match_logits(images, texts, batch_size).softmax(dim=1)[:, 1]

    @torch.no_grad()
    def caption(self, images: Images, prompt: str = "", max_new_tokens: int = 30, batch_size: int = 32) -> list[str]:
        """A caption for each image, the likeliest token at each step; `prompt` begins it and is part of the answer."""
        if not isinstance(self.model, PretrainModel):
            raise CheckpointError(f"a checkpoint of {self.info['task']} cannot write captions: it has no text decoder")
        positions = self.model.text_encoder.config.max_positions
        first = self.tokenizer.encode([prompt], positions)[0][:-1]  # without [SEP]
        first[0] = self.tokenizer.dec_id
        if len(first) + max_new_tokens > positions:
            raise ValueError(
                f"the prompt has {len(first)} tokens and max_new_tokens is {max_new_tokens}; "
                f"the model has {positions} positions"
            )
        captions = []
        for batch in _batches(_list(images), batch_size):
            step = DecoderStep(self.model.text_decoder, self.model.image_encoder(self.pixels(batch)))
            ids = torch.tensor([first] * len(batch), device=self.device)
            new = greedy(step, ids, self.tokenizer.sep_id, self.tokenizer.pad_id, max_new_tokens)
            captions += [self.tokenizer.decode(first + tokens) for tokens in new.tolist()]
        return captions

    def pixels(self, images: Sequence[ImageInput]) -> Tensor:
        """Images -> (B, 3, S, S), normalised, on the device."""
        return torch.stack([self.transform(open_image(image)) for image in images]).to(self.device)

    def ids(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Texts -> ids (R, T), `[CLS] ... [SEP]` and padding, on the device; lengths (R,), on the CPU."""
        if self.info.get("text_cleaning") == "blip":
            texts = [blip_cleaning(text) for text in texts]
        encoded = self.tokenizer.encode(list(texts), self.max_text_tokens)
        lengths = torch.tensor([len(ids) for ids in encoded])
        ids = torch.full((len(encoded), int(lengths.max())), self.tokenizer.pad_id)
        for row, tokens in zip(ids, encoded, strict=True):
            row[: len(tokens)] = torch.tensor(tokens)
        return ids.to(self.device), lengths

    def _empty(self, width: int) -> Tensor:
        return torch.zeros(0, width, device=self.device)


def _tokenizer(path: Path, given: str | Path | Tokenizer | None) -> Tokenizer:
    if isinstance(given, Tokenizer):
        return given
    if given is not None:
        return load_tokenizer(str(given))
    for name in (TOKENIZER, "vocab.txt"):
        if (path / name).is_file():
            return load_tokenizer(str(path / name))
    raise CheckpointError(
        f"{path} comes without a tokenizer: give one, tokenizer=PATH. For the released models it is the "
        "vocab.txt of bert-base-uncased"
    )


def _configs(info: dict, path: str | Path) -> tuple[ViTConfig, TextConfig]:
    if info.get("task") not in ("pretrain", "retrieval"):
        raise CheckpointError(f"{path} is a checkpoint of {info.get('task')}; pretrain and retrieval can be loaded")
    try:
        return ViTConfig(**info["image_encoder"]), TextConfig(**info["text_encoder"])
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{path} does not say the model's sizes: {error}") from error


def _build(info: dict, vit: ViTConfig, text: TextConfig, words: Tokenizer, path: str | Path) -> Model:
    if "embed_dim" not in info:
        raise CheckpointError(f"{path} does not say the model's sizes: embed_dim is missing")
    if info["task"] == "retrieval":
        return RetrievalModel(vit, text, info["embed_dim"])
    return PretrainModel(vit, text, Specials(words.pad_id, words.enc_id, words.dec_id), info["embed_dim"])


def _list(items: Images | Texts) -> list:
    return [items] if isinstance(items, str | Path | Image.Image) else list(items)


def _batches(items: list, size: int) -> Iterator[list]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
