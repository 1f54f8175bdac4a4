"""Trains the detector of panels on compound figures that it composes itself.

    python -m blip.pubmed.panels.train_detector --out detector.safetensors --images FOLDER [--images FOLDER]

`--images` may name folders of single photographs and scans, which are used beside what is drawn. Two CPU cores take
about an hour for the weights that come with the package; one GPU a few minutes.
"""

import multiprocessing
import time
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
import typer
from torch import Tensor

from blip.pubmed.panels.compose import compose, find_images
from blip.pubmed.panels.detector import PLACES, SIDE, STRIDE, Detector, boxes_of, centers, load, prepare, save

MOST = 40  # panels, and letters, of a figure


def draw(seed: int, images: list[Path]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One figure: pixels (384, 384, 3), boxes (40, 4) and letters (40, 2) in those pixels, NaN behind the last."""
    figure = compose(np.random.default_rng(seed), images)
    pixels, scale = prepare(figure.image)
    boxes, letters = np.full((MOST, 4), np.nan, np.float32), np.full((MOST, 2), np.nan, np.float32)
    for into, what in ((boxes, figure.boxes), (letters, figure.letters)):
        some = np.array(what[:MOST], np.float32).reshape(-1, into.shape[1]) * scale
        into[: len(some)] = some
    return pixels, boxes, letters


def vary(pixels: Tensor, boxes: Tensor, letters: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Another size, place, brightness and sharpness of each figure of a batch: (B, 3, S, S), (B, 40, 4), (B, 40, 2)."""
    B = len(pixels)
    random = torch.rand(B, 6, generator=generator)
    zoom = 0.8 + 0.4 * random[:, 0] ** 2  # a figure may lose its edge, or shrink
    shift = (random[:, 1:3] - 0.5) * 0.08
    theta = torch.zeros(B, 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = 1 / zoom
    theta[:, :, 2] = (1 - 2 * shift) / zoom[:, None] - 1  # the upper left corner stays but for the shift
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
    """What each place should say.

    Args:
        boxes, letters: (B, 40, 4) and (B, 40, 2) in pixels; NaN where there is none.

    Returns:
        (B, S, S): how near to the middle of its panel, as FCOS's centerness, 0 outside of panels.
        (B, 4, S, S): the panel's box as shares of the side.
        (B, S, S): 1 where a letter stands.
    """
    B = len(boxes)
    shares = (boxes / SIDE).nan_to_num(-1.0)  # (B, 40, 4)
    x, y = centers()
    left, top, right, bottom = shares[..., None, None].unbind(2)
    to = torch.stack([x - left, y - top, right - x, bottom - y], dim=2)  # (B, 40, 4, S, S)
    within = to.amin(2) > 0
    area = ((shares[..., 2] - shares[..., 0]) * (shares[..., 3] - shares[..., 1]))[..., None, None]
    chosen = torch.where(within, area, torch.inf).argmin(1)  # of panels that overlap the smaller, (B, S, S)
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


def loss_of(out: Tensor, near: Tensor, box: Tensor, letter: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Panel, box and letter losses: soft cross-entropy, generalised IoU weighted by nearness, focal cross-entropy."""
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
    out: Annotated[Path, typer.Option(help="weights to write: .safetensors")],
    images: Annotated[list[Path] | None, typer.Option(help="folder of single photographs or scans")] = None,
    figures: Annotated[int, typer.Option(help="compound figures to compose")] = 12_000,
    steps: int = 8000,
    batch: int = 16,
    lr: float = 2e-3,
    seed: int = 0,
    start: Annotated[Path | None, typer.Option(help="weights to start from")] = None,
    workers: Annotated[int, typer.Option(help="processes that compose")] = 2,
    device: str = "cuda" if torch.cuda.is_available() else "cpu",
) -> None:
    """Composes figures, then trains the detector on them."""
    torch.manual_seed(seed)
    photos = find_images(images or [])
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        drawn = list(pool.imap(partial(draw, images=photos), range(seed * 10**7, seed * 10**7 + figures), chunksize=32))
    pixels, boxes, letters = (torch.from_numpy(np.stack(part)) for part in zip(*drawn, strict=True))
    del drawn
    typer.echo(f"{len(pixels)} figures, {int((~boxes[..., 0].isnan()).sum())} panels, {len(photos)} photographs")
    net = Detector().to(device).to(memory_format=torch.channels_last)
    if start:
        net.load_state_dict(load(start).state_dict())
        net.train()
    optimizer = torch.optim.AdamW(net.parameters(), lr=lr, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.05)
    generator = torch.Generator().manual_seed(seed)
    begin, shown = time.perf_counter(), torch.zeros(3)
    for step in range(1, steps + 1):
        rows = torch.randint(len(pixels), (batch,), generator=generator)
        image, some_boxes, some_letters = vary(pixels[rows], boxes[rows], letters[rows], generator)
        wanted = [part.to(device) for part in targets(some_boxes, some_letters)]
        with torch.autocast(device, torch.bfloat16):
            said = net(image.to(device, memory_format=torch.channels_last))
        losses = loss_of(said.float(), *wanted)
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
        if step % 1000 == 0 or step == steps:
            about: dict[str, object] = {
                "figures": figures,
                "steps": step,
                "batch": batch,
                "seed": seed,
                "photographs": len(photos),
            }
            save(net, out, about)


if __name__ == "__main__":
    typer.run(main)
