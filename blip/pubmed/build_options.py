"""Options of `blip pubmed split` and `build` that take several lines."""

from pathlib import Path
from typing import Annotated

import typer

Shares = Annotated[
    tuple[float, float, float], typer.Option("--split_shares", "--splits", help="shares of train, val, test")
]
KeepWhole = Annotated[
    bool, typer.Option("--keep_whole/--no_keep_whole", " /--no_whole", help="compound figures that were not divided")
]
MinConfidence = Annotated[float, typer.Option("--min_confidence", "--confidence", min=0, max=1, help="of a sub-figure")]
MaxAspect = Annotated[float, typer.Option("--max_aspect", min=1, help="longer side divided by the shorter one")]
SplitCaptions = Annotated[
    Path | None, typer.Option("--split_captions", "--splits", help="captions that were split elsewhere: .jsonl")
]
NotWords = Annotated[str, typer.Option("--not_words", help="a caption has none of these, such as flowchart,diagram")]
