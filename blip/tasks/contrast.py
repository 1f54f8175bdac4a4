"""Momentum contrast in a run: the twin and the queue that pre-training and retrieval keep beside their model."""

from pathlib import Path

import torch
from torch import Tensor

from blip.checkpoints.format import load_strict, unique_state
from blip.config import PretrainConfig
from blip.data.batches import Batch
from blip.models import losses, momentum
from blip.models.momentum import TEMPERATURE_RANGE, Candidates, Entries, Queue, Twin
from blip.models.pretrain import PretrainModel
from blip.models.retrieval import RetrievalModel
from blip.tasks.config import RetrievalConfig


class MomentumContrast:
    """The momentum twin of a model, the feature queue, and the features that the next update adds to the queue.

    A step calls `candidates` for each of its batches; `after_update` follows the optimizer.

    Args:
        model: the model that is trained.
        twin, queue: on the model's device.
        config: `momentum`, `alpha` and `alpha_ramp_epochs`.
        equal_captions, equal_images: whether pairs of equal captions or images are positives of one another.
    """

    def __init__(
        self,
        model: PretrainModel | RetrievalModel,
        twin: Twin,
        queue: Queue,
        *,
        config: PretrainConfig | RetrievalConfig,
        equal_captions: bool,
        equal_images: bool,
    ):
        self.model, self.twin, self.queue, self.config = model, twin, queue, config
        self.equal_captions, self.equal_images = equal_captions, equal_images
        self.pending: list[Entries] = []  # since the last update

    def candidates(self, batch: Batch) -> Candidates:
        """What the pairs of a batch are contrasted with; the batch's features are kept for the next `after_update`."""
        image_features, text_features = self.twin(batch.images, batch.ids, batch.lengths)  # (B, E) each
        entries = Entries(image_features, text_features, batch.caption_ids, batch.image_ids)
        self.pending.append(entries)
        return momentum.candidates(
            entries, self.queue, equal_captions=self.equal_captions, equal_images=self.equal_images
        )

    def alpha(self, step: int, steps_per_epoch: float) -> float:
        """The weight of the momentum targets in optimizer step `step`, counted from 0."""
        ramp_steps = round(self.config.alpha_ramp_epochs * steps_per_epoch)
        return losses.alpha_ramp(step, ramp_steps, self.config.alpha)

    def logs(self, match_logits: Tensor, alpha: float) -> dict[str, Tensor | float]:
        """Numbers for the log; match_logits (3B, 2), of which the first B rows match and the others do not."""
        count = len(match_logits) // 3
        matched, unmatched = match_logits.argmax(dim=1).split([count, 2 * count])
        return {
            "itm_matched": (matched == 1).float().mean(),
            "itm_unmatched": (unmatched == 0).float().mean(),
            "temperature": self.model.temperature,
            "alpha": alpha,
        }

    @torch.no_grad()
    def after_update(self) -> None:
        """What follows the optimizer, in this order: clamp the temperature, move the twin, push the queue."""
        self.model.temperature.clamp_(*TEMPERATURE_RANGE)
        momentum.update_twin(*self.twin.pairs_with(self.model), self.config.momentum)
        self.queue.push(momentum.joined(self.pending))
        self.pending.clear()

    def state(self) -> dict[str, dict[str, Tensor]]:
        """What a checkpoint holds of twin and queue."""
        return {"twin": unique_state(self.twin), "queue": self.queue.state_dict()}

    def load(self, folder: Path, training: dict) -> None:
        """Continues from what `state` gave; `folder` names the checkpoint in errors."""
        load_strict(self.twin, training["twin"], f"{folder} (momentum twin)")
        load_strict(self.queue, training["queue"], f"{folder} (queue)")
