"""Checkpoints of a run: written whole or not at all, the last few kept, found again when the run is resumed.

OUTPUT/checkpoints/step-00001000/     a folder that `blip.load` reads, with training.pt beside the weights
OUTPUT/checkpoints/latest             a link to the newest one
"""

import os
import shutil
from pathlib import Path

import torch
from torch import Tensor

from blip import distributed
from blip.checkpoints.format import TOKENIZER, CheckpointError, disk_errors, save_weights
from blip.files import flush, remove_folder, whole_folder
from blip.train.state import read_training

TRAINING = "training.pt"


class Checkpointer:
    """Writes and finds the checkpoints of one output folder.

    Args:
        output: the run's folder.
        keep: the number of checkpoints that are kept.
        info: the content of `model.json`.
        tokenizer_file: copied into each checkpoint, so that a checkpoint can be loaded alone.
    """

    def __init__(self, output: Path, keep: int, info: dict, *, tokenizer_file: Path):
        self.folder = Path(output) / "checkpoints"
        self.keep, self.info, self.tokenizer_file = keep, info, tokenizer_file

    def save(self, step: int, weights: dict[str, Tensor], training: dict) -> None:
        """Writes a checkpoint from the main process; every process has to call this, and adds its own random state.

        The checkpoint is written to a temporary folder, flushed, and renamed: a kill at any instant leaves the previous
        one whole.

        Raises:
            CheckpointError: it could not be written.
        """
        training = {**training, "step": step, "random": distributed.gather_objects(random_state())}
        if distributed.is_main():
            self._write(step, weights, training)
        distributed.barrier()

    def _write(self, step: int, weights: dict[str, Tensor], training: dict) -> None:
        final = self.folder / f"step-{step:08d}"  # exists in a run that was resumed from before this step
        with disk_errors(f"step {step}", self.folder, " The checkpoint before it is whole"):
            for leftover in self.folder.glob(".step-*.partial"):
                shutil.rmtree(leftover)
            with whole_folder(final) as temporary:
                save_weights(temporary, weights, self.info, flush=False)
                shutil.copyfile(self.tokenizer_file, temporary / TOKENIZER)
                torch.save(training, temporary / TRAINING)
            self._point_latest(final)
            self._prune(final)

    def _prune(self, newest: Path) -> None:
        """Keeps the last `keep`. Checkpoints of later steps, from before `--resume PATH`, are removed as well."""
        checkpoints = complete_checkpoints(self.folder.parent)
        end = checkpoints.index(newest) + 1
        for checkpoint in [*checkpoints[:end][: -self.keep], *checkpoints[end:]]:
            remove_folder(checkpoint)

    def _point_latest(self, final: Path) -> None:
        link = self.folder / ".latest.partial"
        link.unlink(missing_ok=True)
        link.symlink_to(final.name)
        os.replace(link, self.folder / "latest")
        flush(self.folder)


def complete_checkpoints(output: str | Path) -> list[Path]:
    """The checkpoints of an output folder, oldest first. A half-written one has another name."""
    return sorted((Path(output) / "checkpoints").glob("step-*"))


def find_checkpoint(resume: str, output: str | Path) -> Path | None:
    """The checkpoint that `--resume` names: a folder, the newest one of a run's folder, or `auto`.

    `auto` is the newest one of `output`, or None when there is none yet.

    Raises:
        CheckpointError: there is no such folder, or no checkpoint in it that can be continued.
    """
    if resume == "auto":
        checkpoints = complete_checkpoints(output)
        return checkpoints[-1] if checkpoints else None
    path = Path(resume)
    if not path.exists():
        raise CheckpointError(
            f"--resume {resume}: there is no such folder; `--resume auto` takes the newest of --output_dir"
        )
    if not (path / TRAINING).is_file():
        inside = complete_checkpoints(path)
        if inside:
            return inside[-1]
        raise CheckpointError(
            f"--resume {resume}: no {TRAINING} there, so this run cannot be continued from it; "
            "to start a new run from its weights use --init_from"
        )
    return path


def load_training(path: Path) -> dict:
    """The training state beside a checkpoint's weights. CheckpointError where the file is damaged."""
    return read_training(path / TRAINING)


def random_state() -> dict[str, Tensor]:
    """The state of this process's random numbers."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def restore_random_state(states: list[dict[str, Tensor]]) -> bool:
    """Continues this process's random numbers.

    False, with nothing changed, when the checkpoint was written by another number of processes.
    """
    if len(states) != distributed.world_size():
        return False
    state = states[distributed.rank()]
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
    return True
