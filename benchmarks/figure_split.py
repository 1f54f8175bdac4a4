"""How well and how fast compound figures are split: generated ones, and real ones with boxes drawn by hand.

    python benchmarks/figure_split.py --jats FOLDER [--figures 500] [--images FOLDER]

Average precision at an IoU of 0.5, by pycocotools, of the detector alone and of what `blip pubmed split` makes of
gutters, detector and the number of panels that the caption names. The peer for speed is torchvision's smallest detector
of 320 pixels with a pyramid; its weights are random, as only its time is asked. `ratio` is of one figure.
"""

import contextlib
import io
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np
import torch
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_320_fpn

from benchmarks import harness
from blip.data.images import find_images, plain
from blip.pubmed.panels import gutters
from blip.pubmed.panels.arrange import letters_of
from blip.pubmed.panels.captions import split_caption
from blip.pubmed.panels.compose import compose
from blip.pubmed.panels.detector import ALPHABET, PanelDetector, Panels
from blip.pubmed.panels.match import SCORES, layout
from blip.pubmed.panels.split import FigureSplitter, Options, split

Box = tuple[float, float, float, float]
Found = tuple[np.ndarray, np.ndarray]  # boxes (panels, 4), scores (panels,)
HELD_OUT = 900_000_000  # seeds from here on are never trained on
BOXES = harness.ROOT / "tests" / "fixtures" / "panel_boxes.json"


def average_precision(found: list[Found], wanted: list[list[Box]]) -> float:
    """At an IoU of 0.5 over all figures together, as COCO has it (101 points of recall)."""
    truth, said = [], []
    for figure, ((boxes, scores), true) in enumerate(zip(found, wanted, strict=True), start=1):
        for left, top, right, bottom in true:
            box = [left, top, right - left, bottom - top]
            truth.append({"id": len(truth) + 1, "image_id": figure, "category_id": 1, "bbox": box,
                          "area": box[2] * box[3], "iscrowd": 0})  # fmt: skip
        for (left, top, right, bottom), score in zip(boxes, scores, strict=True):
            box = [float(left), float(top), float(right - left), float(bottom - top)]
            said.append({"image_id": figure, "category_id": 1, "bbox": box, "score": float(score)})
    if not said:
        return 0.0
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        images = [{"id": figure} for figure in range(1, len(wanted) + 1)]
        coco.dataset = {"images": images, "annotations": truth, "categories": [{"id": 1}]}
        coco.createIndex()
        scorer = COCOeval(coco, coco.loadRes(said), "bbox")
        scorer.params.iouThrs = np.array([0.5])
        scorer.params.areaRng, scorer.params.areaRngLbl, scorer.params.maxDets = [[0, 1e12]], ["all"], [100]
        scorer.evaluate()
        scorer.accumulate()
    precision = scorer.eval["precision"]
    return float(precision[precision > -1].mean())


def generated(detector: PanelDetector, figures: int, images: list[Path]) -> dict[str, Any]:
    """Average precision, and what `match.RIGHT` and `arrange.MISREAD` are for these weights."""
    alone, whole, wanted, told = [], [], [], []
    for at in range(figures):
        figure = compose(np.random.default_rng(HELD_OUT + at), images)
        panels = detector([figure.image])[0]
        found = layout(gutters.cut(figure.image), panels, len(figure.letters))
        alone.append((panels.boxes, panels.scores))
        whole.append((np.array(found.boxes).reshape(-1, 4), np.array(found.scores)))
        wanted.append(figure.boxes)
        told += told_rightly(panels, figure.boxes, list(range(len(figure.letters))))
    compound = [at for at in range(figures) if len(wanted[at]) > 1]  # one panel: `layout` says none
    return {"detector": average_precision(alone, wanted),
            "split": average_precision([whole[at] for at in compound], [wanted[at] for at in compound]),
            "right_by_score": right_by_score(alone, wanted), "misread": misread(np.array(told))}  # fmt: skip


