"""Trains the detector of panels on generated compound figures.

    python -m blip.pubmed.panels.train_detector --out detector.safetensors --images FOLDER [--images FOLDER]

`--images` names folders of single photographs and scans, which are used beside drawings. The weights of the package
take one to two hours on a CPU core, or a few minutes on a GPU. The figures (5 GB) and the state of the training are
kept in `--scratch`: a run that was stopped continues there. The rate of learning is constant and falls to 0 in the last
steps; until then a state is the same whatever `--steps` is.
"""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
import typer
from torch import Tensor

from blip.data.images import find_images
from blip.errors import BlipError
from blip.pubmed.panels.detector import PLACES, SIDE, STRIDE, Detector, boxes_of, centers, save
from blip.pubmed.panels.drawn_figures import Drawn, drawn

WARM = 200  # steps in which the rate of learning rises
SMALL = 256  # pixels of the side of figures in the first steps
FALL = 0.4  # share of the steps in which it falls
NOISE = 64  # pixels by which the noise of figures may be shifted
EVERY = 250  # steps after which the state is written
Targets = tuple[Tensor, Tensor, Tensor, Tensor]


def vary(
    pixels: Tensor, boxes: Tensor, letters: Tensor, *, generator: torch.Generator
) -> tuple[Tensor, Tensor, Tensor]:
    """Changes size, position, brightness, contrast, colour and noise of each figure of a batch.

    Args:
        pixels, boxes, letters: (B, 384, 384, 3) bytes, (B, 40, 4) and (B, 40, 3), as in `Drawn`.

    Returns:
        images (B, 3, 384, 384) in [0, 1], boxes and letters of the same shapes.
    """
    B = len(pixels)
    random = torch.rand(B, 7, generator=generator)
    zoom = 0.8 + 0.4 * random[:, :1] ** 2  # a figure may lose its edge, or become smaller
    zoom = zoom * torch.cat([torch.ones(B, 1), 0.9 + 0.2 * random[:, 6:]], dim=1)  # across and down
    shift = (random[:, 1:3] - 0.5) * 0.08
    theta = torch.zeros(B, 2, 3)
    theta[:, 0, 0], theta[:, 1, 1] = 1 / zoom[:, 0], 1 / zoom[:, 1]
    theta[:, :, 2] = (1 - 2 * shift) / zoom - 1  # about the upper left corner
    image = pixels.permute(0, 3, 1, 2).float().contiguous() / 255
    grid = F.affine_grid(theta, list(image.shape), align_corners=False)
    image = F.grid_sample(image, grid, padding_mode="border", align_corners=False)
    offset, scale = (shift * SIDE)[:, None], zoom[:, None]
    boxes = boxes * torch.cat([scale, scale], dim=-1) + torch.cat([offset, offset], dim=-1)
    letters = torch.cat([letters[..., :2] * scale + offset, letters[..., 2:]], dim=-1)
    contrast, light, gray = random[:, 3:6, None, None, None].unbind(1)
    image = (image - 0.5) * (0.8 + 0.4 * contrast) + 0.5 + (light - 0.5) * 0.1
    image = torch.where(gray < 0.25, image.mean(1, keepdim=True), image)
    noise = 0.02 * torch.randn(3, SIDE + NOISE, SIDE + NOISE, generator=generator)
    for one, (x, y) in zip(image, torch.randint(NOISE, (B, 2), generator=generator).tolist(), strict=True):
        one += noise[:, y : y + SIDE, x : x + SIDE]
    return image.clamp(0, 1), boxes.clamp(0, SIDE), letters


