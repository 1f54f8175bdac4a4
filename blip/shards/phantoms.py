"""`blip phantoms`: draws a data set, of single pictures or of studies of several."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from blip.command_line import Overwrite, alone, as_input, say, seed_option, user_errors
from blip.errors import InputError
from blip.outputs import claim_output


def phantoms(
    out: Annotated[Path, typer.Argument(help="folder to write")],
    count: Annotated[int, typer.Option(help="images, or studies")] = 1000,
    seed: Annotated[int, seed_option("of the random images")] = 0,
    image_size: Annotated[int, typer.Option("--image_size", help="pixels a side")] = 48,
    max_lesions: Annotated[int, typer.Option("--max_lesions", help="lesions of an image at most")] = 3,
    noise: Annotated[float, typer.Option(help="share of wrong captions; records mark them")] = 0.0,
    name_one: Annotated[bool, typer.Option("--name_one", help="captions name one of the lesions")] = False,
    views: Annotated[int, typer.Option(min=0, help="2: studies of a frontal and a lateral view")] = 0,
    volume: Annotated[int, typer.Option(min=0, help="studies of so many slices")] = 0,
    video: Annotated[int, typer.Option(min=0, help="studies of so many frames of a lesion that may change")] = 0,
    overwrite: Overwrite = False,
) -> None:
    """Draws a data set of scanner-like phantoms with captions and questions: images, or studies of several pictures."""
    from blip.data import phantom_studies, phantoms

    with user_errors():
        kind, pictures = chosen_study(views=views, volume=volume, video=video)
        options: dict[str, Any] = {"image_size": image_size}
        of_one = {"max_lesions": max_lesions, "noise": noise, "name_one": name_one}
        write: Callable[..., Path]
        if kind:
            if changed := [name for name, value in of_one.items() if value != {"max_lesions": 3}.get(name, 0)]:
                raise InputError(f"--{changed[0]} is for phantoms of one picture; studies have one lesion each")
            phantom_studies.check_study(kind, pictures)
            options |= {"kind": kind, "pictures": pictures}
            write = phantom_studies.write_studies
            images = [name for i in range(count) for name in phantom_studies.picture_names(kind, i, pictures)]
            names = [*phantom_studies.ANNOTATIONS, *images]
        else:
            options |= of_one
            write = phantoms.write_phantoms
            names = [*phantoms.ANNOTATIONS, *map(phantoms.image_name, range(count))]
        drawn_by = as_input(count=count, seed=seed, **options)  # another set is no repetition of this one
        claim = claim_output(out, "phantoms", inputs=[drawn_by], folder=True, overwrite=overwrite, names=names)
        with alone(claim), claim.writing() as written:
            path = write(out, count=count, seed=seed, **options)
            written += names
        say(f"{count} {'studies' if kind else 'phantoms'}: {path}")


def chosen_study(**pictures: int) -> tuple[str, int]:
    """(the kind of study that is asked for, its number of pictures), or ("", 0); InputError where two are."""
    chosen = {kind: number for kind, number in pictures.items() if number}
    if len(chosen) > 1:
        raise InputError(f"choose one of {', '.join('--' + kind for kind in chosen)}: a study is of one kind")
    return next(iter(chosen.items()), ("", 0))
