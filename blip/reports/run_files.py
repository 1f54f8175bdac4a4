"""What the folder of a run tells: options, log, scores, skipped images. Missing and damaged parts become sentences.

Runs of every version can be read; those of earlier ones have fewer parts.
"""

from collections.abc import Callable, KeysView
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from blip.config import ConfigError, ModelConfig, PretrainConfig, load_config
from blip.data.skipped import Note
from blip.errors import InputError
from blip.files import ReadError, read_json, read_json_lines, read_text
from blip.options.meanings import options_of
from blip.tasks.blip2_config import Blip2Config
from blip.tasks.config import CaptionConfig, DialogueConfig, NlvrConfig, RetrievalConfig, VqaConfig
from blip.train.evaluated import EVALUATIONS
from blip.train.folder import BEST, CONFIG, SKIPPED
from blip.train.history import METRICS, History, read_history

CONFIGS: tuple[type[ModelConfig], ...] = (
    PretrainConfig,
    Blip2Config,
    RetrievalConfig,
    CaptionConfig,
    VqaConfig,
    NlvrConfig,
    DialogueConfig,
)
KINDS = {
    "PretrainConfig": "pre-training", "Blip2Config": "pre-training of BLIP-2",
    "RetrievalConfig": "retrieval", "CaptionConfig": "captioning",
    "VqaConfig": "visual question answering", "NlvrConfig": "statements about two images",
    "DialogueConfig": "dialogues about images",
}  # fmt: skip
SPLITS = {"val": "validation", "test": "test"}
EVALUATION = "evaluation.json"  # of an evaluation, with its scores
MOST_EVALUATIONS = 10  # that are shown
LIMIT = 512 << 20  # bytes of a file of results that are read
T = TypeVar("T")


@dataclass
class RunFiles:
    """A run, as its folder tells it."""

    folder: Path
    name: str  # by which pages call it
    history: History
    options: dict[str, Any] = field(default_factory=dict)  # of its configuration
    config: ModelConfig | None = None  # the same, checked; None where that fails
    defaults: dict[str, Any] = field(default_factory=dict)  # of the same task
    kind: str = ""  # what was trained, in words; "" where that is not known
    meanings: dict[str, str] = field(default_factory=dict)  # of options
    scores: dict[str, dict[str, Any]] = field(
        default_factory=dict
    )  # of each split: `scores_SPLIT.json` or what has them
    best: dict[str, Any] = field(default_factory=dict)  # `metrics.json` of the best weights
    test: dict[str, Any] = field(default_factory=dict)  # scores of the test files
    skipped: list[Note] = field(default_factory=list)
    unreadable: dict[str, list[str]] = field(default_factory=dict)  # of each split: images of the evaluation
    problems: list[str] = field(default_factory=list)  # parts that could not be read
    evaluated: dict[str, Any] = field(default_factory=dict)  # `evaluation.json`: scores of an evaluation on its own
    evaluations: list["RunFiles"] = field(default_factory=list)  # those in the run's folder

    @property
    def changed(self) -> list[tuple[str, Any, Any]]:
        """(option, value, default) of those that are not at their defaults."""
        return [
            (k, v, self.defaults[k]) for k, v in self.options.items() if k in self.defaults and v != self.defaults[k]
        ]

    def last(self, key: str) -> Any:
        """The newest value of an entry of the lines of epochs and evaluations; None where none has it."""
        return next((line[key] for line in reversed(self.history.epochs) if line.get(key) is not None), None)


def read_run(folder: str | Path, name: str = "", *, nested: bool = True) -> RunFiles:
    """What is known of the run in a folder, or of an evaluation in its own folder. `nested`: with its evaluations.

    Raises:
        InputError: there is no such folder, or no run in it.
    """
    folder = Path(folder)
    if not (folder / METRICS).is_file() and not (folder / CONFIG).is_file():
        there = "there is no such folder" if not folder.is_dir() else f"it has neither {CONFIG} nor {METRICS}"
        raise InputError(f"{folder} is no run: {there}")
    problems: list[str] = []

    def part(read: Callable[[], T], empty: T, what: Path) -> T:
        if not what.exists():
            return empty
        try:
            return read()
        except ReadError as error:
            problems.append(str(error))
            return empty

    def read_part(path: Path, kind: type[T], empty: T) -> T:
        return part(lambda: read_json(path, kind, LIMIT), empty, path)

    metrics = folder / METRICS
    run = RunFiles(folder, name or folder.resolve().name, part(lambda: read_history(folder), History(folder), metrics))
    run.problems = problems
    run.options = part(lambda: _yaml(folder / CONFIG), dict[str, Any](), folder / CONFIG)
    if run.options:
        cls: Any = max(CONFIGS, key=lambda one: _alike(run.options.keys(), one.model_fields.keys()))
        run.kind, run.defaults = KINDS[cls.__name__], cls().model_dump(mode="json")
        run.meanings = {one.name: one.meaning for one in options_of(cls)}
        with suppress(ConfigError):  # of a version with other options
            run.config = load_config(folder / CONFIG, cls)
    for split in SPLITS:
        for file in ("retrieval", "scores"):
            if content := read_part(folder / f"{file}_{split}.json", dict[str, Any], {}):
                run.scores[split] = {key: value for key, value in content.items() if key not in LONG}
        if names := read_part(folder / f"unreadable_{split}.json", list[str], []):
            run.unreadable[split] = names
    run.best = read_part(folder / BEST / "metrics.json", dict[str, Any], {})
    run.test = read_part(folder / "test.json", dict[str, Any], {})
    run.evaluated = read_part(folder / EVALUATION, dict[str, Any], {})
    run.skipped = part(
        lambda: [note for _, note in read_json_lines(folder / SKIPPED, Note)], list[Note](), folder / SKIPPED
    )
    for place in _evaluations_of(folder) if nested else []:
        run.evaluations.append(read_run(place, nested=False))
        run.problems += run.evaluations[-1].problems
    return run


def _evaluations_of(folder: Path) -> list[Path]:
    """The folders that `--evaluate` has written in a run, the newest ones, by name."""
    files = [file for file in (folder / EVALUATIONS).glob(f"*/{EVALUATION}") if file.with_name(CONFIG).is_file()]
    return sorted(file.parent for file in sorted(files, key=lambda file: file.stat().st_mtime)[-MOST_EVALUATIONS:])


LONG = ("image_to_text", "text_to_image", "images", "texts", "owners")  # parts of a file of retrieval


def _alike(one: KeysView[str], other: KeysView[str]) -> float:
    return len(one & other) / len(one | other)


def _yaml(path: Path) -> dict[str, Any]:
    try:
        content = YAML(typ="safe", pure=True).load(read_text(path))
    except YAMLError as error:
        raise ReadError(path, "", f"not YAML: {error}") from error
    if not isinstance(content, dict):
        raise ReadError(path, "", "expected lines of `key: value`")
    return {str(key): value for key, value in content.items()}


def names_of(folders: list[Path]) -> list[str]:
    """A name for each run: that of its folder, with as many folders above it as tell the runs apart."""
    parts = [folder.resolve().parts for folder in folders]
    for depth in range(1, max(map(len, parts), default=1) + 1):
        names = ["/".join(one[-depth:]) for one in parts]
        if len(set(names)) == len(set(parts)):
            break
    return names
