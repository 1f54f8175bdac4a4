"""What an evaluation without training is made of: a run's configuration, what the command line changes in it, and the
folder that the results go to."""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic

from pydantic import BaseModel

from blip import distributed
from blip.checkpoints.format import INFO
from blip.config import Config, ConfigError, RunConfig, find_config, load_config
from blip.options.reading import has_other_options, read_values
from blip.train.checkpoint import begun_checkpoints, is_misnamed
from blip.train.folder import BEST, CONFIG, OF_EVALUATION, claim_files, held

EVALUATIONS = "evaluation"  # in the folder of a run
# what weights give, whatever a file says
OF_WEIGHTS = (
    *("vit", "vit_width", "vit_depth", "vit_heads", "vit_patch", "text_width", "text_layers", "text_heads"),
    *("text_hidden", "max_positions", "embed_dim", "tokenizer", "vision_init", "text_init", "init_from", "lora"),
)
SCORED = ("precision", "seed")  # of every training script's options, those that scores depend on
FILES = ("val_file", "test_file")
OF_TRAINING = (
    *("train_file", "train_split", "crop_scale", "randaugment", "horizontal_flip", "drop_path", "dropout"),
    *(
        "image_pipeline",
        "label_smoothing",
        "temperature",
        "queue_size",
        "momentum",
        "alpha",
        "alpha_ramp_epochs",
        "vocab_size",
    ),
    *("best_metric", "best_is", "max_skipped_fraction", "max_image_mb", "num_workers", "freeze"),
)


@dataclass
class Evaluated(Generic[Config]):
    """The configuration of an evaluation, the folder of its run, and what to say about them."""

    config: Config
    output: Path
    notes: list[str] = field(default_factory=list)


def weights_of(run: Path) -> Path | None:
    """The best weights of a run, else its newest checkpoint; None where the folder holds neither."""
    saved = [folder for folder in reversed(begun_checkpoints(run)) if not is_misnamed(folder)]
    return next((folder for folder in (run / BEST, *saved) if folder.is_dir()), None)


def run_with(weights: str | Path, cls: type[BaseModel]) -> Path | None:
    """The folder of the run whose `best` or checkpoint the weights are, None where they belong to none, or to one of
    another task than that of the configuration `cls`."""
    run = _run_around(weights)
    return None if run is None or has_other_options(run / CONFIG, cls) else run


def _run_around(weights: str | Path) -> Path | None:
    """The folder of the run, of whatever task, that weights lie in."""
    path = Path(weights)
    if not (path / INFO).is_file():
        return None
    return next((run for run in (path.parent, path.parent.parent) if (run / CONFIG).is_file()), None)


def evaluated(
    cls: type[Config],
    file: Path | None,
    overrides: list[str],
    *,
    options: Mapping[str, Any],
    output: Path | None,
    default_output: Path,
) -> Evaluated[Config]:
    """What `--evaluate` evaluates: a run, by its folder, its weights or its `config.yaml`; or other weights.

    The configuration is that of the run. Another file than the one that the run began with overrides it, and so does
    `--set`; a note says what changes.

    Args:
        cls: type of the configuration.
        file: `--config`.
        overrides: values of `--set`.
        options: values of options of their own, such as `init_from`.
        output: `--output_dir`, None unless given.

    Raises:
        ConfigError: there is neither a run nor a file; or a value cannot be used.
    """
    path = find_config(file) if file is not None else None
    given = _given(cls, overrides, options)
    weights = str(given.get("init_from") or "")
    run = run_with(weights, cls) if weights else _run_of(output or default_output, path)
    if run is not None and has_other_options(run / CONFIG, cls):
        raise ConfigError(f"{run} is of another task: give --init_from {weights_of(run)}, --config and --output_dir")
    if run is None:
        if path is None:
            whose = "a run of another task" if _run_around(weights) else "no run"
            about = f"{weights} belongs to {whose}" if weights else f"{output or default_output} holds no run"
            raise ConfigError(f"{about}, whose configuration would be used: give --config, or a run by --output_dir")
        return Evaluated(load_config(path, cls, overrides, options=options), output or default_output)
    own = run / CONFIG
    before = load_config(own, cls)
    notes = [f"the configuration is that of {own}"]
    kept: dict[str, Any] = {}
    if path is not None and not path.samefile(own):
        values = {key: value for key, value in read_values(path, cls).items() if key not in OF_WEIGHTS}
        named = load_config(path, cls)
        other = {key: value for key, value in values.items() if getattr(named, key) != getattr(before, key)}
        if _began_with(before, path):
            notes += [f"{key} is {_shown(before, key)}, as in the run; {path} has {_shown(named, key)}"
                      for key in other if _matters(key) and key not in given]  # fmt: skip
        else:
            kept = {key: value for key, value in other.items() if key not in given}
    # not the weights that the run began with
    same = output is None or (output.exists() and run.samefile(output))
    start = weights or ("" if same else str(weights_of(run) or ""))
    config = load_config(own, cls, overrides, options={**kept, **options, "init_from": start})
    for key in {**kept, **given}:
        said = key in given or _matters(key)
        if said and key != "init_from" and getattr(config, key) != getattr(before, key):
            notes.append(f"{key}: {_shown(before, key)} -> {_shown(config, key)}, by "
                         f"{'--set' if key in given else path}")  # fmt: skip
    return Evaluated(config, output or run, notes)


