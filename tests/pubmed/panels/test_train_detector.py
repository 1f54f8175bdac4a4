"""What the detector of panels is trained on, its targets and losses, and a run that stops and continues."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from blip.errors import BlipError
from blip.pubmed.panels import train_detector
from blip.pubmed.panels.compose import compose
from blip.pubmed.panels.detector import centers, read
from blip.pubmed.panels.drawings import DRAWINGS
from blip.pubmed.panels.drawn_figures import draw, drawn
from blip.pubmed.panels.layouts import cells
from blip.pubmed.panels.singles import IMAGES
from blip.pubmed.panels.train_detector import loss_of, main, rate, targets, vary


def test_targets_say_what_is_drawn() -> None:
    """Read back by the detector's own rule, the targets give the boxes; losses of a perfect answer are small."""
    pixels, boxes, letters = (torch.from_numpy(part)[None] for part in draw(7, []))
    image, boxes, letters = vary(pixels, boxes, letters, generator=torch.Generator().manual_seed(0))
    assert image.shape == (1, 3, 384, 384) and image.min() >= 0 and image.max() <= 1
    near, box, letter, name = targets(boxes, letters)
    inside = near[0] > 0.2
    shares = boxes[0][~boxes[0].isnan().any(1)] / 384
    found = box[0][:, inside].T
    assert all(any(torch.allclose(one, share) for share in shares) for one in found)
    x, y = centers()
    left, top, right, bottom = box[0]
    logits = [torch.logit(part.clamp(1e-4, 1 - 1e-4))[:, None] for part in (near, letter)]
    sure = 20.0 * torch.nn.functional.one_hot(name.clamp(min=0), 26).movedim(-1, 1)
    perfect = torch.cat([*logits, torch.stack([x - left, y - top, right - x, bottom - y])[None], sure], dim=1)
    _, boxes_loss, letter_loss, name_loss = loss_of(perfect, (near, box, letter, name))
    assert boxes_loss < 1e-4 and letter_loss < 1e-2 and name_loss < 1e-4
    worse = perfect.clone()
    worse[:, 2:6] += 0.05
    worse[:, 6:] = worse[:, 6:].roll(1, 1)
    assert loss_of(worse, (near, box, letter, name))[1] > boxes_loss + 0.05
    assert loss_of(worse, (near, box, letter, name))[3] > 1
    panels = read(perfect[0], 1.0, (384, 384))
    order = np.lexsort((panels.letters[:, 0], panels.letters[:, 1]))
    seen = [panels.letter_names[at].argmax() for at in order]
    shown = [int(which) for across, down, which in letters[0].tolist() if 0 <= across < 384 and 0 <= down < 384]
    assert len(shown) > 1 and sorted(seen) == sorted(shown)


def test_generated_figures_are_what_they_say() -> None:
    for seed in range(12):
        figure, again = (compose(np.random.default_rng(seed), []) for _ in range(2))
        assert figure.boxes == again.boxes and figure.image.tobytes() == again.image.tobytes()
        boxes = np.array(figure.boxes)
        assert ((boxes[:, 2:] > boxes[:, :2]).all() and not figure.letters) or len(figure.letters) == len(figure.boxes)
        for (x, y), (left, top, right, bottom) in zip(figure.letters, figure.boxes, strict=False):
            assert left <= x <= right and top <= y <= bottom


def test_letters_of_generated_figures_follow_their_panels() -> None:
    """In all layouts, strips among them, a panel's letter is the nearest one to its upper left corner, or inside."""
    kinds = set()
    for seed in range(60):
        rng = np.random.default_rng(seed)
        found = cells(rng, (0, 0, 800, 600), 10, lettered=True)
        kinds.add(any(cell.rows for cell in found))
        boxes = np.array([cell.box for cell in found])
        assert (boxes[:, 2:] - boxes[:, :2] > 20).all() and boxes.min() >= 0 and (boxes[:, 2:] <= [800, 600]).all()
        across = np.minimum(boxes[:, None, 2:], boxes[None, :, 2:]) - np.maximum(boxes[:, None, :2], boxes[None, :, :2])
        assert not ((across > 0).all(-1) & ~np.eye(len(boxes), dtype=bool)).any(), "cells that overlap"
    assert kinds == {True, False}


def test_every_drawer_draws_at_any_size() -> None:
    for drawer in {*DRAWINGS, *IMAGES}:
        for seed, size in enumerate([(8, 400), (8, 8), (9, 60), (60, 9), (33, 25), (120, 90)]):
            assert drawer(np.random.default_rng(seed), *size).size == size, drawer.__name__


def test_figures_are_drawn_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = drawn(tmp_path, range(2), [], num_workers=1)
    again = [draw(seed, []) for seed in range(2)]
    assert all(np.array_equal(first.pixels[at], again[at][0]) for at in range(2))
    monkeypatch.setattr("blip.pubmed.panels.drawn_figures.draw", None)  # nothing is drawn
    same = drawn(tmp_path, range(2), [], num_workers=1)
    assert np.array_equal(same.boxes, first.boxes, equal_nan=True)
    with pytest.raises(TypeError):
        drawn(tmp_path, range(3), [], num_workers=1)


def test_the_rate_falls_late_so_that_a_longer_run_begins_alike() -> None:
    assert [rate(step, 1000) for step in (100, 200, 600, 1000)] == [0.5, 1, 1, 0]
    assert all(rate(step, 1000) == rate(step, 5000) for step in range(1, 601)) and rate(800, 1000) == 0.5


@pytest.mark.slow
def test_a_run_that_continues_gives_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings: dict[str, Any] = {"figures": 6, "batch_size": 2, "num_workers": 1, "small_steps": 2, "device": "cpu"}
    monkeypatch.setattr(train_detector, "EVERY", 1)
    weights = [tmp_path / f"{at}.safetensors" for at in range(2)]
    main(out=weights[0], steps=5, scratch=tmp_path / "a", **settings)
    monkeypatch.setattr(train_detector, "save", lambda *_: None)
    main(out=weights[1], steps=3, scratch=tmp_path / "b", **settings)
    with pytest.raises(BlipError, match="of a run with other settings"):
        main(out=weights[1], steps=5, scratch=tmp_path / "b", **settings)  # the rate had fallen already
    (tmp_path / "b" / "state.pt").unlink()
    stop = iter([False, False, True])
    keep = train_detector._keep

    def stopping(state: Path, what: dict[str, Any]) -> None:
        keep(state, what)
        if next(stop):
            raise KeyboardInterrupt

    monkeypatch.setattr(train_detector, "_keep", stopping)
    with pytest.raises(KeyboardInterrupt):
        main(out=weights[1], steps=5, scratch=tmp_path / "b", **settings)
    monkeypatch.undo()
    main(out=weights[1], steps=5, scratch=tmp_path / "b", **settings)
    assert weights[0].read_bytes() == weights[1].read_bytes()
