"""`blip.finetune`, `blip.pretrain` and `blip.evaluate`: what the scripts do, in the process that calls them."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from blip import distributed
from blip.checkpoints import convert, places
from blip.checkpoints.format import INFO
from blip.checkpoints.info import read_info
from blip.config import ConfigError, ModelConfig, with_options
from blip.errors import InputError
from blip.runs.run import Run
from blip.runs.scores import Scores, scores_of_evaluation
from blip.runs.session import FOLDER, as_before, new_folder, removed_if_empty, say, train_in
from blip.runs.settings import Data, entries_of, settings
from blip.tasks.entries import ENTRIES, PRETRAINING, Entry, entry_of
from blip.train.checkpoint import begun_checkpoints
from blip.train.evaluated import evaluated, run_with
from blip.train.folder import CONFIG

EVALUATIONS = "evaluations"  # in `runs`: of weights that belong to no run
# how inputs were prepared: an evaluation prepares them in the same way unless told otherwise
OF_INPUTS = ("max_text_tokens", "max_answer_tokens", "text_cleaning", "prompt", "window", "channels")


def finetune(
    task: str,
    train: Data | None = None,
    *,
    val: Data | None = None,
    test: Data | None = None,
    init_from: str | os.PathLike[str] | Run = "",
    config: str | Path | None = None,
    output_dir: str | Path | None = None,
    device: str = "auto",
    resume: bool | str = False,
    overwrite: bool = False,
    **options: Any,
) -> Run:
    """Fine-tunes a model, as the training scripts do, and returns the run.

    Progress is shown while it trains. An interruption (Ctrl-C, or a notebook's stop button) saves the step that is
    finished; in a notebook the call then returns, and `resume` of the run continues. Random numbers of the process go
    on afterwards as if nothing had happened.

    Args:
        task: vqa, caption, retrieval, nlvr or dialogue.
        train: records to learn from: a path, `hub:OWNER/NAME`, what `blip.data` returns, or a list of these.
        val: records that are scored after each epoch; the best weights by them are kept.
        test: records that are scored once, at the end, by the best weights.
        init_from: what to start from: a run (its best weights), a checkpoint, a file, an address or `hub:OWNER/NAME`.
            Random weights unless given.
        config: a configuration to begin with, such as `vqa_rad`, or a YAML file; the other arguments come after it.
        output_dir: folder of the run; a new one, runs/TASK-N, unless given.
        device: `cpu` or `cuda`; `auto`, a GPU if there is one, unless `config` names a device.
        resume: continues the newest checkpoint of `output_dir`, or the named one.
        overwrite: files in `output_dir` that no run wrote may be replaced.
        options: further keys of the task's configuration, such as `epochs`, `batch_size`, `image_size`; `blip options
            vqa` lists them. Without `config`, a run with `init_from` has the published lr of its task and no warm-up.

    Returns:
        The run: `.history`, `.plot()`, `.show()`, `.scores`, `.best()`, `.resume()`, `.report()`, `.folder`.

    Raises:
        ConfigError: an option is unknown, or a value cannot be used; the message names the nearest option.
        AnnotationError: a file of records cannot be used.
        BlipError: whatever else can be mended; the message says how.

    Example:
        >>> run = blip.finetune("vqa", "questions.json", val="questions.json", init_from="checkpoint", image_size=32,
        ...                     batch_size=8, epochs=1)
        >>> answer = run.best().answer("chest.png", "how many lesions are there?")[0]
        >>> table = run.history  # step, epoch, losses of training and validation, scores, learning rate
    """
    entry, call = entry_of(task, fine_tuning=True), f"blip.finetune({task!r}, ...)"
    data = {"train_file": train, "val_file": val, "test_file": test}
    given = {**options, "init_from": _weights(init_from), "device": device}
    made = settings(entry, call, config=config, data=data, options=given)
    return _train(task, entry, made, output_dir=output_dir, resume=resume, overwrite=overwrite)


def pretrain(
    train: Data | None = None,
    *,
    model: str = "blip",
    val: Data | None = None,
    init_from: str | os.PathLike[str] | Run = "",
    config: str | Path | None = None,
    output_dir: str | Path | None = None,
    device: str = "auto",
    resume: bool | str = False,
    overwrite: bool = False,
    **options: Any,
) -> Run:
    """Pre-trains a model on images with captions, as `pretrain.py` does, and returns the run.

    `model` is `blip` or `blip2`, as `pretrain_blip2.py` trains it: its second stage where `language_model` is given.
    Other arguments, interruption, errors and result are those of `blip.finetune`; `blip options pretrain` and
    `blip options blip2` list the options.

    Example:
        >>> run = blip.pretrain("captions.json", vit="tiny", text_width=192, text_layers=2, text_heads=3,
        ...                     image_size=64, batch_size=8, epochs=1, queue_size=8)
        >>> caption = run.best().caption("chest.png")[0]
    """
    data, given = (
        {"train_file": train, "val_file": val},
        {**options, "init_from": _weights(init_from), "device": device},
    )
    if model not in PRETRAINING:
        raise InputError(f"model is {model!r}; it can be {' or '.join(PRETRAINING)}")
    task = PRETRAINING[model]
    made = settings(ENTRIES[task], "blip.pretrain(...)", config=config, data=data, options=given)
    return _train(task, ENTRIES[task], made, output_dir=output_dir, resume=resume, overwrite=overwrite)


def evaluate(
    task: str,
    checkpoint: str | os.PathLike[str] | Run,
    data: Data,
    *,
    output_dir: str | Path | None = None,
    name: str = "",
    device: str = "auto",
    overwrite: bool = False,
    **options: Any,
) -> Scores:
    """Scores a checkpoint on records, without training.

    Weights of a run are evaluated by that run's configuration, others with the sizes of the checkpoint. Scores and
    answers are written to a folder, which the result names.

    Args:
        task: vqa, caption, retrieval, nlvr or dialogue.
        checkpoint: a run (its best weights), a checkpoint, a file, or `hub:OWNER/NAME`.
        data: the records: as `train` of `blip.finetune`.
        output_dir: the results go to its folder evaluation/NAME; that of the run, else runs/evaluations, unless given.
        name: of that folder; after weights and data unless given.
        device: `auto`, `cpu` or `cuda`.
        overwrite: the folder may hold an evaluation with other settings.
        options: keys of the task's configuration, such as `batch_size` or `inference`.

    Returns:
        The scores by name, such as `scores["test_exact_match"]`; a notebook shows them in a table with intervals.

    Raises:
        CheckpointError: the checkpoint cannot be scored at this task.
        ConfigError, AnnotationError: as in `blip.finetune`.

    Example:
        >>> run = blip.finetune("vqa", "questions.json", init_from="checkpoint", max_steps=2, image_size=32)
        >>> scores = blip.evaluate("vqa", run, "questions.json")
        >>> share = scores["test_exact_match"]  # right answers, from 0 to 1
    """
    entry = entry_of(task, fine_tuning=True)
    assert entry.score is not None
    call = f"blip.evaluate({task!r}, ...)"
    with_options(entry.config.model_validate({}), options, call)  # a typing error is told before anything is read
    weights, records = _weights(checkpoint), {"val_file": [], "test_file": entries_of(data)}
    if not weights:
        raise InputError("there is no checkpoint: give a run, a path or hub:OWNER/NAME")
    given: dict[str, Any] = {**options, "init_from": weights, "device": device}
    run, place = run_with(weights, entry.config), Path(output_dir).expanduser() if output_dir is not None else None
    if run is None:
        given = {**_of_inputs(weights, entry.config), **given}
        made = settings(entry, call, config=None, data=records, options=given)
        output = place or FOLDER / EVALUATIONS
    else:
        output = place or run
        made = _of_run(entry, {**given, **records}, output)
    with as_before():
        target = distributed.start(made.device)
        named = {"name": name} if name else {}
        folder = entry.score(made, output, target, overwrite=overwrite, **named)
    return scores_of_evaluation(folder)


def _train(
    task: str, entry: Entry, config: ModelConfig, *, output_dir: str | Path | None, resume: bool | str, overwrite: bool
) -> Run:
    if resume and output_dir is None:
        raise ConfigError("resume continues the run of a folder: give its output_dir, or use blip.runs.open(FOLDER)")
    if not getattr(config, "train_file", None):
        raise ConfigError("train is not given: a path, hub:OWNER/NAME, what blip.data returns, or a list of these")
    given = Path(output_dir).expanduser() if output_dir is not None else None
    if not resume and given is not None and begun_checkpoints(given):
        raise ConfigError(f"{given} holds a run: resume=True continues it; or give another output_dir")
    folder = given or new_folder(task)
    say(f"run: {folder}")
    with removed_if_empty(folder if given is None else None):
        train_in(folder, entry, config, resume="auto" if resume is True else resume or "", overwrite=overwrite)
    return Run(folder)


def _of_run(entry: Entry, given: dict[str, Any], output: Path) -> ModelConfig:
    """The configuration of the run that `init_from` is of, and what is given; says what differs from the run's."""
    found = evaluated(entry.config, None, [], options=given, output=output, default_output=output)
    for note in found.notes:
        if not note.startswith(("val_file", "test_file")):
            say(note.removesuffix(", by --set"))
    return found.config


def _weights(checkpoint: str | os.PathLike[str] | Run) -> str:
    """The checkpoint that is meant: of a run, or of its folder, the best weights; "" where none is given."""
    if isinstance(checkpoint, Run):
        return str(checkpoint.weights())
    if not checkpoint:
        return ""
    if not isinstance(checkpoint, str | os.PathLike):
        raise InputError(f"{type(checkpoint).__name__} is no checkpoint: give a run, a path or hub:OWNER/NAME")
    name = os.path.expanduser(checkpoint)
    if (Path(name) / CONFIG).is_file() and not (Path(name) / INFO).is_file():
        return str(Run(name).weights())
    return name


def _of_inputs(weights: str, cls: type[ModelConfig]) -> dict[str, Any]:
    """How the inputs of a checkpoint were prepared, as options."""
    path = places.local(weights)
    info: Mapping[str, Any]
    info = read_info(path / INFO) if (path / INFO).is_file() else convert.read(path)[1]
    found = {key: info[key] for key in OF_INPUTS if info.get(key) is not None and key in cls.model_fields}
    return {**found, "image_size": info["image_encoder"]["image_size"]}