def targets(boxes: Tensor, letters: Tensor, S: int = PLACES) -> Targets:
    """The target of each place.

    Args:
        boxes, letters: (B, 40, 4) and (B, 40, 3) in pixels of 384; NaN where there is none.
        S: places along a side.

    Returns:
        (B, S, S): nearness to the centre of its panel, as the centerness of FCOS; 0 outside panels.
        (B, 4, S, S): the box of the panel as shares of the side.
        (B, S, S): 1 where there is a letter.
        (B, S, S): which one it is, 0 for A, at its place and the eight around; -1 elsewhere.
    """
    B = len(boxes)
    shares = (boxes / SIDE).nan_to_num(-1.0)  # (B, 40, 4)
    x, y = centers(S)
    left, top, right, bottom = shares[..., None, None].unbind(2)
    to = torch.stack([x - left, y - top, right - x, bottom - y], dim=2)  # (B, 40, 4, S, S)
    within = to.amin(2) > 0
    area = ((shares[..., 2] - shares[..., 0]) * (shares[..., 3] - shares[..., 1]))[..., None, None]
    chosen = torch.where(within, area, torch.inf).argmin(1)  # the smaller of panels that overlap, (B, S, S)
    to = to.gather(1, chosen[:, None, None].expand(B, 1, 4, S, S))[:, 0].clamp(min=0)
    across, down = to[:, 0::2], to[:, 1::2]
    near = (across.amin(1) / across.amax(1).clamp(min=1e-6)) * (down.amin(1) / down.amax(1).clamp(min=1e-6))
    near = torch.where(within.any(1), near.sqrt(), 0.0)
    box = shares.gather(1, chosen.flatten(1)[..., None].expand(B, S * S, 4))
    letter, name = torch.zeros(B, S, S), torch.full((B, S, S), -1)
    at = letters[..., :2]
    figure, which = (~at.isnan().any(-1) & (at < SIDE).all(-1) & (at >= 0).all(-1)).nonzero().unbind(1)
    column, row = (at[figure, which] * S / SIDE).long().unbind(1)
    letter[figure, row, column] = 1
    for dy, dx in ((-1, -1), (-1, 1), (1, -1), (1, 1), (-1, 0), (1, 0), (0, -1), (0, 1), (0, 0)):
        around = (row + dy).clamp(0, S - 1), (column + dx).clamp(0, S - 1)
        name[(figure, *around)] = letters[figure, which, 2].long()
    return near, box.transpose(1, 2).reshape(B, 4, S, S), letter, name


