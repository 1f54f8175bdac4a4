"""Image-text matching: hard negatives are drawn here, and pairs are scored.

Pre-training and retrieval use all of it, inference and evaluation `match_logits` alone.

Shapes: B pairs, W processes, R texts, T text tokens, N image tokens, F pictures of an item, D width, C candidates.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from blip import distributed
from blip.hardware.transfers import EarlyCopy
from blip.models import losses
from blip.network.cross_attention import ImageKeys, ProjectedKeys
from blip.network.med import TextEncoder
from blip.network.packing import Rows
from blip.network.pictures import PictureStates, States, padded_pictures, present_of

Draw = Callable[[Tensor], tuple[Tensor, Tensor]]  # weights (B, C) -> index (B,), exists (B,); see losses.draw_negatives


@dataclass
class HardNegatives:
    """For each image a text that does not match it but is similar to it, and for each text such an image."""

    text: Tensor  # (B,) the candidate whose text each image is shown with
    image: Tensor  # (B,) the candidate whose image each text is shown with
    has_text: Tensor  # (B,) boolean; False where all candidates are positives, and the number has no meaning
    has_image: Tensor  # (B,)

    def __post_init__(self) -> None:
        self.text_on_cpu = EarlyCopy(self.text)  # the lengths of these texts decide how they lie in memory


def draw_hard_negatives(
    image_to_text: Tensor,
    text_to_image: Tensor,
    positives: Tensor,
    *,
    floor: float = 0.0,
    draw: Draw = losses.draw_negatives,
) -> HardNegatives:
    """Draws hard negatives: the more similar a candidate, the likelier it is.

    Args:
        image_to_text: (B, C) similarities over the temperature of images to candidate texts.
        text_to_image: (B, C) those of texts to candidate images.
        positives: (B, C) boolean; these are never drawn.
        floor: added to each probability, see `losses.negative_weights`.
        draw: picks a candidate of each row from weights (B, C); tests give the arg-max.
    """
    text, has_text = draw(losses.negative_weights(image_to_text, positives, floor))
    image, has_image = draw(losses.negative_weights(text_to_image, positives, floor))
    return HardNegatives(text, image, has_text, has_image)


def match_loss(logits: Tensor, negatives: HardNegatives) -> Tensor:
    """The ITM loss of logits (3B, 2) of the rows: matched, (text, hard image), (hard text, image)."""
    count = len(negatives.text)
    is_match = torch.arange(3 * count, device=logits.device) < count
    counts = torch.cat([torch.ones_like(negatives.has_text), negatives.has_image, negatives.has_text])
    return losses.match(logits, is_match, counts)


def match_logits(
    encoder: TextEncoder,
    head: nn.Linear,
    ids: Tensor,
    *,
    lengths: Tensor,
    keys: ImageKeys,
    words: Tensor | None = None,
) -> Tensor:
    """Logits (R, 2) of texts with the images of `keys`; class 1 = match.

    ids (R, T), the first one `[ENC]`; lengths (R,), on the CPU; `words` as in `embeddings.Embeddings`.
    Which text attends to which image: see `ProjectedKeys`.
    """
    rows = Rows(lengths, ids.shape[1], ids.device)
    return head(encoder.multimodal(ids, rows, keys, first_only=True, words=words))


def match_with_negatives(
    encoder: TextEncoder,
    head: nn.Linear,
    ids: Tensor,
    *,
    lengths: Tensor,
    keys: ProjectedKeys,
    negatives: HardNegatives,
    words: Tensor | None = None,
) -> Tensor:
    """Logits (3B, 2) of the rows: matched, (text, hard image), (hard text, image), in one pass.

    ids (B, T), the first one `[ENC]`; with `words`, rows of it (`embeddings.Embeddings`). The `negatives` are pairs of
    this batch. The CPU waits here until they are drawn: work for the device that is given between the draw and this
    call keeps it busy meanwhile.
    """
    ids, lengths = with_hard_texts(ids, lengths, negatives)
    keys = keys.with_extra(negatives.image)
    return in_order_of_loss(match_logits(encoder, head, ids, lengths=lengths, keys=keys, words=words))


def with_hard_texts(ids: Tensor, lengths: Tensor, negatives: HardNegatives) -> tuple[Tensor, Tensor]:
    """The texts ids (B, T) and their lengths (B,) as 3B rows: an image's own and its hard one, and each once more.

    The last B are for the hard images, as `extra` of `ProjectedKeys`. The CPU waits here until the `negatives`, which
    are pairs of this batch, are drawn.
    """
    ids = torch.cat([torch.stack([ids, ids[negatives.text]], dim=1).flatten(0, 1), ids])  # (3B, T)
    hard_lengths = lengths[negatives.text_on_cpu.read()]
    return ids, torch.cat([torch.stack([lengths, hard_lengths], dim=1).flatten(), lengths])


def in_order_of_loss(logits: Tensor) -> Tensor:
    """Logits (3B, 2) of the rows of `with_hard_texts`, in the order that `match_loss` reads."""
    count = len(logits) // 3
    own, with_hard_image = logits.split([2 * count, count])
    matched, with_hard_text = own.unflatten(0, (count, 2)).unbind(dim=1)
    return torch.cat([matched, with_hard_image, with_hard_text])


@dataclass
class FetchedNegatives:
    """Hard negatives that came from other processes, with the texts of this one as wide as theirs."""

    ids: Tensor  # (B, T) texts of this process
    hard_ids: Tensor  # (B, T)
    hard_lengths: Tensor  # (B,), on the CPU
    hard_states: States  # (B, N, D) of images

    def beside_own(self, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """An image's own text and its hard one: ids (2B, T) and lengths (2B,); `lengths` (B,) of this process."""
        ids = torch.stack([self.ids, self.hard_ids], dim=1).flatten(0, 1)
        return ids, torch.stack([lengths, self.hard_lengths], dim=1).flatten()


def fetch_negatives(
    states: States, ids: Tensor, *, lengths: Tensor, negatives: HardNegatives, pad: int
) -> FetchedNegatives:
    """The texts and states of images that `negatives` number among the pairs of all processes.

    Only those that a process draws travel to it, the states in the type that autocast gives them. Where one process has
    items of several pictures, all send as many, absent ones as zeros.
    """
    widths = lengths.new_full(lengths.shape, ids.shape[1])
    counts = torch.ones_like(lengths) if isinstance(states, Tensor) else states.counts  # pictures of each item
    asked = torch.stack([negatives.text, negatives.image, *torch.stack([lengths, widths, counts]).to(ids.device)])
    # the only copy to the CPU: sizes of what is exchanged, and the lengths of the texts; (W, B) each
    texts, images, all_lengths, widths, counts = distributed.all_gather(asked[None]).cpu().unbind(dim=1)
    wide = F.pad(ids, (0, int(widths.max()) - ids.shape[1]), value=pad)
    hard_ids = distributed.fetch_rows(wide, texts)
    hard_lengths = all_lengths.flatten()[texts[distributed.rank()]].to(lengths.device)
    most = int(counts.max())
    rows = padded_pictures(states, most)  # (B, N, D), or (B, F, N, D)
    kind = rows.device.type
    sent = rows.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else rows
    hard = distributed.fetch_rows(sent, images).to(rows.dtype)
    if most == 1:
        return FetchedNegatives(wide, hard_ids, hard_lengths, hard)
    present = present_of(counts.flatten()[images[distributed.rank()]], most)
    return FetchedNegatives(wide, hard_ids, hard_lengths, PictureStates(hard, present))
