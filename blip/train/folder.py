"""The folder of a run: who writes to it, which of its files are the run's own, and what a run continues from."""

import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path

from blip import distributed
from blip.checkpoints.format import INFO, TOKENIZER
from blip.config import ConfigError, RunConfig, dump_config, load_run_config
from blip.files import read_json, whole_folder, write_whole
from blip.outputs import OutputError, claim_output, locked
from blip.train.before import Before
from blip.train.checkpoint import (
    begun_checkpoints,
    can_be_continued,
    complete_checkpoints,
    find_checkpoint,
    is_misnamed,
    read_inputs,
)
from blip.train.history import LOGS
from blip.train.inputs import Fingerprints, differences, fingerprints
from blip.train.record import CHANGED, Record

CONFIG, BEST, CHECKPOINTS, SKIPPED, SIZES = "config.yaml", "best", "checkpoints", "skipped.jsonl", "shard_sizes.json"
OF_TRAINING = (CONFIG, TOKENIZER, *LOGS, SKIPPED, SIZES)
ADDED_TO = (CHECKPOINTS, "tensorboard")  # folders in which a run replaces nothing that is not its own
RESULTS = ("answers", "captions", "judgements", "results", "retrieval", "scores", "unreadable")
OF_EVALUATION = ("evaluation.json", *(f"{name}_{split}.json" for name in RESULTS for split in ("val", "test")))


@dataclass
class RunFolder:
    """What `open_run` decides about a run, equal on every process."""

    output: Path
    checkpoint: Path | None = None  # that the run continues
    _: KW_ONLY
    inputs: Fingerprints = field(default_factory=dict)  # of what the run reads
    notes: list[str] = field(default_factory=list)  # for the log
    before: Before | None = None  # of a run that is resumed, in the main process
    from_elsewhere: bool = False  # whether the checkpoint is another run's, which goes on in this folder

    def begin(self, config: RunConfig, step: int) -> list[str]:
        """Writes what a run has from its start, once all is loaded; an error before leaves a run's files as they were.

        The tokenizer is that of the checkpoint. All of a run that goes on in another folder comes with it. `step`: the
        number of steps done. Returns notes for the log.
        """
        return distributed.from_main(lambda: self._write(config, step))

    def went_on(self) -> None:
        """A step is done: an error after it no longer undoes what the run wrote."""
        if self.before is not None:
            self.before.forget()
            self.before = None

    def _write(self, config: RunConfig, step: int) -> list[str]:
        notes, record = [*self.notes], Record(self.output)
        record.add([*OF_TRAINING])
        if self.checkpoint is not None:
            run = run_of(self.checkpoint) if self.from_elsewhere else self.output
            if changed := _changed_options(config, run / CONFIG):
                notes.insert(0, f"changed since this run began: {', '.join(changed)}")
            tokenizer, theirs = self.output / TOKENIZER, (self.checkpoint / TOKENIZER).read_bytes()
            if not tokenizer.is_file() or tokenizer.read_bytes() != theirs:
                write_whole(tokenizer, theirs)
            if self.from_elsewhere:
                self._bring(record, step)
        dump_config(config, self.output / CONFIG)
        return notes

    def _bring(self, record: Record, step: int) -> None:
        """Copies from the run that the checkpoint belongs to: its log and, unless of a later step, its best weights."""
        assert self.checkpoint is not None
        source = run_of(self.checkpoint)
        for name in (*LOGS, SKIPPED, SIZES):
            if (source / name).is_file():
                write_whole(self.output / name, (source / name).read_bytes())
        if (source / BEST / INFO).is_file() and read_json(source / BEST / INFO, dict).get("step", step + 1) <= step:
            record.add([BEST])
            with whole_folder(self.output / BEST) as folder:
                shutil.copytree(source / BEST, folder, dirs_exist_ok=True)


def run_of(checkpoint: Path) -> Path:
    """The folder of the run that a checkpoint belongs to, by its place; its `checkpoints` may be a link to another."""
    real = checkpoint.resolve()
    if checkpoint.parent.resolve() == real.parent:  # a folder, or a link to the one beside it, such as `latest`
        return Path(os.path.abspath(checkpoint)).parent.parent
    return real.parent.parent


def is_of_run(checkpoint: Path, output: Path) -> bool:
    """Whether a checkpoint lies in the folder of this run, and not in that of another run within it."""
    places = ((checkpoint.resolve().parent, output / CHECKPOINTS), (run_of(checkpoint), output))
    return any(place.exists() and own.exists() and place.samefile(own) for place, own in places)


