"""Images of any kind in a form that everything here can use."""

import numpy as np
from PIL import Image

ENDINGS = (".jpg", ".jpeg", ".png", ".tif", ".tiff", ".gif", ".webp", ".bmp")  # in order of preference


def plain(image: Image.Image) -> Image.Image:
    """Grey stays grey, 16 bits and floats become 8 bits over their own range, clear pixels white, the rest RGB."""
    if image.mode in ("L", "RGB"):
        return image.copy()
    if image.mode.startswith(("I", "F")):
        values = np.asarray(image).astype(np.float64)
        low, high = np.nanmin(values), np.nanmax(values)
        return Image.fromarray(np.nan_to_num((values - low) * 255 / max(1e-9, high - low)).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        clear = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", clear.size, "white"), clear).convert("RGB")
    return image.convert("RGB")
