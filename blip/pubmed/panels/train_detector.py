"""Trains the detector of panels on generated compound figures.

    python -m blip.pubmed.panels.train_detector --out detector.safetensors --images FOLDER [--images FOLDER]

`--images` names folders of single photographs and scans, which are used beside drawings. The weights of the package
take about an hour on two CPU cores, or a few minutes on a GPU.
"""

import multiprocessing
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
import typer
from torch import Tensor

from blip.data.images import find_images
from blip.pubmed.panels.compose import compose
from blip.pubmed.panels.detector import PLACES, SIDE, STRIDE, Detector, boxes_of, centers, load, prepare, save

MOST = 40  # panels of a figure, and letters


def draw(seed: int, images: list[Path]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One figure: pixels (384, 384, 3), boxes (40, 4) and letters (40, 2) in those pixels, padded with NaN."""
    figure = compose(np.random.default_rng(seed), images)
    pixels, scale = prepare(figure.image)
    boxes, letters = np.full((MOST, 4), np.nan, np.float32), np.full((MOST, 2), np.nan, np.float32)
    for into, what in ((boxes, figure.boxes), (letters, figure.letters)):
        some = np.array(what[:MOST], np.float32).reshape(-1, into.shape[1]) * scale
        into[: len(some)] = some
    return pixels, boxes, letters


def vary(
    pixels: Tensor, boxes: Tensor, letters: Tensor, *, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Changes size, position, brightness, contrast, colour and noise of each figure of a batch.

    Args:
        pixels, boxes, letters: (B, 384, 384, 3) bytes, (B, 40, 4) and (B, 40, 2), as `draw` returns them.

    Returns:
        images (B, 3, 384, 384) in [0, 1], boxes and letters of the same shapes.
    """
    B = len(pixels)
    random = torch.rand(B, 6, generator=generator)
    zoom = 0.8 + 0.4 * random[:, 0] ** 2  # a figure may lose its edge, or become smaller
    shift = (random[:, 1:3] - 0.5) * 0.08
    theta = torch.zeros(B, 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = 1 / zoom
    theta[:, :, 2] = (1 - 2 * shift) / zoom[:, None] - 1  # about the upper left corner
    image = pixels.permute(0, 3, 1, 2).float() / 255
    grid = F.affine_grid(theta, list(image.shape), align_corners=False)
    image = F.grid_sample(image, grid, padding_mode="border", align_corners=False)
    offset = (shift * SIDE)[:, None]
    boxes = boxes * zoom[:, None, None] + torch.cat([offset, offset], dim=-1)
    letters = letters * zoom[:, None, None] + offset
    contrast, light, gray = random[:, 3:, None, None, None].unbind(1)
    image = (image - 0.5) * (0.8 + 0.4 * contrast) + 0.5 + (light - 0.5) * 0.1
    image = torch.where(gray < 0.25, image.mean(1, keepdim=True), image)
    image = image + 0.02 * torch.randn(image.shape, generator=generator)
    return image.clamp(0, 1), boxes.clamp(0, SIDE), letters


def targets(boxes: Tensor, letters: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The target of each place.

    Args:
        boxes, letters: (B, 40, 4) and (B, 40, 2) in pixels; NaN where there is none.

    Returns:
        (B, S, S): nearness to the centre of its panel, as the centerness of FCOS; 0 outside panels.
        (B, 4, S, S): the box of the panel as shares of the side.
        (B, S, S): 1 where there is a letter.
    """
    B = len(boxes)
    shares = (boxes / SIDE).nan_to_num(-1.0)  # (B, 40, 4)
    x, y = centers()
    left, top, right, bottom = shares[..., None, None].unbind(2)
    to = torch.stack([x - left, y - top, right - x, bottom - y], dim=2)  # (B, 40, 4, S, S)
    within = to.amin(2) > 0
    area = ((shares[..., 2] - shares[..., 0]) * (shares[..., 3] - shares[..., 1]))[..., None, None]
    chosen = torch.where(within, area, torch.inf).argmin(1)  # the smaller of panels that overlap, (B, S, S)
    to = to.gather(1, chosen[:, None, None].expand(B, 1, 4, PLACES, PLACES))[:, 0].clamp(min=0)
    across, down = to[:, 0::2], to[:, 1::2]
    near = (across.amin(1) / across.amax(1).clamp(min=1e-6)) * (down.amin(1) / down.amax(1).clamp(min=1e-6))
    near = torch.where(within.any(1), near.sqrt(), 0.0)
    box = shares.gather(1, chosen.flatten(1)[..., None].expand(B, PLACES * PLACES, 4))
    letter = torch.zeros(B, PLACES, PLACES)
    figure, which = (~letters.isnan().any(-1) & (letters < SIDE).all(-1) & (letters >= 0).all(-1)).nonzero().unbind(1)
    column, row = (letters[figure, which] / STRIDE).long().unbind(1)
    letter[figure, row, column] = 1
    return near, box.transpose(1, 2).reshape(B, 4, PLACES, PLACES), letter


def loss_of(out: Tensor, near: Tensor, box: Tensor, *, letter: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Losses of panels, boxes and letters: cross-entropy, generalised IoU weighted by nearness, focal cross-entropy.

    Args:
        out: (B, 6, S, S), of the network.
        near, box, letter: from `targets`.
    """
    panel = F.binary_cross_entropy_with_logits(out[:, 0], near)
    inside = near > 0.1
    found, wanted = boxes_of(out).movedim(1, -1)[inside], box.movedim(1, -1)[inside]
    boxes = (near[inside] * (1 - _giou(found, wanted))).sum() / near[inside].sum().clamp(min=1.0)
    p = out[:, 1].sigmoid()
    focal = (letter - p).abs() ** 2 * F.binary_cross_entropy_with_logits(out[:, 1], letter, reduction="none")
    return panel, boxes, focal.sum() / letter.sum().clamp(min=1.0)


def _giou(a: Tensor, b: Tensor) -> Tensor:
    """Generalised IoU of boxes in pairs (Rezatofighi et al. 2019)."""
    area_a, area_b = ((c[:, 2:] - c[:, :2]).prod(1) for c in (a, b))
    both = (torch.minimum(a[:, 2:], b[:, 2:]) - torch.maximum(a[:, :2], b[:, :2])).clamp(min=0).prod(1)
    hull = (torch.maximum(a[:, 2:], b[:, 2:]) - torch.minimum(a[:, :2], b[:, :2])).prod(1)
    union = area_a + area_b - both
    return both / union.clamp(min=1e-6) - (hull - union) / hull.clamp(min=1e-6)


def main(
    *,
    out: Annotated[Path, typer.Option(help="weights to write: .safetensors")],
    images: Annotated[list[Path] | None, typer.Option(help="folder of single photographs or scans")] = None,
    figures: Annotated[int, typer.Option(help="compound figures to compose")] = 12_000,
    steps: int = 8000,
    batch_size: Annotated[int, typer.Option("--batch_size", "--batch")] = 16,
    lr: float = 2e-3,
    seed: int = 0,
    start: Annotated[Path | None, typer.Option(help="weights to start from")] = None,
    num_workers: Annotated[int, typer.Option("--num_workers", "--workers", help="processes that compose")] = 2,
    device: str = "cuda" if torch.cuda.is_available() else "cpu",
) -> None:
    """Composes figures, then trains the detector on them."""
    torch.manual_seed(seed)
    photos = find_images(images or [])
    seeds = range(seed * 10**7, seed * 10**7 + figures)
    data = _composed(seeds, photos, num_workers)
    typer.echo(f"{figures} figures, {int((~data[1][..., 0].isnan()).sum())} panels, {len(photos)} photographs")
    net = Detector().to(device).to(memory_format=torch.channels_last)
    if start:
        net.load_state_dict(load(start).state_dict())
        net.train()
    about: dict[str, object] = {"figures": figures, "batch": batch_size, "seed": seed, "photographs": len(photos)}
    generator = torch.Generator().manual_seed(seed)
    for step in _steps(net, data, generator, steps=steps, batch_size=batch_size, lr=lr):
        if step % 1000 == 0 or step == steps:
            save(net, out, about | {"steps": step})


def _composed(seeds: range, photos: list[Path], num_workers: int) -> tuple[Tensor, Tensor, Tensor]:
    """Pixels, boxes and letters of one figure for each seed."""
    with multiprocessing.get_context("spawn").Pool(num_workers) as pool:
        drawn = list(pool.imap(partial(draw, images=photos), seeds, chunksize=32))
    pixels, boxes, letters = (torch.from_numpy(np.stack(part)) for part in zip(*drawn, strict=True))
    return pixels, boxes, letters


def _steps(net: Detector, data: tuple[Tensor, Tensor, Tensor], generator: torch.Generator, *, steps: int,
           batch_size: int, lr: float) -> Iterator[int]:  # fmt: skip
    """Trains the network; yields the number of each step, from 1, when it is done."""
    device = next(net.parameters()).device
    optimizer = torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.05)
    begin, shown = time.perf_counter(), torch.zeros(3)
    for step in range(1, steps + 1):
        rows = torch.randint(len(data[0]), (batch_size,), generator=generator)
        pixels, boxes, letters = (part[rows] for part in data)
        image, boxes, letters = vary(pixels, boxes, letters, generator=generator)
        near, box, letter = (part.to(device) for part in targets(boxes, letters))
        with torch.autocast(device.type, torch.bfloat16):
            out = net(image.to(device, memory_format=torch.channels_last))
        losses = loss_of(out.float(), near, box, letter=letter)
        optimizer.zero_grad()
        (4 * losses[0] + losses[1] + 0.2 * losses[2]).backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 5.0)
        optimizer.step()
        schedule.step()
        shown += torch.stack(losses).detach().cpu()
        if step % 100 == 0:
            parts = ", ".join(f"{n} {v:.4f}" for n, v in zip(("panel", "box", "letter"), shown / 100, strict=True))
            typer.echo(f"step {step}: {parts}, {time.perf_counter() - begin:.0f} s")
            shown.zero_()
        yield step


if __name__ == "__main__":
    typer.run(main)
