"""Reads the letters of panels, by RapidOCR's bundled models (`pip install rapidocr onnxruntime`); no download.

Only the places where the detector saw a letter are read, so that a figure takes some hundredths of a second.
"""

import logging
from typing import Any

import numpy as np
from PIL import Image

from blip.errors import BlipError

SURE = 0.6  # of the reader, 0 to 1
SIDE = 48  # pixels of the reader's lines


class LetterReader:
    """Takes a figure and places in it, returns what stands there."""

    def __init__(self) -> None:
        try:
            from rapidocr import RapidOCR
        except ImportError:
            raise BlipError("reading panel letters needs `pip install rapidocr onnxruntime`") from None
        logging.getLogger("RapidOCR").setLevel(logging.WARNING)
        params = {"Global.log_level": "warning", "EngineConfig.onnxruntime.intra_op_num_threads": 1}
        self.engine = RapidOCR(params=params)

    def __call__(self, image: Image.Image, places: np.ndarray, names: list[str]) -> dict[str, tuple[float, float]]:
        """Which of `names` stand at which of `places`, (letters, 2) as x and y; each name once, at its surest place."""
        found: dict[str, tuple[float, tuple[float, float]]] = {}
        half = max(image.size) * 0.022  # letters are 1 to 4 % of a figure's longer side
        for x, y in places.tolist():
            text, score = self._read(image.convert("RGB").crop((x - half, y - half, x + half, y + half)))
            name = _name(text, names)
            if name and score >= SURE and score > found.get(name, (0.0,))[0]:
                found[name] = (score, (x, y))
        return {name: place for name, (_, place) in found.items()}

    def _read(self, crop: Image.Image) -> tuple[str, float]:
        pixels = np.asarray(crop.resize((SIDE, SIDE), Image.Resampling.BICUBIC))
        result: Any = self.engine(pixels, use_det=False, use_cls=False, use_rec=True)
        return (result.txts[0], float(result.scores[0])) if result.txts else ("", 0.0)


def _name(text: str, names: list[str]) -> str:
    """The name that a text shows: as it is, or in the other case where the caption's and the figure's differ."""
    bare = text.strip(" ().,:;[]")
    if bare in names:
        return bare
    return next((name for name in names if name.lower() == bare.lower()), "")
