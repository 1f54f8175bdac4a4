"""What all phantoms are drawn and written with: bodies, lesions, noise; pictures and annotation files."""

import json
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from blip.files import write_one_of_many, write_whole

OVERSAMPLING = 4  # pictures are drawn larger and reduced, which makes edges smooth


def draw_body(rng: np.random.Generator, body: str, side: int) -> Image.Image:
    """The outline and two or three organs, each a little different every time."""
    canvas = Image.new("L", (side, side), 0)
    pen = ImageDraw.Draw(canvas)

    def ellipse(x: float, y: float, w: float, h: float, grey: float) -> None:
        """Centre and half axes as shares of the side, each varied by up to 2 %."""
        x, y, w, h = (v + rng.uniform(-0.02, 0.02) for v in (x, y, w, h))
        box = [(x - w) * side, (y - h) * side, (x + w) * side, (y + h) * side]
        pen.ellipse(box, fill=int(grey + rng.uniform(-8, 8)))

    if body == "head":
        ellipse(0.5, 0.5, 0.42, 0.47, 200)  # skull
        ellipse(0.5, 0.5, 0.38, 0.43, 120)  # brain
        ellipse(0.46, 0.5, 0.03, 0.1, 90)  # ventricles
        ellipse(0.54, 0.5, 0.03, 0.1, 90)
    elif body == "chest":
        ellipse(0.5, 0.5, 0.47, 0.45, 150)
        ellipse(0.29, 0.5, 0.16, 0.34, 95)  # lungs
        ellipse(0.71, 0.5, 0.16, 0.34, 95)
    else:
        ellipse(0.5, 0.5, 0.48, 0.4, 125)
        ellipse(0.3, 0.42, 0.15, 0.17, 145)  # liver, on the image's left as seen from the feet
        ellipse(0.5, 0.8, 0.06, 0.06, 190)  # spine
    return canvas


def paint(canvas: Image.Image, shape: str, circle: tuple[float, float, float], grey: int) -> None:
    """Draws one of SHAPES into a circle: x and y of its centre and its radius, in pixels of `canvas`."""
    pen = ImageDraw.Draw(canvas)
    x, y, radius = circle
    box = (x - radius, y - radius, x + radius, y + radius)
    if shape == "round":
        pen.ellipse(box, fill=grey)
    elif shape == "square":
        pen.rectangle(box, fill=grey)
    elif shape == "ring":
        pen.ellipse(box, outline=grey, width=int(radius * 0.45))
    else:
        arm = radius * 0.33
        pen.rectangle((x - radius, y - arm, x + radius, y + arm), fill=grey)
        pen.rectangle((x - arm, y - radius, x + arm, y + radius), fill=grey)


def developed(rng: np.random.Generator, canvas: Image.Image, image_size: int) -> Image.Image:
    """A canvas reduced to a picture of `image_size` pixels a side, with noise of 4 grey levels."""
    picture = canvas.resize((image_size, image_size), Image.Resampling.BOX)
    pixels = np.asarray(picture, dtype=np.float32) + rng.normal(0, 4, (image_size, image_size))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def write_picture(path: Path, image: Image.Image) -> None:
    """Writes one of the many PNG files of a set."""
    png = BytesIO()
    image.save(png, "PNG")
    write_one_of_many(path, png.getvalue())


def write_records(path: Path, content: list[dict]) -> Path:
    """Writes an annotation file, a record a line, whole -> its path."""
    write_whole(path, "[\n" + ",\n".join(json.dumps(record) for record in content) + "\n]\n")
    return path
