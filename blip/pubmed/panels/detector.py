"""Finds the panels of a compound figure where no gutter shows them: a small one-stage detector, for CPUs.

The whole figure, at 384 x 384, becomes 48 x 48 places. Each tells how near it is to the middle of a panel, how far that
panel reaches to each side (as FCOS, Tian et al. 2019), and whether a panel's letter stands there. Places look at one
another once, by attention over 12 x 12 of them: where a panel ends is often told only by the rest of the layout.

    B figures   C channels   S places along a side
"""

import json
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torchvision.ops import nms

from blip.errors import BlipError

SIDE = 384  # pixels that a figure is brought to
STRIDE = 8  # pixels a place
PLACES = SIDE // STRIDE
WEIGHTS = "detector.safetensors"  # beside this file, in the package


class DetectorError(BlipError):
    """Weights that cannot be read; the message says why."""


@dataclass
class Panels:
    """What was found in a figure, in its own pixels, surest first."""

    boxes: np.ndarray  # (panels, 4): left, top, right, bottom
    scores: np.ndarray  # (panels,), 0 to 1
    letters: np.ndarray  # (letters, 2): the middle of each panel letter, x and y
    letter_scores: np.ndarray  # (letters,)


class Block(nn.Module):
    """Two convolutions with a way past them."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = _conv(width, width), _conv(width, width, act=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.second(self.first(x)))


class Attention(nn.Module):
    """Every place looks at every other one."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm, self.heads = nn.LayerNorm(width), heads
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        wide = 2 * width
        self.ffn = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, wide), nn.GELU(), nn.Linear(wide, width))

    def forward(self, x: Tensor) -> Tensor:
        B, C, S, _ = x.shape
        rows = x.flatten(2).transpose(1, 2)  # (B, S*S, C)
        q, k, v = self.qkv(self.norm(rows)).view(B, S * S, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        seen = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(B, S * S, C)
        rows = rows + self.out(seen)
        rows = rows + self.ffn(rows)
        return rows.transpose(1, 2).view(B, C, S, S)


class Detector(nn.Module):
    """RGB in [0, 1], (B, 3, 384, 384) -> (B, 6, 48, 48): panel and letter logits, then the four distances."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(_conv(3, 32, size=4, stride=4), _conv(32, 64, stride=2))  # 96, 48 places
        self.fine = nn.Sequential(Block(64), Block(64))
        self.middle = nn.Sequential(_conv(64, 112, stride=2), Block(112), Block(112))  # 24
        self.coarse = nn.Sequential(_conv(112, 160, stride=2), Block(160), Block(160))  # 12
        self.place = nn.Parameter(torch.zeros(1, 160, PLACES // 4, PLACES // 4))
        self.look = nn.Sequential(Attention(160, 4), Attention(160, 4))
        self.from_coarse, self.from_middle = _conv(160, 112, size=1), _conv(112, 64, size=1)
        self.join_middle, self.join_fine = Block(112), Block(64)
        last = nn.Conv2d(64, 6, 1)
        last.bias = nn.Parameter(torch.full((6,), -2.0))  # few places are the middle of a panel
        self.head = nn.Sequential(_conv(64, 64), last)

    def forward(self, image: Tensor) -> Tensor:
        fine = self.fine(self.stem(image * 2 - 1))
        middle = self.middle(fine)
        coarse = self.look(self.coarse(middle) + self.place)
        middle = self.join_middle(middle + F.interpolate(self.from_coarse(coarse), scale_factor=2.0))
        fine = self.join_fine(fine + F.interpolate(self.from_middle(middle), scale_factor=2.0))
        out = self.head(fine)
        return torch.cat([out[:, :2], out[:, 2:].sigmoid()], dim=1)


def _conv(width_in: int, width: int, size: int = 3, stride: int = 1, act: bool = True) -> nn.Sequential:
    conv = nn.Conv2d(width_in, width, size, stride, padding=(size - 1) // 2 if stride < size else 0, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(width), nn.ReLU() if act else nn.Identity())


def centers() -> Tensor:
    """Middle of every place as a share of the side, (2, 48, 48): x, then y."""
    at = (torch.arange(PLACES) + 0.5) / PLACES
    return torch.stack([at.expand(PLACES, PLACES), at[:, None].expand(PLACES, PLACES)])


def boxes_of(out: Tensor) -> Tensor:
    """(..., 6, S, S) as the net returns it -> boxes as shares of the side, (..., 4, S, S)."""
    x, y = centers().to(out)
    left, top, right, bottom = out[..., 2:, :, :].unbind(-3)
    return torch.stack([x - left, y - top, x + right, y + bottom], dim=-3)


def prepare(image: Image.Image) -> tuple[np.ndarray, float]:
    """A figure at 384 x 384 as (H, W, 3) bytes, padded with its own corner's colour, and how much it shrank."""
    scale = SIDE / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    small = image.convert("RGB").resize(size, Image.Resampling.BOX if scale < 0.5 else Image.Resampling.BILINEAR,
                                        reducing_gap=2.0)  # fmt: skip
    out = np.empty((SIDE, SIDE, 3), dtype=np.uint8)
    pixels = np.asarray(small)
    out[:] = pixels[-1, -1]
    out[: size[1], : size[0]] = pixels
    return out, scale


def read(out: Tensor, scale: float, size: tuple[int, int], threshold: float = 0.05) -> Panels:
    """The net's answer for one figure, (6, S, S), as boxes in the figure's own pixels, `size` (width, height)."""
    out = out.float()
    panel, letter = out[0].sigmoid(), out[1].sigmoid()
    width, height = size
    boxes = boxes_of(out).flatten(1).T * SIDE / scale
    boxes = torch.minimum(boxes, torch.tensor([width, height, width, height])).clamp(min=0)
    scores = panel.flatten()
    keep = (scores > threshold) & (boxes[:, 2:] - boxes[:, :2] >= 1).all(1)
    boxes, scores = boxes[keep], scores[keep]
    kept = nms(boxes, scores, 0.4)
    peak = (F.max_pool2d(letter[None], 3, 1, 1)[0] == letter) & (letter > 0.3)
    row, column = peak.nonzero().unbind(1)
    middles = (torch.stack([column, row], dim=1) + 0.5) * STRIDE / scale
    order = letter[peak].argsort(descending=True)
    found = boxes[kept], scores[kept], middles[order], letter[peak][order]
    return Panels(*(part.numpy() for part in found))


class PanelDetector:
    """The trained net on a CPU or an accelerator.

    Args:
        weights: a safetensors file; the package's own one without.
        device: where it runs.
    """

    def __init__(self, weights: Path | None = None, device: str = "cpu") -> None:
        path = weights or Path(str(files("blip.pubmed.panels").joinpath(WEIGHTS)))
        self.device = torch.device(device)
        self.net = load(path).to(self.device).to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def __call__(self, images: list[Image.Image]) -> list[Panels]:
        """Panels of several figures, of any sizes."""
        ready = [prepare(image) for image in images]
        pixels = torch.from_numpy(np.stack([pixels for pixels, _ in ready])).to(self.device)
        out = self.net(pixels.permute(0, 3, 1, 2).float() / 255).cpu()
        return [read(one, scale, image.size) for one, (_, scale), image in zip(out, ready, images, strict=True)]


def load(path: Path) -> Detector:
    """A trained net for use; DetectorError where the file is missing or of another shape."""
    net = Detector().eval()
    try:
        with safe_open(str(path), "pt") as file:
            net.load_state_dict({name: file.get_tensor(name).float() for name in file.keys()})  # noqa: SIM118 (no dict)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise DetectorError(f"{path}: no weights of this detector ({str(error).splitlines()[0]})") from None
    return net


def save(net: Detector, path: Path, about: dict[str, object]) -> None:
    """Writes the weights in half precision, with what they were trained on as metadata."""
    state = {n: (t.half() if t.is_floating_point() else t).contiguous() for n, t in net.state_dict().items()}
    save_file(state, str(path), metadata={"about": json.dumps(about)})
