"""`blip show` and `blip report`: pages of data, of results and of runs."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from blip.command_line import (
    ColumnNames,
    DatasetForm,
    Device,
    ImageRoot,
    MaxImageMb,
    Overwrite,
    TokenizerFile,
    alone,
    as_input,
    say,
    user_errors,
)
from blip.data.columns import parse_columns
from blip.data.image_bytes import MAX_MB
from blip.errors import InputError
from blip.html_page import write_page
from blip.inference.opening import Channels, Reads, Window, load_model
from blip.outputs import claim_output
from blip.train.evaluated import weights_of

if TYPE_CHECKING:
    from blip.inference.predictor import Predictor

YES_OR_NO = {"yes": True, "no": False, "": None}


def show(
    place: Annotated[
        str, typer.Argument(metavar="DATA|RUN|RESULTS.json", help="data, the folder of a run, or a file of results")
    ],
    out: Annotated[Path, typer.Option(help="page.html or grid.png")] = Path("show.html"),
    limit: Annotated[int, typer.Option(min=0, help="records to show; 0: all")] = 20,
    sort: Annotated[str, typer.Option(help="file, worst or best")] = "file",
    type_: Annotated[str, typer.Option("--type", help="of questions: closed or open, or a category")] = "",
    correct: Annotated[str, typer.Option(help="yes or no: outputs that are right or wrong; all unless given")] = "",
    map_: Annotated[
        bool, typer.Option("--map", help="draw what the model's output depends on over each image")
    ] = False,
    checkpoint: Annotated[str, typer.Option(help="whose maps are drawn; the run's own unless given")] = "",
    dataset: DatasetForm = "json",
    split: Annotated[str, typer.Option(help="validation or test of a run; train, validation or test of data")] = "",
    columns: ColumnNames = None,
    image_root: ImageRoot = "",
    max_image_mb: MaxImageMb = MAX_MB,
    window: Window = None,
    channels: Channels = None,
    tokenizer: TokenizerFile = "",
    device: Device = "auto",
    overwrite: Overwrite = False,
) -> None:
    """Shows images with texts, true answers, outputs and scores: of data, of a run, or of a file of results."""
    from blip.reports.grid import check_ending, described, make_grid, write_grid
    from blip.reports.items import Choice
    from blip.reports.sources import open_source

    with user_errors():
        if correct not in YES_OR_NO:
            raise InputError(f"--correct is {correct!r}; it can be yes or no")
        reads = Reads(max_image_mb, window=window, channels=channels)
        choice = Choice(limit, sort, type_, YES_OR_NO[correct])
        check_ending(out)
        own = parse_columns(columns or [])
        source = open_source(place, dataset=dataset, split=split, columns=own, image_root=image_root)
        items = choice.of(source.items, source.place)
        shown_by = as_input(
            limit=limit, sort=sort, type=type_, correct=correct, map=map_, dataset=dataset, split=split, columns=own
        )
        shown_by += reads.chosen
        inputs = [place, source.place, *(path for item in items for path in item.images), checkpoint, shown_by]
        claim = claim_output(out, "show", inputs=filter(None, inputs), overwrite=overwrite)
        with alone(claim), claim.writing():
            model = _model(checkpoint, source.run, tokenizer, device, reads=reads) if map_ else None
            grid = make_grid(source, choice, items, model=model, limits=reads.limits if model is None else model.limits)
            write_grid(grid, out)
        say(f"{described(grid)}: {out}")


def _model(checkpoint: str, run: Path | None, tokenizer: str, device: str, *, reads: Reads) -> "Predictor":
    """The model whose maps are drawn: the named one, else the best or the newest of the run."""
    if not checkpoint:
        places = [] if run is None else [run, run.parent.parent]  # the run, or an evaluation in its folder
        found = next(filter(None, map(weights_of, places)), None)
        if found is None:
            raise InputError("--map draws what a model's outputs depend on: name it with --checkpoint")
        checkpoint = str(found)
    return load_model(checkpoint, tokenizer, device, reads)


def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="the folder of a run; several are compared")],
    out: Annotated[
        Path | None, typer.Option(help="page to write; report.html in the run's folder unless given")
    ] = None,
    max_image_mb: MaxImageMb = MAX_MB,
    window: Window = None,
    channels: Channels = None,
    overwrite: Overwrite = False,
) -> None:
    """Writes one page on a run: settings, losses, scores, samples, speed and data; several runs are compared."""
    from blip.reports import run_page

    with user_errors():
        reads = Reads(max_image_mb, window=window, channels=channels)
        out = out or (runs[0] / run_page.DEFAULT_NAME if len(runs) == 1 else Path(run_page.DEFAULT_NAME))
        if out.suffix != ".html":
            raise InputError(f"{out}: --out has to end in .html")
        found = run_page.read_runs(runs)
        inputs = [f"runs {' '.join(map(str, runs))}", *filter(None, [reads.chosen])]
        claim = claim_output(out, "report", inputs=inputs, overwrite=overwrite)
        with alone(claim), claim.writing():
            write_page(out, run_page.page_of(found, reads.limits))
        say(str(out))
