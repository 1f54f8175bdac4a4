"""The command line of the training scripts: the same options for every task."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Protocol

import torch
import typer

from blip import distributed
from blip.command_line import ConfigFile, Overrides, Overwrite, lasting_streams, run_command, user_errors
from blip.config import Config, ConfigError, load_config
from blip.train.log import UNITS


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

    def __call__(self, config: Any, output: Path, device: torch.device, *, overwrite: bool = False) -> None:
        """Writes scores to `output`; `overwrite`: files that no run wrote may be replaced."""


def launch(
    run: Run,
    config_class: type[Config],
    *,
    default_output: str,
    dry_run: Callable[[Config, torch.device], None] | None = None,
    evaluate: Evaluate | None = None,
    help: str | None = None,
) -> None:
    """Reads the command line and calls what its options select; errors end the program, see `user_errors`.

    Args:
        run: trains.
        config_class: type of the configuration.
        default_output: `--output_dir` unless given.
        dry_run: offered as `--dry_run` where there is one; called with the configuration and the device.
        evaluate: offered as `--evaluate` where there is one.
        help: text of `--help`.
    """

    def command(
        config: ConfigFile,
        output_dir: Annotated[Path, typer.Option("--output_dir", help="where checkpoints and logs go")] = Path(
            default_output
        ),
        resume: Annotated[str, typer.Option(help="continue a run: auto, or a checkpoint folder")] = "",
        init_from: Annotated[str, typer.Option("--init_from", help="checkpoint that a new run starts from")] = "",
        set_: Overrides = None,
        overwrite: Overwrite = False,
        allow_changed: Annotated[
            bool, typer.Option("--allow_changed", help="--resume: although the data are others than before")
        ] = False,
        rehearse: Annotated[
            bool, typer.Option("--dry_run", help="one step on random data; prints costs", hidden=dry_run is None)
        ] = False,
        score: Annotated[
            bool, typer.Option("--evaluate", help="no training: score val_file and test_file", hidden=evaluate is None)
        ] = False,
    ) -> None:
        _check(resume, init_from, allow_changed, leave_out="--dry_run" if rehearse else "", evaluates=score)
        # in quotation marks, so that YAML does not read a path as something else
        overrides = [*(set_ or []), *([f"init_from={json.dumps(init_from)}"] if init_from else [])]
        settings = load_config(config, config_class, overrides)
        device = distributed.start(settings.device)  # type: ignore[attr-defined]
        # tasks of before these options do not know them
        given = {name: True for name, on in (("overwrite", overwrite), ("allow_changed", allow_changed)) if on}
        if rehearse:
            _offered(dry_run, "--dry_run")(settings, device)
        elif score:
            _offered(evaluate, "--evaluate")(settings, output_dir, device, **given)
        else:
            run(settings, output_dir, resume, device=device, **given)

    command.__doc__ = f"{(help or '').rstrip()}\n\n{UNITS}"
    with lasting_streams(), user_errors():
        run_command(command)


def _check(resume: str, init_from: str, allow_changed: bool, *, leave_out: str, evaluates: bool) -> None:
    """ConfigError for options that exclude each other."""
    if resume and init_from:
        raise ConfigError("--resume continues a run, --init_from starts a new one: give one of them")
    if allow_changed and not resume:
        raise ConfigError("--allow_changed is for --resume: a new run takes any data")
    leave_out = "--resume" if resume else leave_out
    if evaluates and leave_out:
        raise ConfigError(f"--evaluate scores a checkpoint without training: leave out {leave_out}")


def _offered(action: Callable | None, option: str) -> Callable:
    if action is None:
        raise ConfigError(f"this script has no {option}")
    return action
