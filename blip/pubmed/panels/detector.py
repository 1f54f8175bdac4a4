"""A small one-stage detector for CPUs that finds panels which are not separated by gutters.

The whole figure, at 384 x 384, becomes 48 x 48 places. For each place the network predicts how near it is to the centre
of a panel, the distances to the four sides of that panel (as in FCOS, Tian et al. 2019), whether a panel letter is
there, and which one it would be. Attention over 12 x 12 places makes the whole layout available, on which the end of a
panel often depends.

    B figures   C channels   S places along a side
"""

import json
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor, nn
from torchvision.ops import box_iou, nms

from blip.errors import BlipError
from blip.files import write_whole

SIDE = 384  # pixels of the longer side of a figure as the network reads it
STRIDE = 8  # pixels for each place
PLACES = SIDE // STRIDE
ALPHABET = 26  # letters, large and small ones alike
VOTES = 0.5  # IoU of the boxes of neighbouring places that are averaged
WEIGHTS = "detector.safetensors"  # beside this file, in the package


class DetectorError(BlipError):
    """Weights that cannot be read."""


@dataclass
class Panels:
    """Panels and letters of a figure in its own pixels, highest score first."""

    boxes: np.ndarray  # (panels, 4): left, top, right, bottom
    scores: np.ndarray  # (panels,), 0 to 1
    letters: np.ndarray  # (letters, 2): the centre of each panel letter, x and y
    letter_scores: np.ndarray  # (letters,)
    letter_names: np.ndarray = field(default_factory=lambda: np.zeros((0, ALPHABET)))
    """(letters, 26): the probability of A, B, and so on; no rows where the weights do not tell."""


