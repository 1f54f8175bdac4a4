"""`blip serve`: a model on a page in the browser."""

from pathlib import Path
from typing import Annotated

import typer

from blip.command_line import Device, TokenizerFile, say, user_errors
from blip.serve.limits import Limits

Checkpoints = Annotated[
    list[str],
    typer.Argument(
        metavar="CHECKPOINT...",
        help="checkpoints of any format, one or several; NAME=CHECKPOINT names one for the page",
    ),
]
Images = Annotated[str, typer.Option(help="folder of images and videos that everyone can choose on the page")]
Host = Annotated[str, typer.Option(help="address to listen on; another one than this computer's needs --auth")]
Port = Annotated[int, typer.Option(min=0, max=65535, help="0 takes a free one")]
Auth = Annotated[
    list[str] | None, typer.Option(help="USER:FILE or USER:env:VARIABLE, where the password is; several times")
]
NumThreads = Annotated[
    int, typer.Option("--num_threads", min=0, help="threads of models on the CPU; 0: the cores, shared by the models")
]
MaxImageMb = Annotated[int, typer.Option("--max_image_mb", min=1, help="MiB of an image's file")]
MaxMegapixels = Annotated[int, typer.Option("--max_megapixels", min=1, max=80, help="million pixels of an image")]
MaxFiles = Annotated[int, typer.Option("--max_files", min=1, help="images of a batch, or files of one item")]
MaxUploadMb = Annotated[int, typer.Option("--max_upload_mb", min=1, help="MiB of the files of a batch, and of a video")]
MaxSeconds = Annotated[
    float, typer.Option("--max_seconds", min=1, help="for a request or a batch, before it is given up")
]
QueueSize = Annotated[int, typer.Option("--queue_size", min=1, help="requests that wait; more are refused")]
USUAL = Limits()


def serve(
    checkpoints: Checkpoints,
    images: Images = "",
    host: Host = "127.0.0.1",
    port: Port = 7860,
    auth: Auth = None,
    title: Annotated[str, typer.Option(help="of the page")] = "blip",
    num_threads: NumThreads = 0,
    max_image_mb: MaxImageMb = USUAL.max_image_mb,
    max_megapixels: MaxMegapixels = USUAL.max_megapixels,
    max_files: MaxFiles = USUAL.max_files,
    max_upload_mb: MaxUploadMb = USUAL.max_upload_mb,
    max_seconds: MaxSeconds = USUAL.max_seconds,
    queue_size: QueueSize = USUAL.queue_size,
    tokenizer: TokenizerFile = "",
    device: Device = "auto",
) -> None:
    """Shows a page in the browser: ask about images, caption, match, maps, tables. Not for clinical use."""
    from blip.serve import passwords, site

    with user_errors():
        site.needs_gradio()
        limits = Limits(
            max_image_mb=max_image_mb,
            max_megapixels=max_megapixels,
            max_files=max_files,
            max_upload_mb=max(max_upload_mb, max_image_mb),
            max_seconds=max_seconds,
            queue_size=queue_size,
        )
        where = site.Site(host, port, title, passwords.passwords(auth or []))
        site.check(where)
        with site.listening(where) as bound:
            from blip.serve.served import load_all

            examples = examples_of(images)
            models = load_all(checkpoints, device, tokenizer=tokenizer)
            _bound_threads(num_threads, len(models))
            for served in models.values():
                say(f"{served.name}: {served.title}")
            address = f"http://{'[' + host + ']' if ':' in host else host}:{bound.getsockname()[1]}"
            site.serve(
                models, examples, where, limits=limits, bound=bound,
                ready=lambda: say(f"open {address} in a browser; Ctrl-C ends the server. Not for clinical use."),
            )  # fmt: skip
        site.end_at_once()


def examples_of(folder: str, most: int = 200) -> dict[str, Path]:
    """The first `most` images and videos below a folder, by their paths inside it; none without a folder.

    A folder that holds the DICOM files of one series is one of them, in place of its slices.
    """
    from blip.data.scans.references import has_dicom_name
    from blip.errors import visible

    if not folder:
        return {}
    top = Path(folder)
    paths = [path for path in _files_of(top) if path.resolve().is_relative_to(top.resolve())]
    if not top.is_dir():
        return {top.name: top}
    series = {folder for folder in {path.parent for path in paths} if _is_series(folder)}
    slices = {path for path in paths if path.parent in series and (has_dicom_name(path) or not path.suffix)}
    chosen = list(dict.fromkeys(path.parent if path in slices else path for path in paths))[:most]
    names = [str(path.relative_to(top)) if path != top else top.name for path in chosen]
    return {
        visible(f"{name}/ (volume)" if path in series else name): path for path, name in zip(chosen, names, strict=True)
    }


def _files_of(top: Path) -> list[Path]:
    """The images and videos below a folder, in the order of their names; NoImages where there are none."""
    from blip.data.frame_choice import is_video_name
    from blip.data.images import NoImages, find_images

    videos = [path for path in top.rglob("*") if is_video_name(path.name) and path.is_file()]
    try:
        return sorted({*find_images([top]), *videos})
    except NoImages:
        if not videos:
            raise
        return sorted(videos)


def _is_series(folder: Path) -> bool:
    """Whether a folder holds several files, which are the slices of one DICOM series."""
    from blip.data.scans.series import series_of
    from blip.errors import BlipError

    try:
        return len(series_of(str(folder))) > 1
    except BlipError:
        return False


def _bound_threads(num_threads: int, models: int) -> None:
    import os

    import torch

    torch.set_num_threads(num_threads or max(1, (os.cpu_count() or 1) // models))
