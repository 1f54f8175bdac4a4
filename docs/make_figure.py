"""Draws the figure of the README: a phantom, and the output of the model of `make demo` for it.

python docs/make_figure.py --checkpoint runs/demo/run/checkpoints/latest --answerer runs/vqa_phantoms/best
"""

from pathlib import Path
from typing import Annotated

import matplotlib
import numpy as np
import typer
from PIL import Image

import blip
from blip.data.phantoms import POSITIONS, SHAPES, records

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

SIDE = 48  # pixels: the size that the demo trains on
SEED = 1  # of the demo's held-out images
BLUE, GREY = "#00796b", "#b0bec5"


def main(
    checkpoint: Annotated[str, typer.Option(help="of `make demo`")] = "runs/demo/run/checkpoints/latest",
    answerer: Annotated[str, typer.Option(help="fine-tuned with configs/vqa_phantoms.yaml; without: no answers")] = "",
    number: Annotated[int, typer.Option(help="which held-out phantom")] = 5,
    out: Annotated[Path, typer.Option(help="picture to write")] = Path("docs/assets/figure.png"),
) -> None:
    """Draws the phantom, its caption, answers, match probabilities and relevance map side by side."""
    *_, (record, image) = records(number + 1, SEED, SIDE, max_lesions=1)
    lesion, image = record["lesions"][0], image.convert("RGB")
    model = blip.load(checkpoint)
    texts = candidates(record["caption"], lesion)
    probabilities = model.match_probability(image, texts).tolist()
    (explained,) = blip.explain_pairs(model, image, record["caption"], method="relevance")
    questions = ["what part of the body is shown?", "where is the lesion?", "what shape is the lesion in the "
                 f"{lesion['position']} {lesion['side']}?"] if answerer else []  # fmt: skip
    answers = blip.load(answerer).answer(image, questions) if answerer else []

    figure, (left, middle, right) = plt.subplots(
        1, 3, figsize=(12, 3.4), width_ratios=[1, 2.1, 1], layout="constrained"
    )
    show_image(left, image)
    left.set_title("phantom", fontsize=11)
    lines = [f"caption: {model.caption(image)[0]}"]
    lines += [f"{q}  {a.text} ({a.probability:.2f})" for q, a in zip(questions, answers, strict=True)]
    show_matches(middle, texts, probabilities, "\n".join(lines))
    show_map(right, image, explained.sentence.numpy(), lesion["box"])
    right.set_title("relevance of the caption", fontsize=11)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, dpi=140)
    typer.echo(str(out))


def candidates(caption: str, lesion: dict) -> list[str]:
    """The right caption, and three in which one attribute is wrong: shape, side, position."""
    shape = next(shape for shape in SHAPES if shape != lesion["shape"])
    side = "left" if lesion["side"] == "right" else "right"
    position = next(position for position in POSITIONS if position != lesion["position"])
    place = f"{lesion['position']} {lesion['side']}"
    return [
        caption,
        caption.replace(lesion["shape"], shape),
        caption.replace(place, f"{lesion['position']} {side}"),
        caption.replace(place, f"{position} {lesion['side']}"),
    ]


def show_image(axis: Axes, image: Image.Image) -> None:
    axis.imshow(image, extent=(0, SIDE, SIDE, 0), interpolation="bicubic")
    axis.set_axis_off()


def show_matches(axis: Axes, texts: list[str], probabilities: list[float], title: str) -> None:
    """A bar for each text, the text above its bar."""
    places = np.arange(len(texts))
    axis.barh(places, [1.0] * len(texts), height=0.32, color="#eceff1")
    axis.barh(places, probabilities, height=0.32, color=[BLUE] + [GREY] * (len(texts) - 1))
    for place, text, probability in zip(places, texts, probabilities, strict=True):
        axis.text(0, place - 0.24, text, fontsize=9, va="bottom")
        axis.text(1.01, place, f"{probability:.2f}", fontsize=9, va="center")
    axis.set_ylim(len(texts) - 0.6, -0.75)
    axis.set_xlim(0, 1.08)
    axis.set_title(title, loc="left", fontsize=10)
    axis.set_axis_off()


def show_map(axis: Axes, image: Image.Image, values: np.ndarray, box: list[int]) -> None:
    """The map over the image; the frame is the lesion's true box, which is not given to the model."""
    show_image(axis, image)
    axis.imshow(values, extent=(0, SIDE, SIDE, 0), cmap="inferno", alpha=0.6, interpolation="bilinear")
    left, top, right, bottom = box
    axis.add_patch(Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor="white", linestyle="--"))


if __name__ == "__main__":
    typer.run(main)