def _given(cls: type[Config], overrides: list[str], options: Mapping[str, Any]) -> dict[str, Any]:
    """The values of the command line by key."""
    keys = [override.partition("=")[0] for override in overrides]
    values = dict.fromkeys(key for key in keys if key in cls.model_fields)
    for override in overrides:
        key, _, text = override.partition("=")
        values[key] = text.strip("'\"")
    return {**values, **options}


def _run_of(output: Path, file: Path | None) -> Path | None:
    """The run in a folder, else the one whose `config.yaml` a file is."""
    places = [output, *([file.parent] if file is not None and file.name == CONFIG else [])]
    return next((run for run in places if (run / CONFIG).is_file() and weights_of(run)), None)


def _began_with(config: Any, file: Path) -> bool:
    """Whether a file is the one that a run began with."""
    with suppress(ConfigError):  # it may be gone
        return bool(config.config_file) and find_config(config.config_file).samefile(file)
    return False


def _matters(key: str) -> bool:
    """Whether scores depend on an option."""
    return key in SCORED or (key not in RunConfig.model_fields and key not in (*OF_WEIGHTS, *OF_TRAINING))


def _shown(config: Any, key: str) -> str:
    return json.dumps(config.model_dump(mode="json")[key])


# ---- the folder ------------------------------------------------------------------------------------------------------


def evaluation_name(config: RunConfig, weights: str, output: Path) -> str:
    """The name of the folder of an evaluation: its weights, its data and, where settings differ from the run's, a hash.

    Such as `best-val-test`; `model_base-slake` for weights and data from elsewhere; `pre-best-as-retrieval-coco` for
    weights of a run of another task.
    """
    run = run_with(weights, type(config))
    own = run is not None and output.exists() and run.samefile(output)
    name = Path(weights).name if own else f"{run.name}-{Path(weights).name}" if run else Path(weights).stem
    if run is None and (other := _run_around(weights)):
        name = f"{other.name}-{name}-as-{type(config).__name__.removesuffix('Config').lower()}"
    values = config.model_dump(mode="json")
    before: dict[str, Any] = {}
    if run is not None:
        before = load_config(run / CONFIG, type(config)).model_dump(mode="json")
    files = {key: values[key] for key in FILES if values[key]}
    if not files or all(before.get(key) == value for key, value in files.items()):
        data = [key.removesuffix("_file") for key in files] or ["val", "test"]
    else:
        data = [Path(file["path"] if isinstance(file, dict) else str(file)).stem for listed in files.values()
                for file in listed]  # fmt: skip
    differ = {key: value for key, value in values.items()
             if before and _matters(key) and key not in FILES and before.get(key) != value}  # fmt: skip
    digest = hashlib.sha256(json.dumps([differ, files], sort_keys=True).encode()).hexdigest()[:6]
    parts = [name, *dict.fromkeys(data), *([digest] if differ or len(data) > 3 else [])]
    whole = re.sub(r"[^\w.-]+", "-", "-".join(parts[:5] + parts[5:][-1:]))
    return re.sub(r"([0-9a-f]{8})[0-9a-f]{32,}", r"\1", whole).strip("-.")[:120]  # commits and hashes of names


@contextmanager
def open_evaluation(folder: Path, config: RunConfig, *, overwrite: bool = False) -> Iterator[None]:
    """The folder of an evaluation, in which no other process writes within this block. Every process has to call this.

    Raises:
        LockedError: another process writes there.
        ConfigError: it holds an evaluation with other settings, and not `overwrite`.
        OutputError: it has a file that no evaluation wrote, and not `overwrite`.
    """
    with held(folder):
        distributed.from_main(lambda: _claim(folder, config, overwrite=overwrite))
        yield


def _claim(folder: Path, config: RunConfig, *, overwrite: bool) -> None:
    saved = folder / CONFIG
    if saved.is_file() and not overwrite:
        if has_other_options(saved, type(config)):
            raise ConfigError(f"{folder} holds an evaluation of another task: choose another --name, or --overwrite it")
        before = load_config(saved, type(config))
        former, weights = (str(getattr(one, "init_from", "")) for one in (before, config))
        run = run_with(weights, type(config))
        own = run is not None and run.samefile(folder.parent.parent)
        if own and Path(former).name == Path(weights).name:
            before = before.model_copy(update={"init_from": weights})  # the run was moved or copied since
        other = [f"{key} {_shown(before, key)} -> {_shown(config, key)}" for key in type(config).model_fields
                 if (_matters(key) or key == "init_from") and getattr(before, key) != getattr(config, key)]  # fmt: skip
        if other:
            raise ConfigError(
                f"{folder} holds an evaluation with other settings ({', '.join(other)}): choose another --name, or "
                "replace it with --overwrite"
            )
    claim_files(folder, (CONFIG, *OF_EVALUATION), [], overwrite=overwrite)
