"""Checkpoints of a run: written whole or not at all, the last few kept, found again when the run is resumed.

OUTPUT/checkpoints/step-00001000/     a folder that `blip.load` reads, with training.pt beside the weights
OUTPUT/checkpoints/latest             a link to the newest one; where the file system has no links, a file with its name

Folders of other names are neither checkpoints nor deleted, and of the checkpoints those alone are deleted that the
run's record names.
"""

import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from safetensors import SafetensorError
from torch import Tensor

from blip import distributed
from blip.checkpoints.format import INFO, TOKENIZER, WEIGHTS, CheckpointError, save_weights
from blip.errors import BlipError
from blip.files import NO_ROOM, WriteError, flush, json_text, remove_folder, whole_folder, write_whole
from blip.train.background import Background
from blip.train.inputs import Fingerprints, read_fingerprints
from blip.train.random_numbers import random_state
from blip.train.record import Record
from blip.train.state import FOLDER, read_training

TRAINING, INPUTS, LATEST = "training.pt", "inputs.json", "latest"
FILES = (TRAINING, WEIGHTS, INFO, TOKENIZER)  # without any of which nothing can be continued
LEFT_OVER = re.compile(r"\.(step-\d{8}(\.old)?|latest)\.partial")  # by a kill
WHOLE = "the checkpoint before it is whole"
State = dict[str, Tensor]


class Checkpointer:
    """Writes the checkpoints of one output folder.

    Args:
        output: the run's folder.
        keep: the number of checkpoints that are kept.
        info: the content of `model.json`.
        tokenizer_file: copied into each checkpoint, so that a checkpoint can be loaded alone.
        inputs: fingerprints of what the run reads, or None where they are not known.
        background: where it writes, if not before `save` returns.
        tell: gets messages about folders that are renamed.
    """

    def __init__(
        self,
        output: Path,
        keep: int,
        info: dict,
        *,
        tokenizer_file: Path,
        inputs: Fingerprints | None = None,
        background: Background | None = None,
        tell: Callable[[str], None] = lambda text: None,
    ):
        self.output, self.folder = Path(output), Path(output) / "checkpoints"
        self.keep, self.info, self.tokenizer_file = keep, info, tokenizer_file
        self.inputs, self.background, self.tell = inputs, background, tell

    def save(self, step: int, weights: State, training: dict, *, random: State | None = None) -> None:
        """Writes a checkpoint from the main process; every process has to call this, and adds its own random state
        (`random`, else the present one).

        The checkpoint is written to a temporary folder, flushed, and renamed: a kill at any instant leaves the previous
        one whole. With `background` this returns when the state is copied; the next call waits for the checkpoint, and
        so does `join`.

        Raises:
            CheckpointError: it could not be written, or the one before that was written in the background; on the other
                processes OtherProcessError.
        """
        training = {**training, "step": step, "random": distributed.gather_objects(random or random_state())}
        error = self.background.join() if self.background else None
        if distributed.is_main() and error is None:
            try:
                self._write_or_begin(step, weights, training)
            except Exception as caught:
                error = caught
        distributed.agree(error)

    def _write_or_begin(self, step: int, weights: State, training: dict) -> None:
        if self.background is None:
            self._write(step, weights, training)
            return
        copies = self.background.copies
        try:
            weights, training = copies.of((weights, training))
        except (RuntimeError, MemoryError) as error:
            raise CheckpointError(
                f"there is not enough memory for a copy of the weights and the optimizer, from which a checkpoint is "
                f"written while the training goes on: set save_async: false ({error})"
            ) from error

        def write() -> None:
            copies.wait()
            self._write(step, weights, training)

        self.background.start(write)

    def _write(self, step: int, weights: State, training: dict) -> None:
        final, record = self.folder / f"step-{step:08d}", Record(self.output)
        with written(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            for leftover in [path for path in self.folder.iterdir() if LEFT_OVER.fullmatch(path.name)]:
                remove(leftover)
            if os.path.lexists(final) and final.name not in record.checkpoints:
                self.tell(f"{final} is not of this run and is now {keep_aside(final)}")
            record.add(checkpoints=[final.name])
        self._write_files(final, weights, training)
        try:
            self._point_latest(final)
            self._prune(final, record)
        except (OSError, BlipError) as error:  # the step is saved
            self.tell(f"{self.folder}: older checkpoints, or the link {LATEST}, are left as they were ({error})")

    def _write_files(self, final: Path, weights: State, training: dict) -> None:
        with written(final), whole_folder(final) as temporary:
            with written(final / WEIGHTS):
                save_weights(temporary, weights, self.info, flush=False)
            with written(final / TOKENIZER):
                shutil.copyfile(self.tokenizer_file, temporary / TOKENIZER)
            if self.inputs is not None:
                with written(final / INPUTS):
                    write_whole(temporary / INPUTS, json_text(self.inputs))
            with written(final / TRAINING):
                torch.save(training, temporary / TRAINING)

    def _prune(self, newest: Path, record: Record) -> None:
        """Keeps the last `keep`. Checkpoints of later steps, from before `--resume PATH`, are removed as well."""
        own = [path for path in complete_checkpoints(self.output) if path.name in record.checkpoints]
        end = own.index(newest) + 1
        doomed = [*own[:end][: -self.keep], *own[end:]]
        for checkpoint in doomed:
            remove_folder(checkpoint)
        if doomed:
            record.forget([path.name for path in doomed])

    def _point_latest(self, final: Path) -> None:
        latest, partial = self.folder / LATEST, self.folder / f".{LATEST}.partial"
        with suppress(FileNotFoundError):
            partial.unlink()
        try:
            partial.symlink_to(final.name)
        except OSError as error:
            if error.errno in NO_ROOM:
                raise
            partial.write_text(f"{final.name}\n")  # such as on exFAT
        if not latest.is_symlink() and latest.exists() and pointed_to(latest) is None:
            # such as the copy that `cp -rL` makes of a link; the user may have put files into it
            self.tell(f"{latest} is no link and is now {keep_aside(latest)}")
        os.replace(partial, latest)
        with suppress(OSError):  # file systems of networks may not flush folders
            flush(self.folder)


@contextmanager
def written(path: Path) -> Iterator[None]:
    """Within this block errors of writing become a CheckpointError that names the file; the innermost block does.
    Libraries raise different errors for a full disk."""
    try:
        yield
    except WriteError as error:
        raise CheckpointError(f"{error}; {WHOLE}") from error
    except (OSError, RuntimeError, SafetensorError) as error:
        if distributed.lost_peer(error):
            raise
        raise CheckpointError(f"{path} could not be written: {error}. Is the disk full? {WHOLE}") from error


def keep_aside(path: Path) -> Path:
    """Renames a file or folder that is not the run's -> its new name, which no run uses."""
    number = 1
    while os.path.lexists(aside := path.with_name(f"{path.name}.kept-{number}")):
        number += 1
    path.rename(aside)
    return aside


def remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


# ---- finding ---------------------------------------------------------------------------------------------------------


def complete_checkpoints(output: str | Path) -> list[Path]:
    """The checkpoints of an output folder, oldest first: folders called step- and eight digits."""
    folder = Path(output) / "checkpoints"
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if FOLDER.fullmatch(path.name) and path.is_dir())