class Block(nn.Module):
    """Two convolutions with a residual connection; (B, C, S, S) -> (B, C, S, S)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = _conv(width, width), _conv(width, width, act=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.second(self.first(x)))


class Attention(nn.Module):
    """Attention between all places; (B, C, S, S) -> (B, C, S, S)."""

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
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(B, S * S, C)
        rows = rows + self.out(mixed)
        rows = rows + self.ffn(rows)
        return rows.transpose(1, 2).view(B, C, S, S)


class Detector(nn.Module):
    """RGB in [0, 1], (B, 3, 384, 384) -> (B, 32, 48, 48): panel and letter logits, four distances, logits of 26 names.

    Other sides are possible that 32 divides; training begins with smaller ones.

    Args:
        names: whether it also tells letters apart; without, the output has 6 channels.
    """

    def __init__(self, names: bool = True) -> None:
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
        last.bias = nn.Parameter(torch.full((6,), -2.0))  # few places are the centre of a panel
        self.head = nn.Sequential(_conv(64, 64), last)
        self.names = nn.Sequential(_conv(64, 64), nn.Conv2d(64, ALPHABET, 1)) if names else None

    def forward(self, image: Tensor) -> Tensor:
        fine = self.fine(self.stem(image * 2 - 1))
        middle = self.middle(fine)
        coarse = self.coarse(middle)
        place: Tensor = self.place
        if coarse.shape[-1] != place.shape[-1]:  # a smaller picture, in training
            place = F.interpolate(place, size=coarse.shape[-2:], mode="bilinear", align_corners=False)
        coarse = self.look(coarse + place)
        middle = self.join_middle(middle + F.interpolate(self.from_coarse(coarse), scale_factor=2.0))
        fine = self.join_fine(fine + F.interpolate(self.from_middle(middle), scale_factor=2.0))
        out = self.head(fine)
        found = [out[:, :2], out[:, 2:].sigmoid(), *([self.names(fine)] if self.names is not None else [])]
        return torch.cat(found, dim=1)


def _conv(width_in: int, width: int, size: int = 3, stride: int = 1, act: bool = True) -> nn.Sequential:
    conv = nn.Conv2d(width_in, width, size, stride, padding=(size - 1) // 2 if stride < size else 0, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(width), nn.ReLU() if act else nn.Identity())


def centers(places: int = PLACES) -> Tensor:
    """The centre of every place as a share of the side, (2, places, places): x, then y."""
    at = (torch.arange(places) + 0.5) / places
    return torch.stack([at.expand(places, places), at[:, None].expand(places, places)])


def boxes_of(out: Tensor) -> Tensor:
    """Output of the network, (..., 6 or 32, S, S) -> boxes as shares of the side, (..., 4, S, S)."""
    x, y = centers(out.shape[-1]).to(out)
    left, top, right, bottom = out[..., 2:6, :, :].unbind(-3)
    return torch.stack([x - left, y - top, x + right, y + bottom], dim=-3)


def prepare(image: Image.Image) -> tuple[np.ndarray, float]:
    """(the figure at 384 x 384 as (384, 384, 3) bytes, padded with the colour of its corner; its scale)."""
    scale = SIDE / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    small = image.convert("RGB").resize(size, Image.Resampling.BOX if scale < 0.5 else Image.Resampling.BILINEAR,
                                        reducing_gap=2.0)  # fmt: skip
    out = np.empty((SIDE, SIDE, 3), dtype=np.uint8)
    pixels = np.asarray(small)
    out[:] = pixels[-1, -1]
    out[: size[1], : size[0]] = pixels
    return out, scale


def read(out: Tensor, scale: float, size: tuple[int, int], *, threshold: float = 0.05) -> Panels:
    """The output of the network for one figure as panels in pixels of the figure.

    Args:
        out: (6 or 32, S, S).
        scale: of the figure, from `prepare`.
        size: width and height of the figure in pixels.
        threshold: panels with a lower score are left out.
    """
    out = out.float()
    panel, letter = out[0].sigmoid(), out[1].sigmoid()
    width, height = size
    boxes = boxes_of(out).flatten(1).T * SIDE / scale
    boxes = torch.minimum(boxes, torch.tensor([width, height, width, height])).clamp(min=0)
    scores = panel.flatten()
    keep = (scores > threshold) & (boxes[:, 2:] - boxes[:, :2] >= 1).all(1)
    boxes, scores = boxes[keep], scores[keep]
    kept = nms(boxes, scores, 0.4)
    votes = (box_iou(boxes[kept], boxes) > VOTES) * scores  # (kept, boxes): each box becomes the mean of its neighbours
    mean = votes @ boxes / votes.sum(1, keepdim=True)
    peak = (F.max_pool2d(letter[None], 3, 1, 1)[0] == letter) & (letter > 0.3)
    row, column = peak.nonzero().unbind(1)
    middles = (torch.stack([column, row], dim=1) + 0.5) * STRIDE / scale
    order = letter[peak].argsort(descending=True)
    names = out[6:].softmax(0)[:, peak].T  # (letters, 26)
    found = mean, scores[kept], middles[order], letter[peak][order], names[order] if len(out) > 6 else names.T
    return Panels(*(part.numpy() for part in found))


class PanelDetector:
    """The trained network.

    Args:
        weights: a safetensors file; the one of the package without.
        device: such as "cpu" or "cuda".

    Raises:
        DetectorError: the weights cannot be read.
    """

    def __init__(self, weights: Path | None = None, device: str = "cpu") -> None:
        path = weights or Path(str(files("blip.pubmed.panels").joinpath(WEIGHTS)))
        self.device = torch.device(device)
        self.net = load(path).to(self.device).to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def __call__(self, images: list[Image.Image]) -> list[Panels]:
        """The panels of several figures, of any sizes."""
        ready = [prepare(image) for image in images]
        pixels = torch.from_numpy(np.stack([pixels for pixels, _ in ready])).to(self.device)
        out = self.net(pixels.permute(0, 3, 1, 2).float() / 255).cpu()
        return [read(one, scale, image.size) for one, (_, scale), image in zip(out, ready, images, strict=True)]


def load(path: Path) -> Detector:
    """A trained network in evaluation mode; DetectorError where the file is missing or has other tensors."""
    try:
        with safe_open(str(path), "pt") as file:
            state = {name: file.get_tensor(name).float() for name in file.keys()}  # noqa: SIM118 (no dict)
        net = Detector(names=any(name.startswith("names.") for name in state)).eval()
        net.load_state_dict(state)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise DetectorError(f"{path}: no weights of this detector ({str(error).splitlines()[0]})") from None
    return net


def save(net: Detector, path: Path, about: dict[str, object]) -> None:
    """Writes the weights in half precision; `about`, the settings of the training, becomes their metadata."""
    state = {n: (t.half() if t.is_floating_point() else t).contiguous() for n, t in net.state_dict().items()}
    write_whole(path, to_bytes(state, metadata={"about": json.dumps(about)}))
