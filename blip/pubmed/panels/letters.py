"""Reads panel letters with the models that RapidOCR contains (`pip install rapidocr onnxruntime`); no download.

Only the positions where the detector found a letter are read: a figure takes some hundredths of a second.
"""

import logging
from typing import Any

import numpy as np
from PIL import Image

from blip.errors import BlipError

MIN_SCORE = 0.6  # of the reader, 0 to 1
SIDE = 48  # pixels of a line as the reader takes it


class LetterReader:
    """Reads letters at given positions of a figure. BlipError where RapidOCR is not installed."""

    def __init__(self) -> None:
        try:
            from rapidocr import RapidOCR
        except ImportError:
            raise BlipError("reading panel letters needs `pip install rapidocr onnxruntime`") from None
        logging.getLogger("RapidOCR").setLevel(logging.WARNING)
        params = {"Global.log_level": "warning", "EngineConfig.onnxruntime.intra_op_num_threads": 1}
        self.engine = RapidOCR(params=params)

    def __call__(self, image: Image.Image, places: np.ndarray, names: list[str]) -> dict[str, tuple[float, float]]:
        """Name -> position, for those of `names` that are read at one of `places`, (letters, 2) as x and y."""
        found: dict[str, tuple[float, tuple[float, float]]] = {}
        half = max(1.0, max(image.size) * 0.022)  # letters are 1 to 4 % of the longer side of a figure
        for x, y in places.tolist():
            text, score = self._read(image.crop((x - half, y - half, x + half, y + half)).convert("RGB"))
            name = _name(text, names)
            if name and score >= MIN_SCORE and score > found.get(name, (0.0,))[0]:
                found[name] = (score, (x, y))
        return {name: place for name, (_, place) in found.items()}

    def _read(self, crop: Image.Image) -> tuple[str, float]:
        pixels = np.asarray(crop.resize((SIDE, SIDE), Image.Resampling.BICUBIC))
        result: Any = self.engine(pixels, use_det=False, use_cls=False, use_rec=True)
        return (result.txts[0], float(result.scores[0])) if result.txts else ("", 0.0)


def _name(text: str, names: list[str]) -> str:
    """The name that a text stands for: the same, or else one that differs in case; "" for none."""
    bare = text.strip(" ().,:;[]")
    if bare in names:
        return bare
    return next((name for name in names if name.lower() == bare.lower()), "")