def right_by_score(found: list[Found], wanted: list[list[Box]]) -> list[float | None]:
    """For each of `match.SCORES`: the share of the boxes with about this score that are right; None without any."""
    right, score = [], []
    for (boxes, scores), true in zip(found, wanted, strict=True):
        score += scores.tolist()
        right += [max(overlap(box, one) for one in true) >= 0.5 for box in boxes.tolist()]
    nearest = np.abs(np.array(score)[:, None] - np.array(SCORES)).argmin(1)
    about = [np.array(right)[nearest == at] for at in range(len(SCORES))]
    return [round(float(some.mean()), 3) if len(some) else None for some in about]


def told_rightly(panels: Panels, boxes: list[Box], letters: list[int]) -> list[tuple[float, float]]:
    """Of each panel: the probability that the detector gives to its letter, among those of the figure, and by chance.

    Args:
        letters: of the panels, 0 for A; none where panels have no letters, or these are not told apart.
    """
    if not letters or not len(panels.letter_names) or max(letters) >= ALPHABET:
        return []
    names = panels.letter_names[:, letters]
    seen = enumerate(letters_of(boxes, panels.letters))
    return [(float(names[letter, at] / names[letter].sum()), 1 / len(letters)) for at, letter in seen if letter >= 0]


def misread(told: np.ndarray) -> float:
    """The probability of another letter with which the right ones are likeliest, in the model of `arrange.MISREAD`.

    Args:
        told: (letters, 2), of `told_rightly`.
    """
    shares, (right, chance) = np.linspace(0.01, 0.99, 99), told.T
    return float(shares[np.log(shares[:, None] * chance + (1 - shares[:, None]) * right).mean(1).argmax()])


def real(detector: PanelDetector, jats: Path) -> dict[str, float]:
    rows = json.loads(BOXES.read_text())
    alone, whole, wanted, told = [], [], [], []
    for row in rows:
        with Image.open(jats / row["image"]) as opened:
            image = opened.convert("RGB")
        panels = detector([image])[0]
        lettered = len(row["panels"]) if row["lettered"] else 0
        found = layout(gutters.cut(image), panels, lettered)
        alone.append((panels.boxes, panels.scores))
        whole.append((np.array(found.boxes).reshape(-1, 4), np.array(found.scores)))
        wanted.append([panel["box"] for panel in row["panels"]])
        names = [panel["label"].lower() for panel in row["panels"]] if row["lettered"] else []
        if all(len(name) == 1 and name.isalpha() for name in names):
            told += told_rightly(panels, wanted[-1], [ord(name) - ord("a") for name in names])
    compound = [at for at, boxes in enumerate(wanted) if len(boxes) > 1]
    some = [[row[at] for at in compound] for row in (alone, whole, wanted)]
    return {"figures": len(rows), "compound": len(compound), "panels": sum(map(len, wanted)),
            "detector": average_precision(alone, wanted), "detector_compound": average_precision(some[0], some[2]),
            "split_compound": average_precision(some[1], some[2]), "misread": misread(np.array(told))}  # fmt: skip


def real_pairs(jats: Path, read_letters: bool) -> dict[str, int]:
    """What a user gets: compound figures whose caption names panels, how many are split, how many pairs are right.

    A pair is right where its box overlaps the one of its label by an IoU of 0.5.
    """
    rows = {row["image"]: {p["label"]: p["box"] for p in row["panels"]} for row in json.loads(BOXES.read_text())}
    splitter = FigureSplitter(Options("", read_letters=read_letters))
    counts = {"figures": 0, "split": 0, "pairs": 0, "right": 0, "right_at_half_confidence": 0, "at_half_confidence": 0}
    for text in _lines(jats):
        line = json.loads(text)
        wanted = rows.get(str(Path(line["image"]).relative_to(jats.resolve())), {})
        parted = split_caption(line["caption"])
        if len(wanted) < 2 or "" in wanted or len({n for part in parted.parts for n in part.labels}) < 2:
            continue
        with Image.open(line["image"]) as opened:
            pairs, _ = splitter(plain(opened), parted)
        counts["figures"] += 1
        if pairs[0].how == "whole":
            continue
        counts["split"] += 1
        for pair in pairs:
            right = pair.box is not None and overlap(pair.box, wanted.get(pair.labels[0], (0, 0, 0, 0))) >= 0.5
            counts["pairs"] += 1
            counts["right"] += right
            counts["at_half_confidence"] += pair.confidence >= 0.5
            counts["right_at_half_confidence"] += right and pair.confidence >= 0.5
    return counts


