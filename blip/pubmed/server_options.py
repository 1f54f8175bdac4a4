"""Options of `blip pubmed search` and `fetch` that are about servers, such as the limits of an exchange."""

from typing import Annotated

import typer

MaxSeconds = Annotated[
    float, typer.Option("--max_seconds", min=0.1, help="of one exchange with a server, its whole answer included")
]
MaxMb = Annotated[float, typer.Option("--max_mb", min=0.001, help="megabytes of one file")]
MaxAnswerMb = Annotated[
    float, typer.Option("--max_answer_mb", min=0.001, help="megabytes of a listing, of metadata or a page of results")
]
MaxRatio = Annotated[
    float, typer.Option("--max_ratio", min=1, help="bytes after decompression for each byte that a server sends")
]
MaxWait = Annotated[
    float, typer.Option("--max_wait", min=0.1, help="seconds to wait at most when a server asks for it")
]
Downloads = Annotated[int, typer.Option("--num_workers", "--workers", min=1, help="downloads at the same time")]
