"""A run, by its folder: its log, curves, samples, scores and weights, while it is going on or afterwards."""

import os
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blip.checkpoints.format import INFO, CheckpointError
from blip.checkpoints.info import read_info
from blip.config import load_config, with_options
from blip.errors import InputError, visible
from blip.runs.figures import shown
from blip.runs.scores import Scores, scores_of_run
from blip.runs.tables import FIRST, epochs_of, html_table, table
from blip.tasks.entries import entry_of
from blip.train.evaluated import weights_of
from blip.train.folder import CONFIG
from blip.train.history import METRICS, History, read_history

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from blip.inference.predictor import Predictor


class Run:
    """A run in a folder: of `blip.finetune`, of `blip.pretrain` or of a training script.

    Everything is read from the folder when it is asked for, so that a run that goes on elsewhere can be watched.

    Attributes:
        folder: the run's folder: checkpoints, `config.yaml`, logs, results.

    Example:
        >>> trained = blip.finetune("vqa", "questions.json", init_from="checkpoint", image_size=32, max_steps=2)
        >>> run = blip.Run(trained.folder)
        >>> table, model = run.history, run.best()
    """

    folder: Path

    def __init__(self, folder: str | os.PathLike[str]):
        """Opens a run.

        Raises:
            InputError: the folder holds no run.
        """
        self.folder = Path(folder).expanduser()
        if not any((self.folder / name).is_file() for name in (CONFIG, METRICS)):
            there = f"it has neither {CONFIG} nor {METRICS}" if self.folder.is_dir() else "there is no such folder"
            raise InputError(f"{self.folder} is no run: {there}")

    # ---- what it has logged

    @property
    def history(self) -> Any:
        """A row for each epoch: step, epoch, losses of training and validation, learning rate, scores.

        A DataFrame of pandas where it is installed, otherwise a list of dictionaries. Losses are in nats, scores are
        shares from 0 to 1. ReadError where the log is damaged.
        """
        return table(epochs_of(self._history()), FIRST)

    @property
    def steps(self) -> Any:
        """A row for every few steps: step, epoch, losses since the row before, learning rate, images a second."""
        return table(self._history().steps, ("step", "epoch", "loss", "lr"))

    def _history(self) -> History:
        return read_history(self.folder) if (self.folder / METRICS).is_file() else History(self.folder)

    def plot(self, *others: "Run | str | os.PathLike[str]") -> "Figure":
        """Curves of losses, scores and learning rate; those of other runs are drawn over them.

        Returns:
            A figure of matplotlib, which notebooks display; elsewhere its `savefig` writes it to a file.

        Raises:
            CurveError: nothing is logged yet, or matplotlib is not installed.
        """
        from blip.reports.curves import overview

        runs = [self, *(other if isinstance(other, Run) else Run(other) for other in others)]
        names = [run.folder.name for run in runs] if others else []
        return shown(overview([run._history() for run in runs], names))

    def show(
        self, count: int = 9, *, sort: str = "file", split: str = "", type: str = "", correct: bool | None = None
    ) -> "Figure":
        """Pictures of records with question, true answer and what the model answered, of the last evaluation.

        Args:
            count: records.
            sort: file, worst or best.
            split: validation or test; whichever was evaluated unless given.
            type: of questions: closed or open, or a category.
            correct: True: those that are answered right; False: the others.

        Returns:
            A figure of matplotlib.

        Raises:
            InputError: there are no such records, such as in a run without `val`.
            PictureError: matplotlib is not installed.
        """
        from blip.reports.grid import show
        from blip.reports.grid_picture import grid_figure
        from blip.reports.items import Choice

        choice = Choice(count, sort, type, correct)
        return shown(grid_figure(show(self.folder, choice=choice, split=split)))

    @property
    def scores(self) -> Scores:
        """Scores of the best weights on the validation records, and of the test, with intervals."""
        return scores_of_run(self.folder)

    def report(self, out: str | Path | None = None, *, overwrite: bool = False) -> Path:
        """Writes one page on the run: settings, losses, scores, samples, speed, data; see `blip report`.

        Args:
            out: the page; report.html in the run's folder unless given.
            overwrite: another file of that name may be replaced.

        Returns:
            The path of the page.

        Raises:
            OutputError: the file is there and no report.
        """
        from blip.html_page import write_page
        from blip.outputs import claim_output, writing
        from blip.reports.run_page import DEFAULT_NAME, page_of, read_runs

        path = Path(out) if out is not None else self.folder / DEFAULT_NAME
        if path.suffix != ".html":
            raise InputError(f"{path}: the name of a page ends in .html")
        claim = claim_output(path, "report", inputs=[f"runs {self.folder}"], overwrite=overwrite)
        with writing(claim):
            write_page(path, page_of(read_runs([self.folder])))
        return path

    # ---- its weights

    def weights(self) -> Path:
        """The best weights by the validation, else the newest checkpoint. CheckpointError where there is neither."""
        found = weights_of(self.folder)
        if found is None:
            raise CheckpointError(f"{self.folder} holds no checkpoint yet")
        return found

    @property
    def task(self) -> str:
        """What it is trained for, such as vqa; "" before its first checkpoint."""
        found = weights_of(self.folder)
        return str(read_info(found / INFO).get("task", "")) if found is not None else ""

    def best(self, device: str = "auto", **options: Any) -> "Predictor":
        """The model with the best weights, ready to caption, answer or match; the newest without a validation.

        Args:
            device: `auto`, which is a GPU if there is one, `cpu` or `cuda`.
            options: of `blip.load`.

        Raises:
            CheckpointError: there is no checkpoint yet.
        """
        from blip.inference.load import load

        return load(self.weights(), device, **options)

    def resume(self, *, allow_changed: bool = False, **options: Any) -> "Run":
        """Continues the run from its newest checkpoint, to its end or further.

        Args:
            allow_changed: although the data are others than before.
            options: keys of its configuration that change, such as `epochs`; those of the model cannot.

        Returns:
            The same run.

        Raises:
            CheckpointError: there is no checkpoint yet.
            ConfigError: an option cannot be used, or the data have changed.
        """
        from blip.runs.session import train_in

        self.weights()
        entry = entry_of(self.task)
        config = with_options(load_config(self.folder / CONFIG, entry.config), options, "run.resume(...)")
        train_in(self.folder, entry, config, resume="auto", allow_changed=allow_changed)
        return self

    # ---- how it is shown

    def __repr__(self) -> str:
        return f"<Run {self.folder}{f' of {self.task}' if self.task else ''}>"

    def _repr_html_(self) -> str:
        """Its folder and the last rows of its history."""
        rows = epochs_of(self._history())[-3:]
        names = [name for name in FIRST if any(name in row for row in rows)]
        cells = [[f"{row[name]:.4g}" if name in row else "" for name in names] for row in rows]
        head = f"<p>{escape(visible(repr(self)))}</p>"
        return head + (html_table(names, cells) if rows else "")


def open_run(folder: str | os.PathLike[str]) -> Run:
    """The run in a folder, as `Run(folder)`. InputError where there is none."""
    return Run(folder)