def begun_checkpoints(output: str | Path) -> list[Path]:
    """Those that hold at least one file of a checkpoint: an empty folder, or one of notes, does not make a run."""
    return [folder for folder in complete_checkpoints(output) if any((folder / name).is_file() for name in FILES)]


def is_misnamed(folder: Path) -> bool:
    """Whether a folder named after a step holds another one, such as a copy that the user made."""
    if not (FOLDER.fullmatch(folder.name) and (folder / TRAINING).is_file()):
        return False
    try:
        step = torch.load(folder / TRAINING, "cpu", weights_only=True, mmap=True)["step"]  # reads no tensor
    except Exception:  # damaged, which is said when it is continued
        return False
    return bool(step != int(folder.name[-8:]))


def newest_checkpoint(output: str | Path) -> Path | None:
    """The newest checkpoint of an output folder, copies under the name of another step passed over; None where nothing
    was begun.

    Raises:
        CheckpointError: there are only such copies.
    """
    begun = begun_checkpoints(output)
    newest = next((folder for folder in reversed(begun) if not is_misnamed(folder)), None)
    if begun and newest is None:
        raise CheckpointError(
            f"{begun[-1]} holds another step than its name says, and there is no other checkpoint: rename it to the "
            f"step of its {TRAINING}, or start a new run from its weights with --init_from"
        )
    return newest


def pointed_to(latest: Path) -> Path | None:
    """The checkpoint that the file `latest` names where there are no links, or None where it is something else."""
    if latest.is_file() and latest.stat().st_size < 100:
        name = latest.read_bytes().strip().decode("ascii", "replace")
        return latest.with_name(name) if FOLDER.fullmatch(name) else None
    return None


def find_checkpoint(resume: str, output: str | Path) -> Path | None:
    """The checkpoint that `--resume` names: a folder, the newest one of a run's folder, or `auto`.

    `auto` is the newest one of `output`, or None when there is none yet.

    Raises:
        CheckpointError: there is no such folder, or no checkpoint in it that can be continued.
    """
    if resume == "auto":
        return newest_checkpoint(output)
    path = Path(resume)
    if not path.exists():
        raise CheckpointError(
            f"--resume {resume}: there is no such folder; `--resume auto` takes the newest of --output_dir"
        )
    path = pointed_to(path) or path
    if not (path / TRAINING).is_file():
        if inside := newest_checkpoint(path.parent if path.name == "checkpoints" else path):
            return inside
        raise CheckpointError(
            f"--resume {resume}: no {TRAINING} there, so this run cannot be continued from it; "
            "to start a new run from its weights use --init_from"
        )
    return path


def can_be_continued(folder: Path) -> bool:
    """Whether a folder has the files of a checkpoint, and of the step in its name."""
    return all((folder / name).is_file() for name in FILES) and not is_misnamed(folder)


def read_inputs(folder: Path) -> Fingerprints | None:
    """Fingerprints of what a checkpoint was trained with; None for checkpoints of earlier versions, which have none."""
    return read_fingerprints(folder / INPUTS) if (folder / INPUTS).is_file() else None


# ---- training state --------------------------------------------------------------------------------------------------


def load_training(path: Path) -> dict:
    """The training state beside a checkpoint's weights, which the main process reads for all. CheckpointError as in
    `read_training`."""
    return distributed.tensors_from_main(lambda: read_training(path / TRAINING))
