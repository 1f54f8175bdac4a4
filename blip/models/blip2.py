"""BLIP-2, stage 1: queries learn to read images, by the three losses of a batch (Li et al. 2023, section 3.2).

The losses are those of BLIP with queries in place of CLS, and without momentum twin and queue: contrast is with the
batches of all processes.

Shapes: B pairs, W processes, C = W*B pairs of all processes, N image tokens, Q queries, R texts, T text tokens,
P tokens in memory, D width, E embedding width.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from blip import distributed
from blip.models import losses
from blip.models.decoding import Decoding, Generated
from blip.models.generation import generate
from blip.models.matching import (
    Draw,
    HardNegatives,
    draw_hard_negatives,
    fetch_negatives,
    in_order_of_loss,
    match_loss,
    with_hard_texts,
)
from blip.models.momentum import same_pairs, unit_features
from blip.network.cross_attention import ImageKeys, ProjectedKeys
from blip.network.embeddings import TiedLookUp
from blip.network.packing import Rows, with_first
from blip.network.pictures import Pictures, States, encode
from blip.network.qformer import QFormer, QFormerConfig, QFormerStep, QueryStates
from blip.network.vit import ViT, ViTConfig
from blip.tokenizer import Specials


@dataclass
class Output:
    """The three losses and the match logits (3B, 2) of the rows: matched, (text, hard image), (hard text, image)."""

    itc: Tensor
    itm: Tensor
    lm: Tensor
    match_logits: Tensor


class Blip2Model(nn.Module):
    """Image encoder, Q-Former, two projections and the match head. The published encoder is frozen but for its norm.

    `forward` changes no state.
    """

    def __init__(
        self,
        vit: ViTConfig,
        qformer: QFormerConfig,
        specials: Specials,
        *,
        embed_dim: int = 256,
        temperature: float = 0.07,
        label_smoothing: float = 0.1,
    ):
        super().__init__()
        self.specials, self.label_smoothing = specials, label_smoothing
        self.image_encoder = ViT(vit)
        self.qformer = QFormer(qformer)
        self.image_proj = nn.Linear(qformer.width, embed_dim)
        self.text_proj = nn.Linear(qformer.width, embed_dim)
        self.itm_head = nn.Linear(qformer.width, 2)
        self.temperature = nn.Parameter(torch.tensor(temperature))

    def forward(
        self,
        images: Tensor | Pictures,
        ids: Tensor,
        lengths: Tensor,
        *,
        positives: Tensor | None = None,
        gather_gradients: bool = False,
        draw: Draw = losses.draw_negatives,
    ) -> Output:
        """One batch to its losses.

        Args:
            images: (B, 3, height, width), normalised; or items of several pictures, see `network.pictures`.
            ids: (B, T), each text `[CLS] ... [SEP]` and padding after it.
            lengths: (B,) tokens of each text, on the CPU.
            positives: (B, W*B) boolean, see `positives_among`; None: each pair is its own only one.
            gather_gradients: whether contrast also trains the features that a query is compared with. As published it
                does not, in one process neither: images learn from the text they should find, texts from the image.
            draw: picks hard negatives from weights (B, W*B); tests give the arg-max.
        """
        if positives is None:
            positives = own_pairs(len(ids), ids.device)
        states = encode(self.image_encoder, images)  # (B, N, D)
        keys = self.qformer.image_keys(states)  # once, for the queries alone and for matching
        read = self.qformer.look(keys)
        rows = Rows(lengths, ids.shape[1], ids.device)
        # three passes read the same words but for the first: they are looked up once, and passes read `places` of them
        dec = ids.new_full((1,), self.specials.dec)
        vocabulary = self.qformer.text_embeddings.words.weight
        words, matrix = TiedLookUp.apply(vocabulary, torch.cat([ids.flatten(), dec]))  # (B*T+1, D), (V, D)
        places = torch.arange(ids.numel(), device=ids.device).view_as(ids)

        # contrast: the queries and the text, each alone
        image_features = unit_features(self.image_proj, read.states)  # (B, Q, E)
        text_features = unit_features(self.text_proj, self.qformer.text(places, rows, first_only=True, words=words))
        image_to_text, text_to_image = self._similarities(image_features, text_features, gather_gradients)
        contrasts = [
            losses.smoothed_contrast(x, positives, self.label_smoothing) for x in (image_to_text, text_to_image)
        ]
        # hard negatives of all processes; a small temperature could leave nothing beside a positive's probability
        hidden = [x.masked_fill(positives, -1e4) for x in (image_to_text, text_to_image)]
        negatives = draw_hard_negatives(hidden[0], hidden[1], positives, draw=draw)

        # language modelling: the text behind the queries; given to a GPU before the CPU waits for the negatives
        written = self.qformer.write(with_first(places, ids.numel()), rows, read.cache(), words=words)
        lm = losses.language_model(self.qformer.head(written, matrix), rows.next_tokens(ids), self.label_smoothing)

        # matching: each pair, and each half of it with a hard negative
        if distributed.world_size() == 1:
            texts = with_hard_texts(places, lengths, negatives)
            logits = in_order_of_loss(self.match_logits(*texts, keys.with_extra(negatives.image), words=words))
        else:
            logits = self._match_over_processes(states, keys, ids, lengths=lengths, negatives=negatives)
        return Output(torch.stack(contrasts).mean(), match_loss(logits, negatives), lm, logits)

    def _similarities(self, images: Tensor, texts: Tensor, gather_gradients: bool) -> tuple[Tensor, Tensor]:
        """Similarities (B, C) over the temperature of images to texts and of texts to images, of this process's pairs.

        images (B, Q, E) and texts (B, E), of unit length: an image is as similar to a text as the query nearest to it.
        """
        all_images, all_texts = (_gathered(x, gather_gradients) for x in (images, texts))
        with torch.autocast(images.device.type, enabled=False):
            image_to_text = nearest_query(images @ all_texts.T) / self.temperature
            # (B, E) and (C, Q, E)
            text_to_image = nearest_query((texts @ all_images.flatten(0, 1).T).unflatten(1, all_images.shape[:2]), -1)
            return image_to_text, text_to_image / self.temperature

    def _match_over_processes(
        self, states: States, keys: ProjectedKeys, ids: Tensor, *, lengths: Tensor, negatives: HardNegatives
    ) -> Tensor:
        """Logits (3B, 2) of matching, where `negatives` number the pairs of all processes.

        The states of hard images keep their gradient, on the process that they came from.
        """
        fetched = fetch_negatives(states, ids, lengths=lengths, negatives=negatives, pad=self.specials.pad)
        own = self.match_logits(*fetched.beside_own(lengths), keys)
        hard_keys = self.qformer.image_keys(fetched.hard_states)
        return in_order_of_loss(torch.cat([own, self.match_logits(fetched.ids, lengths, hard_keys)]))

    # ---- predictions -------------------------------------------------------------------------------------------------

    def read_images(self, image_states: States) -> QueryStates:
        """What the queries read from the states (B, N, D) of images, for features and captions."""
        return self.qformer.look(self.qformer.keys_or_states(image_states, self.qformer.config.queries))

    def encode_image(self, images: Tensor | Pictures) -> Tensor:
        """images (B, 3, height, width) -> features of unit length, one a query: (B, Q, E)."""
        return unit_features(self.image_proj, self.read_images(encode(self.image_encoder, images)).states)

    def encode_text(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """ids (R, T), each `[CLS] ... [SEP]`, of lengths (R,) on the CPU -> features of unit length (R, E)."""
        rows = Rows(lengths, ids.shape[1], ids.device)
        return unit_features(self.text_proj, self.qformer.text(ids, rows, first_only=True))

    def match_logits(self, ids: Tensor, lengths: Tensor, keys: ImageKeys, *, words: Tensor | None = None) -> Tensor:
        """Logits (R, 2) of texts with the images of `keys`, the mean over the queries; class 1 = match.

        ids (R, T), the first one `[CLS]`; lengths (R,), on the CPU; `words` as in `embeddings.Embeddings`. Which text
        belongs to which image: see `ProjectedKeys`.
        """
        rows = Rows(lengths, ids.shape[1], ids.device)
        return self.itm_head(self.qformer.match(ids, rows, keys, words=words)).mean(dim=1)

    @torch.no_grad()
    def write(
        self,
        images: Tensor | Pictures,
        prompt: Tensor,
        decoding: Decoding,
        *,
        end_id: int,
        uniforms: Tensor | None = None,
    ) -> Generated:
        """Captions of images (B, 3, height, width) that continue `prompt` (B, T), whose first token is `[DEC]`.

        `uniforms` draw samples, see `generate`.
        """
        return self.write_about(encode(self.image_encoder, images), prompt, decoding, end_id=end_id, uniforms=uniforms)

    @torch.no_grad()
    def write_about(
        self, image_states: States, prompt: Tensor, decoding: Decoding, *, end_id: int, uniforms: Tensor | None = None
    ) -> Generated:
        """`write` from the states (B, N, D) of encoded images."""
        step = QFormerStep(self.qformer, self.read_images(image_states))
        return generate(step, prompt, decoding, end_id=end_id, pad_id=self.specials.pad, uniforms=uniforms)


def nearest_query(similarity: Tensor, dim: int = 1) -> Tensor:
    """The largest similarity of all queries, which lie on `dim`."""
    return similarity.max(dim=dim).values


def _gathered(features: Tensor, gradients: bool) -> Tensor:
    """Features (B, ...) of all processes (C, ...), with their gradients or without."""
    if not gradients:
        return distributed.all_gather(features.detach())
    count = distributed.world_size()
    return distributed.fetch_rows(features, torch.arange(count * len(features)).expand(count, -1))


# ---- which pairs are positives of one another ------------------------------------------------------------------------


def own_pairs(count: int, device: torch.device) -> Tensor:
    """(B, W*B) boolean, True at the pairs of this process themselves; `count` is B."""
    own = torch.zeros(count, distributed.world_size() * count, dtype=torch.bool, device=device)
    first = distributed.rank() * count
    own[:, first : first + count].fill_diagonal_(True)
    return own


def positives_among(
    caption_ids: Tensor, image_ids: Tensor, *, equal_captions: bool = True, equal_images: bool = True
) -> Tensor:
    """Which pairs of all processes are positives of those of this one, (B, W*B) boolean; ids (B,) each.

    Those with the same caption are with `equal_captions` (medical captions repeat), those with the same image with
    `equal_images`. Published pre-training has neither, published retrieval the latter.
    """
    everyone = distributed.all_gather(torch.stack([caption_ids, image_ids], dim=1))
    found = same_pairs(
        (caption_ids, image_ids), (everyone[:, 0], everyone[:, 1]), by_caption=equal_captions, by_image=equal_images
    )
    return found | own_pairs(len(caption_ids), caption_ids.device)