@contextmanager
def open_run(
    config: RunConfig, output: Path, resume: str = "", *, allow_changed: bool = False, overwrite: bool = False
) -> Iterator[RunFolder]:
    """The folder of a run, in which no other process writes within this block. Every process has to call this.

    An error before the first step of a run that is resumed leaves all files as they were.

    Args:
        resume: "" for a new run, `auto` for one that continues if there is a checkpoint, else a checkpoint.
        allow_changed: the inputs may differ from those that the checkpoint was trained with.
        overwrite: files that no run wrote may be replaced.

    Raises:
        LockedError: another process writes there.
        ConfigError: the folder holds a run and `resume` is empty or of another one; or the inputs differ.
        CheckpointError: `resume` names no checkpoint.
        OutputError: the folder has files that the run would replace.
    """
    with held(output):
        kept: list[Before] = []  # in the main process
        if resume:
            distributed.from_main(lambda: kept.append(Before(output, [*OF_TRAINING, *OF_EVALUATION, "test.json"])))
        try:
            folder = distributed.from_main(
                lambda: _decide(config, output, resume, allow_changed=allow_changed, overwrite=overwrite)
            )
            folder.before = next(iter(kept), None)
            yield folder
        except BaseException:
            for before in kept:
                before.restore()
            raise


@contextmanager
def held(output: Path) -> Iterator[None]:
    """The lock of a run's folder, which the main process holds for all."""
    with ExitStack() as stack:
        distributed.from_main(lambda: claim_output(output, "training", folder=True, known=True))  # not a file
        distributed.from_main(lambda: stack.enter_context(locked(output)))
        yield


def _decide(config: RunConfig, output: Path, resume: str, *, allow_changed: bool, overwrite: bool) -> RunFolder:
    begun = begun_checkpoints(output)
    if begun and not resume:
        raise ConfigError(f"{output} holds a run: continue it with --resume auto, or choose another --output_dir")
    checkpoint = find_checkpoint(resume, output) if resume else None
    folder = RunFolder(output, checkpoint, inputs=fingerprints(config))
    if checkpoint is not None:
        folder.from_elsewhere = not is_of_run(checkpoint, output)
        if folder.from_elsewhere and begun:
            raise ConfigError(
                f"{output} holds another run than {checkpoint}: continue that one in its own folder, with "
                f"--output_dir {run_of(checkpoint)}, or choose an empty --output_dir; --init_from {checkpoint} starts "
                "a new run from its weights"
            )
        folder.notes = [
            *_check_inputs(folder, checkpoint, allow_changed),
            *(f"{one} is passed over: it is a copy of another step" for one in begun if is_misnamed(one)),
        ]
    names = (*OF_TRAINING, BEST, "test.json", *OF_EVALUATION)
    claim_files(output, names, _read_by(config, folder), overwrite=overwrite)
    if checkpoint is None:  # from here on these are the run's own, should it end before its first checkpoint
        Record(output).add([*OF_TRAINING])
    return folder


def _read_by(config: RunConfig, folder: RunFolder) -> list[str]:
    """Files and folders that a run reads, none of which it may write."""
    names = [] if folder.checkpoint else [getattr(config, key, "") for key in ("tokenizer", "init_from", "text_init")]
    return [*filter(None, names), *(path for files in folder.inputs.values() for path, _, _ in files)]


def claim_files(output: Path, names: tuple[str, ...], inputs: list[str], *, overwrite: bool) -> None:
    """OutputError where a file that may be written is there and not the run's, or a result of it that was changed
    since; with `overwrite` it becomes the run's.

    What a run of an earlier version wrote, which kept no record, is a run's as well.
    """
    record, checkpoints = Record(output), []
    if not record.exists:
        checkpoints = [path for path in complete_checkpoints(output) if can_be_continued(path)]
    former = bool(checkpoints)
    there = [name for name in names if os.path.lexists(output / name)]
    for name in there:
        known = former or name in record.files
        claim_output(output / name, "training", inputs=inputs, folder=name == BEST, overwrite=overwrite, known=known)
        if record.changed(name) and not overwrite:
            raise OutputError(f"{output / name} {CHANGED}")
    for name in ADDED_TO:
        claim_output(output / name, "training", folder=True, known=True)
    if former or set(there) - set(record.files):
        record.add(there, [path.name for path in checkpoints] if former else None)
    for name in filter(record.changed, there):  # what the user gave up
        record.unsign(name)
    if gone := [name for name in record.checkpoints if not (output / CHECKPOINTS / name).exists()]:
        record.forget(gone)  # a folder that gets such a name later is not the run's


def _check_inputs(folder: RunFolder, checkpoint: Path, allow_changed: bool) -> list[str]:
    """Notes about inputs that differ from those of the checkpoint; ConfigError unless `allow_changed`."""
    before = read_inputs(checkpoint)
    if before is None:
        return [f"{checkpoint} is of an earlier version: whether its data have changed is not known"]
    changed = differences(before, folder.inputs)
    if not changed:
        return []
    problem = f"{checkpoint} was trained with other data: {'; '.join(changed)}"
    if not allow_changed:
        raise ConfigError(
            f"{problem}. Restore them, or continue with --allow_changed; --init_from {checkpoint} starts a new run "
            "from its weights"
        )
    return [problem]


def _changed_options(config: RunConfig, saved: Path) -> list[str]:
    if not saved.is_file():
        return []
    try:
        before = load_run_config(saved, type(config))
    except ConfigError as error:  # of another version, or damaged; nothing else depends on it
        return [f"cannot compare with {saved} ({error})"]
    return [f"{key} {getattr(before, key)} -> {value}" for key, value in config if getattr(before, key) != value]
