"""Runs from Python: `blip.finetune`, `blip.pretrain`, `blip.evaluate`, and what is left of a run, `blip.runs.open`.

    >>> run = blip.runs.open("runs/vqa-1")  # the folder of any run, also of the training scripts

Imports `tasks`, `train`, `data`, `inference`, `checkpoints`, `reports`, `config`, `options`, `console`, `html_page`,
`outputs`, `distributed`, `files` and `errors`; nothing but the package itself imports it. Read `blip/runs/calls.py`
first.

calls       trains and evaluates by the functions that the scripts call
run         a run, by its folder: history, curves, samples, scores, weights
settings    arguments of Python as a configuration
session     what stays as it was in the process, interruptions, new folders
tables      tables that notebooks show, with and without pandas
scores      the scores of a run or an evaluation, with intervals
figures     figures that notebooks show
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from blip.runs.run import Run as Run
    from blip.runs.run import open_run as open  # noqa: F401


def __getattr__(name: str) -> Any:
    if name in ("open", "Run"):  # imported on first use, as all of blip
        from blip.runs import run

        return run.open_run if name == "open" else run.Run
    raise AttributeError(f"module 'blip.runs' has no attribute {name!r}")