def loss_of(out: Tensor, wanted: Targets) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Losses of panels, boxes, letters and their names.

    They are cross-entropy, generalised IoU weighted by nearness, focal cross-entropy, and cross-entropy.

    Args:
        out: (B, 32, S, S), of the network.
        wanted: from `targets`.
    """
    near, box, letter, name = wanted
    panel = F.binary_cross_entropy_with_logits(out[:, 0], near)
    inside = near > 0.1
    found, true = boxes_of(out).movedim(1, -1)[inside], box.movedim(1, -1)[inside]
    boxes = (near[inside] * (1 - _giou(found, true))).sum() / near[inside].sum().clamp(min=1.0)
    p = out[:, 1].sigmoid()
    focal = (letter - p).abs() ** 2 * F.binary_cross_entropy_with_logits(out[:, 1], letter, reduction="none")
    names = F.cross_entropy(out[:, 6:], name, ignore_index=-1, reduction="sum") / (name >= 0).sum().clamp(min=1)
    return panel, boxes, focal.sum() / letter.sum().clamp(min=1.0), names


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
    small_steps: Annotated[int, typer.Option("--small_steps", help="first steps, on figures of 256 pixels")] = 3000,
    batch_size: Annotated[int, typer.Option("--batch_size", "--batch")] = 16,
    lr: float = 1.5e-3,
    seed: int = 0,
    scratch: Annotated[Path, typer.Option(help="folder of figures and state")] = Path("detector_scratch"),
    num_workers: Annotated[int, typer.Option("--num_workers", "--workers", help="processes that compose")] = 2,
    threads: Annotated[int, typer.Option(help="threads of the CPU; sums of several differ in their last bits")] = 1,
    device: str = "cuda" if torch.cuda.is_available() else "cpu",
) -> None:
    """Composes figures, then trains the detector on them."""
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    photos = find_images(images or [])
    data = drawn(scratch, range(seed * 10**7, seed * 10**7 + figures), photos, num_workers=num_workers)
    panels = int((~torch.from_numpy(data.boxes[..., 0].copy()).isnan()).sum())
    typer.echo(f"{figures} figures, {panels} panels, {len(photos)} photographs")
    net = Detector().to(device).to(memory_format=torch.channels_last)
    about: dict[str, Any] = {"figures": figures, "batch": batch_size, "seed": seed, "photographs": len(photos),
                             "lr": lr, "threads": threads, "small_steps": small_steps}  # fmt: skip
    for step in _steps(net, data, about, steps=steps, state=scratch / "state.pt"):
        if step == steps:
            save(net, out, about | {"steps": steps})


def rate(step: int, steps: int) -> float:
    """Factor of the rate of learning at a step, from 1: it rises, stays, and falls to 0."""
    return min(1.0, step / WARM, (steps - step) / (FALL * steps))


def _steps(net: Detector, data: Drawn, about: dict[str, Any], *, steps: int, state: Path) -> Iterator[int]:
    """Trains the network; yields the number of each step, from 1, when it is done.

    Args:
        about: the settings; a state of other ones is refused.
        state: a file; training continues from the state in it, if there is one.
    """
    device = next(net.parameters()).device
    optimizer = torch.optim.AdamW(net.parameters(), lr=about["lr"], weight_decay=0.02)
    generator, first = torch.Generator().manual_seed(about["seed"]), 1
    if state.exists():
        first = _restore(net, optimizer, generator, about=about, steps=steps, state=state) + 1
    begin, shown = time.perf_counter(), torch.zeros(4)
    for step in range(first, steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = about["lr"] * rate(step, steps)
        rows = torch.randint(len(data.pixels), (about["batch"],), generator=generator).numpy()
        pixels, boxes, letters = (torch.from_numpy(part[rows]) for part in (data.pixels, data.boxes, data.letters))
        image, boxes, letters = vary(pixels, boxes, letters, generator=generator)
        side = SMALL if step <= about["small_steps"] else SIDE
        if side < SIDE:
            image = F.interpolate(image, size=(side, side), mode="bilinear", antialias=True, align_corners=False)
        near, box, letter, name = (part.to(device) for part in targets(boxes, letters, side // STRIDE))
        with torch.autocast(device.type, torch.bfloat16):
            found = net(image.to(device, memory_format=torch.channels_last))
        losses = loss_of(found.float(), (near, box, letter, name))
        optimizer.zero_grad()
        (4 * losses[0] + losses[1] + 0.2 * losses[2] + 0.1 * losses[3]).backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), 5.0)
        optimizer.step()
        shown += torch.stack(losses).detach().cpu()
        if step % 100 == 0:
            named = zip(("panel", "box", "letter", "name"), shown / 100, strict=True)
            parts = ", ".join(f"{name} {value:.4f}" for name, value in named)
            typer.echo(f"step {step}: {parts}, {time.perf_counter() - begin:.0f} s")
            shown.zero_()
        if step % EVERY == 0 or step == steps:
            _keep(state, {"net": net.state_dict(), "optimizer": optimizer.state_dict(), "step": step, "steps": steps,
                          "generator": generator.get_state(), "about": about})  # fmt: skip
        yield step


def _keep(state: Path, what: dict[str, Any]) -> None:
    beside = state.with_suffix(".partial")
    torch.save(what, beside)
    beside.replace(state)


def _restore(net: Detector, optimizer: torch.optim.Optimizer, generator: torch.Generator, *, about: dict[str, Any],
             steps: int, state: Path) -> int:  # fmt: skip
    """Continues from a state; returns its step. BlipError where a run from nothing would have come elsewhere."""
    kept = torch.load(state, weights_only=True)
    reached = kept["step"]
    same = all(rate(step, steps) == rate(step, kept["steps"]) for step in range(1, reached + 1))
    if kept["about"] != about or not same or reached > steps:
        raise BlipError(f"{state}: of a run with other settings ({kept['about']}, step {reached} of {kept['steps']}); "
                        "name another --scratch, or delete it")  # fmt: skip
    net.load_state_dict(kept["net"])
    optimizer.load_state_dict(kept["optimizer"])
    generator.set_state(kept["generator"])
    typer.echo(f"continues after step {reached}")
    return int(reached)


if __name__ == "__main__":
    typer.run(main)
