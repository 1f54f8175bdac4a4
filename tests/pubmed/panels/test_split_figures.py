"""Compound figures: gutters, the detector, which words belong to which panel, and the verb as a whole."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers.real_files import need
from helpers.running import ROOT, run_verb
from PIL import Image, ImageDraw

pytest.importorskip("transformers")
pytest.importorskip("pycocotools")

from benchmarks.figure_split import BOXES, average_precision, generated, real
from blip.data.images import plain
from blip.outputs import OutputError
from blip.pubmed.panels import gutters
from blip.pubmed.panels.caption_parts import Part, Split
from blip.pubmed.panels.captions import split_caption
from blip.pubmed.panels.detector import Detector, DetectorError, PanelDetector, Panels, load, prepare, save
from blip.pubmed.panels.given import GivenError, read_splits
from blip.pubmed.panels.match import Layout, layout, match
from blip.pubmed.panels.progress import Progress
from blip.pubmed.panels.split import (
    FigureSplitter,
    Options,
    SplitError,
    Summary,
    settings_of,
    split,
    why_whole,
)

GRID = [(0, 0, 100, 100), (110, 0, 210, 100), (0, 110, 100, 210), (110, 110, 210, 210)]


def texture(size: tuple[int, int], seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(30, 225, (*size[::-1], 3), dtype=np.uint8))


def grid(ground: Any, gap: int = 12, rows: int = 2, columns: int = 3, side: int = 120) -> tuple[Image.Image, list[Any]]:
    """Noise in rows and columns, and where it is."""
    image = Image.new("RGB", (columns * (side + gap) + gap, rows * (side + gap) + gap), ground)
    boxes = []
    for row in range(rows):
        for column in range(columns):
            left, top = gap + column * (side + gap), gap + row * (side + gap)
            image.paste(texture((side, side), row * columns + column), (left, top))
            boxes.append((left, top, left + side, top + side))
    return image, boxes


# ---- gutters ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ground", ["white", "black", (200, 190, 120), "noise"])
def test_gutters_of_any_colour(ground: Any) -> None:
    image, boxes = grid("white" if ground == "noise" else ground)
    if ground == "noise":  # a fine texture
        pixels = np.asarray(image).astype(int)
        pixels = pixels - np.random.default_rng(0).integers(0, 8, pixels.shape) * (pixels == 255)
        image = Image.fromarray(pixels.astype(np.uint8))
    pieces = gutters.cut(image)
    assert np.abs(np.array([piece.box for piece in pieces]) - np.array(boxes)).max() <= 2
    assert min(piece.filled for piece in pieces) > 0.6


def test_gutters_are_found_one_within_the_other() -> None:
    """A tall piece beside two of half its height."""
    image = Image.new("RGB", (330, 320), "white")
    boxes = [(10, 10, 150, 310), (170, 10, 320, 150), (170, 170, 320, 310)]
    for seed, box in enumerate(boxes):
        image.paste(texture((box[2] - box[0], box[3] - box[1]), seed), box)
    assert np.abs(np.array([piece.box for piece in gutters.cut(image)]) - np.array(boxes)).max() <= 2


def test_one_picture_is_one_piece_and_a_plot_is_not_filled() -> None:
    assert len(gutters.cut(texture((300, 200), 0))) == 1
    assert gutters.cut(Image.new("RGB", (300, 200), "white")) == []
    plot = Image.new("RGB", (300, 200), "white")
    ImageDraw.Draw(plot).line((30, 170, 280, 20), fill="black", width=3)
    assert max(piece.filled for piece in gutters.cut(plot)) < 0.3


# ---- the detector ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def detector() -> PanelDetector:
    return PanelDetector()


@pytest.mark.slow
def test_generated_figures_never_trained_on(detector: PanelDetector) -> None:
    found = generated(detector, 200, [])
    assert found["detector"] >= 0.95 and found["split"] >= 0.87, found


@pytest.mark.real_data
@pytest.mark.slow
def test_real_figures(detector: PanelDetector, data_dir: Path) -> None:
    rows = json.loads(BOXES.read_text())
    for row in rows:
        need(data_dir / "jats", row["image"])  # boxes were drawn for these figures alone
    found = real(detector, data_dir / "jats")
    assert found["figures"] == len(rows) and found["compound"] == sum(len(row["panels"]) > 1 for row in rows)
    assert found["detector"] >= 0.93 and found["detector_compound"] >= 0.93, found


def test_weights_are_small_and_are_checked(tmp_path: Path) -> None:
    assert Path(str(files("blip.pubmed.panels").joinpath("detector.safetensors"))).stat().st_size <= 10 * 2**20
    with pytest.raises(DetectorError, match="no weights of this detector"):
        load(tmp_path / "nothing.safetensors")
    (tmp_path / "text.safetensors").write_text("no weights")
    with pytest.raises(DetectorError, match="no weights of this detector"):
        load(tmp_path / "text.safetensors")


def test_average_precision_counts_as_it_should() -> None:
    wanted = [[(0.0, 0.0, 10.0, 10.0), (20.0, 0.0, 30.0, 10.0)]]
    both = np.array([[0, 0, 10, 10], [20, 0, 30, 10.0]])
    assert average_precision([(both, np.array([0.9, 0.8]))], wanted) == pytest.approx(1)
    assert average_precision([(both[:1], np.array([0.9]))], wanted) == pytest.approx(0.5, abs=0.01)
    assert average_precision([(both[:0], np.array([]))], wanted) == 0


def test_a_figure_of_any_form_is_prepared() -> None:
    for size in ((2000, 30), (30, 2000), (384, 384), (3, 3)):
        pixels, scale = prepare(Image.new("RGB", size, "red"))
        assert pixels.shape == (384, 384, 3) and scale == 384 / max(size)
    assert Detector().eval()(torch.zeros(1, 3, 384, 384)).shape == (1, 32, 48, 48)
    assert Detector(names=False).eval()(torch.zeros(1, 3, 384, 384)).shape == (1, 6, 48, 48)


# ---- panels and words ------------------------------------------------------------------------------------------------


def panels(boxes: list[Any], scores: list[float] | None = None) -> Panels:
    return Panels(np.array(boxes, float).reshape(-1, 4), np.array(scores or [0.9] * len(boxes)), np.zeros((0, 2)),
                  np.zeros(0))  # fmt: skip


FOUR = split_caption("All. (A) One. (B) Two. (C) Three. (D) Four.")


def test_match_in_reading_order() -> None:
    pairs = match(FOUR, Layout(GRID, [0.9] * 4))
    assert [(pair.labels, pair.box, pair.text) for pair in pairs] == [
        (["A"], GRID[0], "All. One."), (["B"], GRID[1], "All. Two."),
        (["C"], GRID[2], "All. Three."), (["D"], GRID[3], "All. Four.")]  # fmt: skip
    assert {pair.how for pair in pairs} == {"order"} and all(0 < pair.confidence < 0.9 for pair in pairs)


def test_letters_decide_over_reading_order() -> None:
    """Panels that run down the columns: A and B on the left, C and D on the right."""
    read = {"A": (5.0, 5.0), "B": (5.0, 115.0), "C": (115.0, 5.0)}
    pairs = match(FOUR, Layout(GRID, [0.9] * 4), read)
    assert [pair.box for pair in pairs] == [GRID[0], GRID[2], GRID[1], GRID[3]]
    assert {pair.how for pair in pairs} == {"letter"}


@pytest.mark.parametrize(
    ("boxes", "read"),
    [
        (GRID[:3], None),  # a panel too few
        ([*GRID, (220, 0, 300, 100)], None),  # one too many
        ([], None),
        (GRID, {"A": (5.0, 5.0), "B": (8.0, 50.0)}),  # two letters in one panel
        ([*GRID, (220, 0, 300, 100)], {"A": (5.0, 5.0), "B": (115.0, 5.0), "C": (5.0, 115.0), "D": (115.0, 115.0)}),
        (GRID, {"A": (150.0, 50.0)}),  # contradicts reading order, too few to go by
    ],
)
def test_in_doubt_the_figure_stays_whole(boxes: list[Any], read: dict[str, tuple[float, float]] | None) -> None:
    pairs = match(FOUR, Layout(boxes, [0.9] * len(boxes)), read)
    assert [(pair.how, pair.box, pair.text) for pair in pairs] == [("whole", None, FOUR.whole)]


def test_places() -> None:
    beside = split_caption("Left: before. Right: after.")
    found = match(beside, Layout([(110, 0, 210, 100), (0, 0, 100, 100)], [0.9, 0.9]))
    assert {pair.labels[0]: pair.box for pair in found} == {"left": (0, 0, 100, 100), "right": (110, 0, 210, 100)}
    above = match(beside, Layout([(0, 0, 100, 100), (0, 110, 100, 210)], [0.9, 0.9]))
    assert above[0].how == "whole", "one above the other is neither left nor right"


def test_the_caption_settles_what_is_a_panel() -> None:
    seen = panels(GRID, [0.9, 0.8, 0.3, 0.2])
    assert len(layout([], seen, 0).boxes) == 2 and len(layout([], seen, 4).boxes) == 4
    assert layout([], seen, 3).boxes == GRID[:3]
    images = [gutters.Piece(box, 0.95) for box in GRID]
    assert layout(images, seen, 4).way == "gutters" and layout(images, seen, 3).way == "detector"
    drawings = [gutters.Piece(box, 0.2) for box in GRID]
    assert layout(drawings, seen, 4).way == "detector"


# ---- the verb --------------------------------------------------------------------------------------------------------


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    """Figures of six images in two rows, one without a file, one that is damaged."""
    caption = "Scans. (A) One. (B) Two. (C) Three. (D) Four. (E) Five. (F) Six."
    lines = []
    for at in range(8):
        image, _ = grid("white", gap=10 + at)
        image.save(tmp_path / f"{at}.png")
        lines.append({"image": str(tmp_path / f"{at}.png"), "caption": caption, "article": f"PMC{at}", "figure": "f1",
                      "label": "Figure 1", "license": "CC0"})  # fmt: skip
    lines.append({"image": "", "caption": caption, "article": "PMC8", "figure": "f1"})
    (tmp_path / "damaged.png").write_bytes(b"no image")
    lines.append({"image": str(tmp_path / "damaged.png"), "caption": caption, "article": "PMC9", "figure": "f1"})
    pairs = tmp_path / "pairs.jsonl"
    pairs.write_text("\n".join(map(json.dumps, lines)) + "\n")
    return pairs


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["1", "2"])
def test_split_writes_subfigures(corpus: Path, workers: str) -> None:
    out = corpus.parent / "subfigures.jsonl"
    result = run_verb("pubmed", "split", corpus, "--out", out, "--num_workers", workers)
    assert result.exit_code == 0, result.output
    assert "10 figures: 8 split, 0 whole, 48 pairs" in result.output and "1 images could not be read" in result.output
    assert "damaged.png" in result.output
    lines = read_lines(out)
    names = ("One", "Two", "Three", "Four", "Five", "Six")
    assert [line["caption"] for line in lines[:6]] == [f"Scans. {name}." for name in names]
    assert [line["panel"] for line in lines[:6]] == [[name] for name in "ABCDEF"]
    for line in lines[:6]:
        with Image.open(line["image"]) as crop, Image.open(line["whole_image"]) as figure:
            assert crop.size == (line["box"][2] - line["box"][0], line["box"][3] - line["box"][1])
            near = np.asarray(crop, int) - np.asarray(figure.convert("RGB").crop(line["box"]), int)
            assert np.abs(near).mean() < 12  # JPEG of noise
        assert line["license"] == "CC0" and line["how"] == "order" and line["confidence"] > 0.5
    assert not list(out.parent.glob(".*.partial*"))


@pytest.mark.slow
def test_a_run_that_was_killed_goes_on(corpus: Path, tmp_path: Path) -> None:
    """By SIGKILL after some figures; then the file is that of an undisturbed run."""
    whole, out, crops = tmp_path / "whole.jsonl", tmp_path / "out.jsonl", tmp_path / "crops"
    split(corpus, whole, Options(str(crops)))
    code = ("import sys, time; from pathlib import Path; import blip.pubmed.panels.split as s\n"
            "own = s.FigureSplitter.lines\n"
            "def slow(self, *figure):\n    time.sleep(0.3); return own(self, *figure)\n"
            "s.FigureSplitter.lines = slow\n"
            "s.split(Path(sys.argv[1]), Path(sys.argv[2]), s.Options(sys.argv[3]))")  # fmt: skip
    process = subprocess.Popen([sys.executable, "-u", "-c", code, str(corpus), str(out), str(crops)],
                               env={**os.environ, "PYTHONPATH": str(ROOT)})  # fmt: skip
    partial = tmp_path / ".out.jsonl.partial"
    deadline = time.monotonic() + 120
    while not partial.exists() or not partial.stat().st_size:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    time.sleep(0.5)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not out.exists()
    with open(partial, "a") as file:  # and half a line
        file.write('{"image": "x')
    told: list[str] = []
    split(corpus, out, Options(str(crops)), tell=told.append)
    assert told and told[0].startswith("continues after figure")
    assert out.read_text() == whole.read_text()
    assert (tmp_path / "out.jsonl.summary.json").read_text() == (tmp_path / "whole.jsonl.summary.json").read_text()


def test_captions_that_something_else_split(corpus: Path, tmp_path: Path) -> None:
    given = tmp_path / "splits.jsonl"
    parts = [{"labels": [name], "text": f"part {name}"} for name in "ABCDEF"]
    given.write_text(json.dumps({"article": "PMC0", "figure": "f1", "lead": "L.", "parts": parts, "confidence": 0.8}))
    own = [Part([name], f"part {name}") for name in "ABCDEF"]
    assert read_splits(given) == {"PMC0/f1": Split("L.", own, "given", 0.8, "L.")}
    out = tmp_path / "out.jsonl"
    split(corpus, out, Options(str(tmp_path / "crops"), given=read_splits(given)))
    made = read_lines(out)
    assert made[0]["whole_caption"].startswith("Scans.") and made[0]["caption"] == "L. part A"
    assert made[6]["caption"] == "Scans. One."
    given.write_text('{"article": "PMC0"}')
    with pytest.raises(GivenError, match="line 1: not a split caption"):
        read_splits(given)


def test_words_of_panels_and_why_a_figure_stays_whole(corpus: Path, tmp_path: Path) -> None:
    caption = "Scans. (A) One. (B) Two. Scale bar, 1 cm."
    line = {"image": "a.png", "files": ["a.png", "b.png"], "caption": caption}
    texts = {}
    for options in (Options(""), Options("", shared="own"), Options("", captions="rules")):
        lines, _ = FigureSplitter(options).lines(0, line)
        texts[options.captions, options.shared] = [one["caption"] for one in lines]
    assert texts == {
        ("learned", "all"): ["Scans. One. Scale bar, 1 cm.", "Scans. Two. Scale bar, 1 cm."],
        ("learned", "own"): ["One.", "Two."],
        ("rules", "all"): ["Scans. One.", "Scans. Two. Scale bar, 1 cm."],
    }
    splitter = FigureSplitter(Options(str(tmp_path / "crops")))
    parts = [(one["caption_lead"], one["caption_own"], one["caption_tail"]) for one in splitter.lines(0, line)[0]]
    assert parts == [("Scans.", "One.", "Scale bar, 1 cm."), ("Scans.", "Two.", "Scale bar, 1 cm.")]
    whole = {"image": read_lines(corpus)[0]["image"], "caption": "Scans of six mice."}
    (made,), counts = splitter.lines(0, whole)
    assert made["how"] == "whole" and made["why"] == "panels that the caption does not name"
    assert counts.why_whole == {made["why"]: 1} and "caption_own" not in made and made["caption"] == whole["caption"]
    whys = {"(A) One. (B) Two." + " More." * 10_000: "caption too long to be divided",
            "Front: before. Back: after.": "panels that the caption does not name"}  # fmt: skip
    for caption, why in whys.items():
        (made,), _ = splitter.lines(0, {**whole, "caption": caption})
        assert made["why"] == why


def test_why_places_and_letters_contradict() -> None:
    beside = Layout([(0, 0, 100, 100), (110, 0, 210, 100)], [0.9, 0.9])
    assert why_whole(split_caption("Upper: before. Lower: after."), beside) == "places contradict the panels"
    assert why_whole(split_caption("(A) Before. (B) After."), beside) == "letters contradict the panels"


def test_counts_add_up(corpus: Path, tmp_path: Path) -> None:
    """Every figure is split, whole, without a file or not readable; every panel is a pair or left out."""
    counts = split(corpus, tmp_path / "out.jsonl", Options(str(tmp_path / "crops"), smallest=100))
    assert counts.figures == counts.how.total() + counts.no_file + counts.unreadable == 10
    assert counts.why_whole.total() == counts.how["whole"] == 0 and counts.no_file == 1
    assert (counts.pairs, counts.left_out) == (48, 0)
    counts = split(corpus, tmp_path / "out.jsonl", Options(str(tmp_path / "crops"), smallest=400))
    assert (counts.pairs, counts.left_out) == (0, 48)


def test_two_figures_of_one_image_have_their_own_sub_figures(corpus: Path, tmp_path: Path) -> None:
    """Boxes may differ where captions do; the second figure must not overwrite what the first one names."""
    image = tmp_path / "wide.png"
    grid("white", rows=1, columns=3)[0].save(image)
    captions = ("(A) One. (B) Two. (C) Three.", "Left: one. Middle: two. Right: three.", "(C) One. (B) Two. (A) Three.")
    lines = [{"image": str(image), "caption": caption, "article": f"PMC{at}"} for at, caption in enumerate(captions)]
    corpus.write_text("\n".join(map(json.dumps, lines)))
    split(corpus, tmp_path / "out.jsonl", Options(str(tmp_path / "crops"), captions="rules"))
    made = read_lines(tmp_path / "out.jsonl")
    assert len({line["image"] for line in made}) == len(made) >= 6


def test_a_stopped_run_does_not_continue_with_other_weights(corpus: Path, tmp_path: Path) -> None:
    """Not even with others of the same name."""
    weights = tmp_path / "weights.safetensors"
    options = Options(str(tmp_path / "crops"), weights=str(weights))
    weights.write_bytes(files("blip.pubmed.panels").joinpath("detector.safetensors").read_bytes())
    before = settings_of(corpus, options)
    assert settings_of(corpus, replace(options, weights=None)) == before, "the same content"
    progress = Progress(tmp_path / "out.jsonl", before)
    progress.add([], vars(Summary(figures=1)))
    progress.close()
    net = load(weights)
    net.place.data += 1
    save(net, weights, {})
    with pytest.raises(OutputError, match=r'"weights": "[0-9a-f]+"'):
        split(corpus, tmp_path / "out.jsonl", options)


def test_images_that_were_away_are_tried_again(corpus: Path, tmp_path: Path) -> None:
    """A disk that was not mounted: the run ends; mounted, the next one reads all."""
    lines = [line for line in read_lines(corpus) if line["image"] and "damaged" not in line["image"]]
    corpus.write_text("\n".join(map(json.dumps, lines)))
    away = [Path(line["image"]).rename(line["image"] + ".away") for line in lines]
    with pytest.raises(SplitError, match="cannot be read"):
        split(corpus, tmp_path / "out.jsonl", Options(str(tmp_path / "crops")))
    for path in away:
        path.rename(str(path).removesuffix(".away"))
    assert split(corpus, tmp_path / "out.jsonl", Options(str(tmp_path / "crops"))).unreadable == 0


def test_wrong_weights_are_told_whatever_the_number_of_processes(corpus: Path, tmp_path: Path) -> None:
    options = Options(str(tmp_path), weights="nothing.safetensors")
    for workers in (1, 2):
        with pytest.raises(DetectorError, match="no weights of this detector"):
            split(corpus, tmp_path / "out.jsonl", options, num_workers=workers)


@pytest.mark.parametrize(("caption", "how"), [("(A) One. (B) Two.", "file"), ("(A) One. (B) Two. (C) Three.", "whole")])
def test_a_figure_of_several_files(corpus: Path, tmp_path: Path, caption: str, how: str) -> None:
    files = [str(tmp_path / "0.png"), str(tmp_path / "1.png")]
    line = {"image": files[0], "files": files, "caption": caption, "article": "PMC1", "figure": "f"}
    corpus.write_text(json.dumps(line))
    split(corpus, tmp_path / "out.jsonl", Options(str(tmp_path / "crops")))
    made = read_lines(tmp_path / "out.jsonl")
    if how == "file":
        assert [(one["image"], one["caption"]) for one in made] == [(files[0], "One."), (files[1], "Two.")]
    else:
        assert [one["how"] for one in made] == ["whole"] and made[0]["confidence"] < 0.5


def test_split_tells_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(SplitError, match="make it with `blip pubmed extract`"):
        split(tmp_path / "none.jsonl", tmp_path / "out.jsonl", Options(str(tmp_path)))
    (tmp_path / "pairs.jsonl").write_text('{"image": "a.png"}\n')
    with pytest.raises(SplitError, match="line 1: not a figure"):
        split(tmp_path / "pairs.jsonl", tmp_path / "out.jsonl", Options(str(tmp_path)))
    lines = [json.dumps({"image": f"{tmp_path}/{n}.png", "caption": "c", "article": "a"}) for n in range(8)]
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines))
    with pytest.raises(SplitError, match="cannot be read"):
        split(tmp_path / "pairs.jsonl", tmp_path / "out.jsonl", Options(str(tmp_path)))


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "P", "LA", "I;16", "I;16B", "F", "1", "CMYK"])
def test_images_of_any_mode_become_plain(mode: str) -> None:
    if mode.startswith("I;16"):
        image = Image.fromarray((np.arange(64 * 64, dtype=np.uint16) * 16).reshape(64, 64))
        image = image if mode == "I;16" else Image.frombytes(mode, (64, 64), np.asarray(image).byteswap().tobytes())
    else:
        image = texture((64, 64), 0).convert(mode)
    made = plain(image)
    assert made.mode in ("L", "RGB") and made.size == (64, 64)
    if mode.startswith("I;16"):
        assert made.getextrema() == (0, 255)


def test_letters_are_read_where_the_detector_saw_them() -> None:
    pytest.importorskip("rapidocr")
    from blip.pubmed.panels.letters import LetterReader
    from blip.pubmed.panels.singles import font

    image, boxes = grid("white", gap=40)
    places = []
    for name, (left, top, _, _) in zip("ABCDEF", boxes, strict=True):
        ImageDraw.Draw(image).text((left, top - 28), name, fill="black", font=font(1, 24))
        places.append((left + 9, top - 15))
    read = LetterReader()(image, np.array(places, float), list("ABCDEF"))
    assert sum(read.get(name) == place for name, place in zip("ABCDEF", places, strict=True)) >= 5
    assert LetterReader()(image, np.array([(100.0, 100.0)]), ["A"]) == {}, "noise is no letter"
