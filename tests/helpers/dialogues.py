"""Dialogues about phantoms: records of the generic form, and a folder as VisDial is published."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

from blip.checkpoints.format import load_weights, save_weights
from blip.config import load_config
from blip.tasks import dialogue
from blip.tasks.config import DialogueConfig, FineTuneConfig
from helpers.fine_tuning import CPU, SHARED, TASKS, dialogues
from helpers.tiny import MODEL_SIZES

OPTIONS = TASKS["dialogue"][5]
PARTS = {"train": (0, 12), "val": (12, 17), "test": (20, 24)}


def configure(phantoms: Path, folder: Path, *options: str, init_from: Path | str = "") -> DialogueConfig:
    """The configuration of a tiny run: 12 dialogues of two questions to train, 5 for validation, 4 to test."""
    files = {}
    for part, (start, end) in PARTS.items():
        path = folder / f"dialogue-{part}.json"
        path.write_text(json.dumps(dialogues(phantoms, start, end)))
        files[f"{part}_file"] = f"[{path}]"
    begin = {"init_from": init_from} if init_from else {**MODEL_SIZES, "tokenizer": phantoms / "tokenizer.json"}
    values = {**SHARED, **OPTIONS, **files, **begin}
    path = folder / "dialogue.yaml"
    path.write_text("".join(f"{key}: {value}\n" for key, value in values.items()))
    return load_config(path, DialogueConfig, list(options))


def train(config: FineTuneConfig, output: Path, resume: str = "") -> None:
    dialogue.run(config, output, resume, device=CPU)


def score(config: FineTuneConfig, output: Path) -> tuple[dict[str, Any], Path]:
    """`--evaluate` -> what it wrote, and where."""
    folder = dialogue.score(config, output, CPU)
    return json.loads((folder / "evaluation.json").read_text()), folder


def write_checkpoint(folder: Path, start: Path) -> None:
    """A model of dialogues with the weights of one of pre-training."""
    tensors, info = load_weights(start)
    parts = ("image_encoder.", "text_encoder.", "itm_head.")
    kept = {name: tensor for name, tensor in tensors.items() if name.startswith(parts)}
    save_weights(folder, kept, {**{part: info[part] for part in ("image_encoder", "text_encoder")}, "task": "dialogue"})
    shutil.copy(start / "tokenizer.json", folder)


# ---- VisDial ---------------------------------------------------------------------------------------------------------

Change = Callable[[dict[str, Any]], None]


def write_visdial(folder: Path, records: list[dict[str, Any]], part: str = "val", change: Change | None = None) -> Path:
    """The records as `visdial_1.0_PART.json`, its images in `images/VisualDialog_PART2018`, relevances beside it.

    `change` breaks the content before it is written. Of a test set only the last question has options, and no answers.
    """
    questions, answers, dialogs, judged = dict[str, int](), dict[str, int](), [], []
    image_folder = folder / "images" / {"train": "train2014"}.get(part, f"VisualDialog_{part}2018")
    image_folder.mkdir(parents=True, exist_ok=True)
    name = {"train": "COCO_train2014"}.get(part, f"VisualDialog_{part}2018")
    for number, record in enumerate(records, start=1000):
        Image.open(record["image"]).convert("RGB").save(image_folder / f"{name}_{number:012d}.jpg")
        dialog = []
        for place, one in enumerate(record["dialog"], start=1):
            options = [answers.setdefault(text, len(answers)) for text in one["answer_options"]]
            exchange = {"question": questions.setdefault(one["question"], len(questions))}
            last = place == len(record["dialog"])
            if part != "test" or not last:
                exchange["answer"] = options[one["gt_index"]]
            if part != "test":
                exchange["gt_index"] = one["gt_index"]
            if part != "test" or last:
                exchange["answer_options"] = options
            dialog.append(exchange)
        dialogs.append({"image_id": number, "caption": record["caption"], "dialog": dialog})
        judged.append({"image_id": number, "round_id": place, "gt_relevance": record["dialog"][-1]["relevance"]})
    data = {"questions": list(questions), "answers": list(answers), "dialogs": dialogs}
    content = {"version": "1.0", "split": part, "data": data}
    if change is not None:
        change(content)
    path = folder / f"visdial_1.0_{part}.json"
    path.write_text(json.dumps(content))
    if part == "val":
        (folder / f"visdial_1.0_{part}_dense_annotations.json").write_text(json.dumps(judged))
    return path
