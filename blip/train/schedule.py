"""How epochs, batches and optimizer steps go together."""

import math


class Epochs:
    """Counts of one process. `steps` an epoch may be a fraction: an optimizer step may take several batches."""

    def __init__(self, batches: int, accumulation: int, epochs: int, max_steps: int | None = None):
        """`batches` in an epoch; `max_steps` ends the run early."""
        self.batches, self.accumulation = batches, accumulation
        self.steps = batches / accumulation
        self.total_steps = max(1, round(epochs * self.steps))
        if max_steps:
            self.total_steps = min(self.total_steps, max_steps)

    def position(self, step: int) -> tuple[int, int]:
        """(epoch, batch in it) with which optimizer step `step`, counted from 0, begins."""
        return divmod(step * self.accumulation, self.batches)

    def evaluation_due(self, step: int, every: int) -> int | None:
        """The epochs done after `step` steps where an evaluation, each `every` epochs and at the end, is due."""
        done, before = (n * self.accumulation // self.batches for n in (step, step - 1))
        due = done > before and done % every == 0
        return done if due or step == self.total_steps else None


def scaled_lr(lr: float, global_batch: int, reference_batch: int | None) -> float:
    """The learning rate for this global batch, in proportion to the one that `lr` was chosen for, if that is given."""
    return lr if reference_batch is None else lr * global_batch / reference_batch


def lr_at(
    step: int,
    total_steps: int,
    lr: float,
    min_lr: float = 0.0,
    warmup_steps: int = 0,
    schedule: str = "cosine",
    decay: float = 0.9,
    steps_per_epoch: float = 1.0,
) -> float:
    """The learning rate of optimizer step `step` (from 0): linear warm-up, then cosine or a factor `decay` an epoch.

    Warm-up counts optimizer steps of the whole run, so that it ends even when epochs are short, and takes at most half.
    """
    warmup_steps = min(warmup_steps, total_steps // 2)
    if step < warmup_steps:
        return lr * (step + 1) / warmup_steps
    if schedule == "cosine":
        progress = (step - warmup_steps) / max(1, total_steps - warmup_steps)
        return min_lr + (lr - min_lr) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return max(min_lr, lr * decay ** math.floor(step / steps_per_epoch))
