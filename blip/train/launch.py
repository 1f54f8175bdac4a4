"""The command line of the training scripts: the same options for every task."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Protocol

import torch
import typer

from blip import distributed
from blip.command_line import CONFIG_HELP, Overrides, Overwrite, lasting_streams, run_command, user_errors
from blip.config import Config, ConfigError, load_config
from blip.console.bars import LastingConsole
from blip.errors import printable
from blip.options.overrides import stray_words
from blip.options.reading import RUN_CONFIG
from blip.train.checkpoint import find_checkpoint
from blip.train.evaluated import evaluated
from blip.train.folder import run_of
from blip.train.log import UNITS

DRY_RUN_HELP = "one step on random data; prints costs"
GPU_HELP = "--dry_run: what it would cost on such a GPU, which is not needed for that: a100-80, h100, rtx4090 ..."
WORLD_HELP = "--dry_run --gpu: on so many of them"
EVALUATE_HELP = "no training: score val_file and test_file, by the run's own configuration"
NAME_HELP = "--evaluate: the folder of the results, in OUTPUT_DIR/evaluation"
AllowChanged = Annotated[
    bool, typer.Option("--allow_changed", help="--resume: although the data are others than before")
]
Gpu = Annotated[str, typer.Option(help=GPU_HELP)]
WorldSize = Annotated[int | None, typer.Option("--world_size", min=1, help=WORLD_HELP)]


class Run(Protocol):
    """A run of a task."""

    def __call__(
        self,
        config: Any,
        output: Path,
        resume: str,
        *,
        device: torch.device,
        allow_changed: bool = False,
        overwrite: bool = False,
    ) -> bool:
        """Trains and writes the result to `output`. False when a signal ended it early.

        `resume` is "" for a new run, else `auto` or a checkpoint; `allow_changed` and `overwrite` as in `open_run`.
        """


class Evaluate(Protocol):
    """An evaluation of a task without training."""

    def __call__(self, config: Any, output: Path, device: torch.device, *, overwrite: bool = False) -> Path | None:
        """Writes scores to a folder in `output`/evaluation and returns it; `overwrite`: files that no evaluation wrote
        may be replaced. `name`, of that folder, is given where the user chose one."""


def launch(
    run: Run,
    config_class: type[Config],
    *,
    default_output: str,
    dry_run: Callable[[Config, torch.device], None] | None = None,
    plan: Callable[[Config, str, int], None] | None = None,
    evaluate: Evaluate | None = None,
    help: str | None = None,
) -> None:
    """Reads the command line and calls what its options select; errors end the program, see `user_errors`.

    Args:
        run: trains.
        config_class: type of the configuration.
        default_output: `--output_dir` unless given.
        dry_run: offered as `--dry_run` where there is one; called with the configuration and the device.
        plan: offered as `--dry_run --gpu`; called with the configuration, a card's name and the number of cards.
        evaluate: offered as `--evaluate` where there is one.
        help: text of `--help`.
    """

    offer = _Offer(run, config_class, Path(default_output), dry_run, plan, evaluate)

    def command(
        context: typer.Context,
        config: Annotated[Path | None, typer.Option(help=f"{CONFIG_HELP}; --resume and --evaluate: the run's")] = None,
        output_dir: Annotated[
            Path | None,
            typer.Option("--output_dir", help="where checkpoints and logs go", show_default=default_output),
        ] = None,
        resume: Annotated[str, typer.Option(help="continue a run: auto, or a checkpoint folder")] = "",
        init_from: Annotated[str, typer.Option("--init_from", help="checkpoint that a new run starts from")] = "",
        set_: Overrides = None,
        overwrite: Overwrite = False,
        allow_changed: AllowChanged = False,
        rehearse: Annotated[bool, typer.Option("--dry_run", help=DRY_RUN_HELP, hidden=dry_run is None)] = False,
        gpu: Gpu = "",
        world_size: WorldSize = None,
        score: Annotated[bool, typer.Option("--evaluate", help=EVALUATE_HELP, hidden=evaluate is None)] = False,
        name: Annotated[str, typer.Option(help=NAME_HELP, hidden=evaluate is None)] = "",
    ) -> None:
        if context.args:
            raise ConfigError(stray_words(context.args, set_ or []))
        _check(resume, init_from, allow_changed, leave_out="--dry_run" if rehearse else "", evaluates=score)
        if name and not score:
            raise ConfigError("--name is for --evaluate: a run has the name of its --output_dir")
        # tasks of before these options do not know them
        flags = (("overwrite", overwrite), ("allow_changed", allow_changed), ("name", name))
        given: dict[str, Any] = {key: value for key, value in flags if value}
        options = {"init_from": init_from} if init_from else {}
        settings = _Settings(config, set_ or [], options, output_dir, gpu, world_size)
        if score:
            offer.score(settings, given)
        else:
            offer.train(settings, resume, rehearse, given)

    command.__doc__ = f"{(help or '').rstrip()}\n\n{UNITS}"
    with lasting_streams(), user_errors():
        run_command(command)


@dataclass
class _Settings:
    """What a command line says about the configuration."""

    file: Path | None
    overrides: list[str]
    options: dict[str, Any]  # values that have options of their own
    output: Path | None
    gpu: str  # "": the one that is here
    world_size: int | None


@dataclass
class _Offer:
    """What a script can do."""

    run: Run
    config_class: type[Any]
    default_output: Path
    dry_run: Callable[[Any, torch.device], None] | None
    plan: Callable[[Any, str, int], None] | None
    evaluate: Evaluate | None

    def score(self, given: _Settings, flags: dict[str, Any]) -> None:
        """`--evaluate`."""
        _check_plan(False, given.gpu, given.world_size)
        action = _offered(self.evaluate, "--evaluate")
        found = evaluated(
            self.config_class,
            given.file,
            given.overrides,
            options=given.options,
            output=given.output,
            default_output=self.default_output,
        )
        device = distributed.start(found.config.device)
        say(found.notes)
        action(found.config, found.output, device, **flags)

    def train(self, given: _Settings, resume: str, rehearse: bool, flags: dict[str, Any]) -> None:
        """A run, or `--dry_run`."""
        _check_plan(rehearse, given.gpu, given.world_size)
        place = given.output or self.default_output
        file = given.file or _config_of(resume, place)
        settings = load_config(file, self.config_class, given.overrides, options=given.options)
        if given.gpu:  # which needs no device and no other process
            _offered(self.plan, "--gpu")(settings, given.gpu, given.world_size or 1)
            return
        if not getattr(settings, "config_file", "unknown"):  # that of a resumed run is known already
            settings = settings.model_copy(update={"config_file": str(file)})
        device = distributed.start(settings.device)
        if rehearse:
            _offered(self.dry_run, "--dry_run")(settings, device)
        else:
            self.run(settings, place, resume, device=device, **flags)


def say(notes: list[str]) -> None:
    """Prints notes from the main process, to standard error."""
    if distributed.is_main():
        console = LastingConsole(stderr=True)
        for note in notes:
            console.print(printable(note), markup=False, highlight=False, soft_wrap=True)


def _config_of(resume: str, output: Path) -> Path:
    """The configuration of the run that is resumed.

    Raises:
        typer.BadParameter: no run is resumed.
        ConfigError: it has no configuration.
    """
    checkpoint = find_checkpoint(resume, output) if resume else None
    if checkpoint is None:
        raise typer.BadParameter("give a configuration, such as --config vqa_rad", param_hint="--config")
    if not (run_of(checkpoint) / RUN_CONFIG).is_file():
        raise ConfigError(f"{run_of(checkpoint)} has no {RUN_CONFIG}: give --config")
    return run_of(checkpoint) / RUN_CONFIG


def _check(resume: str, init_from: str, allow_changed: bool, *, leave_out: str, evaluates: bool) -> None:
    """ConfigError for options that exclude each other."""
    if resume and init_from:
        raise ConfigError("--resume continues a run, --init_from starts a new one: give one of them")
    if allow_changed and not resume:
        raise ConfigError("--allow_changed is for --resume: a new run takes any data")
    leave_out = "--resume" if resume else leave_out
    if evaluates and leave_out:
        raise ConfigError(f"--evaluate scores a checkpoint without training: leave out {leave_out}")


def _check_plan(rehearse: bool, gpu: str, world_size: int | None) -> None:
    """ConfigError where options of `--dry_run` stand alone."""
    if gpu and not rehearse:
        raise ConfigError(
            "--gpu is for --dry_run, which tells the costs on other GPUs: add --dry_run, or leave --gpu out"
        )
    if world_size is not None and not gpu:
        raise ConfigError(
            "--world_size is for --dry_run --gpu CARD: give both, such as --gpu a100-80; a run itself has as many "
            "processes as torchrun --nproc_per_node starts"
        )


def _offered(action: Callable | None, option: str) -> Callable:
    if action is None:
        raise ConfigError(f"this script has no {option}")
    return action
