"""Dialogues about an image: is this the answer to the last question? (Li et al. 2022, section 5.5: VisDial.)

A caption goes through the text encoder alone. Its states and those of the image lie side by side as keys of the
cross-attention of a second text: what was said so far, the question and one answer, behind `[ENC]`. The state of
`[ENC]` is classified, as in image-text matching.

Shapes: B dialogues, N tokens of an image or of all pictures of an item, C tokens of the longest caption, D width,
R texts, T tokens of the longest.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from blip.errors import InputError
from blip.hardware.profile import profile_of
from blip.hardware.transfers import sent
from blip.models.matching import match_logits
from blip.network.cross_attention import ProjectedKeys
from blip.network.embeddings import TextConfig
from blip.network.med import TextEncoder
from blip.network.packing import Rows
from blip.network.pictures import Pictures, States, encode, side_by_side
from blip.network.vit import ViT, ViTConfig
from blip.tokenizer import Specials


class DialogueModel(nn.Module):
    """Image encoder, text encoder and the match head, with the names that pre-training gives them."""

    def __init__(self, vit: ViTConfig, text: TextConfig, specials: Specials):
        """InputError where states of images and of texts differ in width: one projection makes keys of both."""
        super().__init__()
        if vit.width != text.width:
            raise InputError(
                f"texts attend to an image and to its caption by one projection, and their states are {vit.width} and "
                f"{text.width} wide: take an image encoder as wide as the text encoder, such as ViT-B for BERT-base"
            )
        self.specials = specials
        self.image_encoder = ViT(vit)
        self.text_encoder = TextEncoder(text)
        self.itm_head = nn.Linear(text.width, 2)

    def forward(
        self, images: Tensor | Pictures, caption_ids: Tensor, caption_lengths: Tensor, *, ids: Tensor, lengths: Tensor
    ) -> Tensor:
        """Logits (R, 2) of texts about B dialogues, R / B of each side by side; class 1 = the answer is right.

        Args:
            images: (B, 3, height, width), normalised; or of several pictures, see `blip.network.pictures`.
            caption_ids: (B, C), each `[CLS] ... [SEP]` and padding; caption_lengths (B,) of them, on the CPU.
            ids: (R, T), each `[ENC] ... [SEP]` and padding; lengths (R,) of them, on the CPU.
        """
        captions = self.caption_states(caption_ids, caption_lengths)
        keys = self.keys(encode(self.image_encoder, images), captions, caption_lengths)
        return self.match(ids, lengths, keys)

    def caption_states(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """Captions ids (B, C), read without the image -> states (B, C, D), zeros at padding."""
        rows = Rows(lengths, ids.shape[1], ids.device)
        return rows.unpack(self.text_encoder.text(ids, rows))

    def keys(self, image_states: States, caption_states: Tensor, caption_lengths: Tensor) -> ProjectedKeys:
        """States of images and (B, C, D) of captions -> the keys of both, where padding and absent pictures are
        masked."""
        tokens, seen = side_by_side(image_states)  # (B, N, D), (B, N) or None
        states = torch.cat([tokens, caption_states], dim=1)  # (B, N+C, D)
        real = torch.arange(caption_states.shape[1]) < caption_lengths.cpu()[:, None]  # (B, C), True at a token
        if seen is None and bool(real.all()):
            return self.text_encoder.image_keys(states)
        if seen is None:
            seen = torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device)
        return self.text_encoder.image_keys(states, torch.cat([seen, sent(real, seen.device)], dim=1))

    def match(self, ids: Tensor, lengths: Tensor, keys: ProjectedKeys) -> Tensor:
        """Logits (R, 2) of texts ids (R, T) of `lengths` (R,); row r is about dialogue r // (R / B) of `keys`."""
        return match_logits(self.text_encoder, self.itm_head, ids, lengths=lengths, keys=keys)


# ---- all answers of a dialogue ---------------------------------------------------------------------------------------


@dataclass
class Round:
    """A question with its candidates: `before`, the ids from `[ENC]` to the question's `[SEP]`, and those of each
    answer, the last one `[SEP]`."""

    before: list[int]
    answers: list[list[int]]

    @property
    def texts(self) -> list[list[int]]:
        """The whole text of each answer."""
        return [self.before + answer for answer in self.answers]


@torch.no_grad()
def answer_logits(model: DialogueModel, keys: ProjectedKeys, rounds: Sequence[Round]) -> list[Tensor]:
    """Logits (A, 2) of the A answers of each round of one dialogue, whose `keys` are those of its image and caption.

    Rows of all rounds lie side by side on the query axis, so that the keys exist once. Answers of equal tokens are read
    once. What precedes an answer is read with each answer anew: every token attends to the answer, so that after the
    first self-attention no state is the same for two answers (docs/dialogues.md has the count).

    A GPU is not waited for.
    """
    distinct = [list(dict.fromkeys(map(tuple, one.answers))) for one in rounds]
    texts = [[*one.before, *answer] for one, answers in zip(rounds, distinct, strict=True) for answer in answers]
    parts = [model.match(*_padded(part, model.specials.pad, keys.device), keys) for part in _parts(texts, keys.device)]
    logits = torch.cat(parts).split([len(answers) for answers in distinct])
    found = []
    for one, answers, each in zip(rounds, distinct, logits, strict=True):
        place = {answer: number for number, answer in enumerate(answers)}
        rows = torch.tensor([place[tuple(answer)] for answer in one.answers])
        found.append(each.index_select(0, sent(rows, keys.device)))
    return found


def _parts(texts: list[list[int]], device: torch.device) -> list[list[list[int]]]:
    """Texts in parts of as many tokens as a device reads at once, and at least one text."""
    most, parts, tokens = profile_of(device).tokens_at_once, list[list[list[int]]](), 0
    for text in texts:
        tokens += len(text)
        if not parts or tokens > most:
            parts.append([])
            tokens = len(text)
        parts[-1].append(text)
    return parts


def _padded(texts: list[list[int]], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids (R, T) on the device and lengths (R,) on the CPU."""
    rows = [torch.tensor(text) for text in texts]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=pad)
    return sent(ids, device), torch.tensor([len(row) for row in rows])
