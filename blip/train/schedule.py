"""Epochs, batches and optimizer steps of a run, and the learning rate of a step."""

import math


class Epochs:
    """Counts of one process.

    Args:
        batches: batches in an epoch.
        accumulation: batches in an optimizer step.
        epochs: epochs of the run.
        max_steps: ends the run early, after this many optimizer steps.

    `steps` is the number of optimizer steps in an epoch, possibly a fraction; `total_steps` that of the run.
    """

    def __init__(self, batches: int, accumulation: int, epochs: int, *, max_steps: int | None = None):
        self.batches, self.accumulation = batches, accumulation
        self.steps = batches / accumulation
        self.total_steps = max(1, round(epochs * self.steps))
        if max_steps:
            self.total_steps = min(self.total_steps, max_steps)

    def position(self, step: int) -> tuple[int, int]:
        """(epoch, batch in it) with which optimizer step `step`, counted from 0, begins."""
        return divmod(step * self.accumulation, self.batches)

    def fraction(self, step: int) -> float:
        """The epochs done after `step` optimizer steps, such as 1.25."""
        return round(step / self.steps, 6)

    def done(self, step: int) -> int:
        """The whole epochs done after `step` optimizer steps."""
        return step * self.accumulation // self.batches

    def ends(self, step: int) -> bool:
        """Whether an epoch, or the run, ends with optimizer step `step`, counted from 1."""
        return self.done(step) > self.done(step - 1) or step == self.total_steps

    def evaluation_due(self, step: int, every: int) -> int | None:
        """The number of epochs done after `step` steps if an evaluation is due, else None.

        It is due after each `every` epochs and at the end of the run.
        """
        done = self.done(step)
        due = done > self.done(step - 1) and done % every == 0
        return done if due or step == self.total_steps else None


def scaled_lr(lr: float, global_batch: int, reference_batch: int | None) -> float:
    """`lr`, which was chosen for a batch of `reference_batch`, scaled in proportion to the global batch.

    Without a reference it stays as it is.
    """
    return lr if reference_batch is None else lr * global_batch / reference_batch


def lr_at(
    step: int,
    total_steps: int,
    lr: float,
    *,
    min_lr: float = 0.0,
    warmup_steps: int = 0,
    schedule: str = "cosine",
    decay: float = 0.9,
    steps_per_epoch: float = 1.0,
) -> float:
    """The learning rate of optimizer step `step` (from 0): linear warm-up, then `schedule`.

    `cosine` falls from `lr` to `min_lr` at the end of the run, `epoch_decay` by the factor `decay` after each epoch.
    The warm-up counts optimizer steps, so that it ends even when epochs are short, and takes at most half of the run.
    """
    warmup_steps = min(warmup_steps, total_steps // 2)
    if step < warmup_steps:
        return lr * (step + 1) / warmup_steps
    if schedule == "cosine":
        progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
        return min_lr + (lr - min_lr) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return max(min_lr, lr * decay ** math.floor(step / steps_per_epoch))
