"""How epochs, batches and optimizer steps go together."""


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