def overlap(a: Sequence[float], b: Sequence[float]) -> float:
    """IoU of two boxes."""
    both = max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)


def figures_a_second(jats: Path, copies: int, workers: int) -> float:
    """Of the whole verb, decoding and writing included, without the start of its processes."""
    rows = [json.loads(line) for line in _lines(jats)]
    seconds = []
    for times in (1, 1 + copies):
        with tempfile.TemporaryDirectory() as place:
            pairs = Path(place) / "pairs.jsonl"
            pairs.write_text("\n".join(json.dumps(row | {"figure": f"{row['figure']}-{n}"})
                                       for n in range(times) for row in rows))  # fmt: skip
            begin = time.perf_counter()
            split(pairs, Path(place) / "out.jsonl", Options(str(Path(place) / "crops")), num_workers=workers)
            seconds.append(time.perf_counter() - begin)
    return copies * len(rows) / (seconds[1] - seconds[0])


def _lines(jats: Path) -> list[str]:
    from blip.pubmed.extract import extract

    with tempfile.TemporaryDirectory() as place:
        extract(jats, Path(place) / "figures.jsonl")
        lines = (Path(place) / "figures.jsonl").read_text().splitlines()
    return [line for line in lines if json.loads(line)["image"]]


def main() -> None:
    parser = harness.options(__doc__, repeats=30)
    parser.add_argument("--jats", type=Path, required=True, help="articles that panel_boxes.json names")
    parser.add_argument("--images", type=Path, action="append", help="photographs in the generated figures")
    parser.add_argument("--figures", type=int, default=500, help="generated ones")
    parser.add_argument("--copies", type=int, default=10, help="of the real figures, to measure the verb's speed")
    parser.add_argument("--weights", type=Path, help="of a detector; the package's own without")
    args = parser.parse_args()
    harness.start(args)
    detector = PanelDetector(args.weights, args.device)
    quality: dict[str, dict] = {"real": real(detector, args.jats), "generated": generated(detector, args.figures,
                                                                         find_images(args.images or []))}  # fmt: skip
    quality["real_pairs"] = {"by_order": real_pairs(args.jats, False), "by_letter": real_pairs(args.jats, True)}
    print(json.dumps(quality), flush=True)
    with Image.open(args.jats / json.loads(BOXES.read_text())[0]["image"]) as opened:
        image = opened.convert("RGB")
    peer = fasterrcnn_mobilenet_v3_large_320_fpn(weights=None, weights_backbone=None).eval().to(args.device)

    def theirs() -> None:
        pixels = torch.from_numpy(np.asarray(image.resize((320, 320)))).to(args.device)
        with torch.inference_mode(), harness.precision(args):
            peer([pixels.permute(2, 0, 1).float() / 255])

    def ours() -> None:
        with harness.precision(args):
            detector([image])

    seconds = harness.alternate({"theirs": theirs, "ours": ours}, args.repeats, harness.clock(args.device))
    median = harness.medians(seconds)
    result = {"ratio": median["theirs"] / median["ours"], "average_precision_50": quality, "figures": args.figures,
              "seconds_a_figure": median, "spread": harness.spread(seconds),
              "split_figures_a_second": figures_a_second(args.jats, args.copies, args.threads)}  # fmt: skip
    harness.report(args, "figure_split", result)


if __name__ == "__main__":
    main()
