"""Tiny fine-tuning runs of the five tasks on phantoms, for the tests that train, evaluate, kill and resume them."""

import json
import os
from pathlib import Path
from typing import Any

import torch

import blip.train.run
from blip.checkpoints.format import load_weights
from blip.config import load_config
from blip.tasks import caption, dialogue, nlvr, retrieval, vqa
from blip.tasks.config import CaptionConfig, DialogueConfig, FineTuneConfig, NlvrConfig, RetrievalConfig, VqaConfig
from blip.tasks.finetune import FineTuning
from blip.train.checkpoint import complete_checkpoints
from blip.train.history import read_history
from blip.train.log import read_metrics
from helpers.tiny import MODEL_SIZES, TINY

CPU = torch.device("cpu")
TIMES = {"images_per_s", "memory_mb", "mfu"}  # what may differ between runs

# task -> script, configuration, class, annotations of `write_phantoms`, what validation leaves, options
TASKS: dict[str, tuple[Any, type[FineTuneConfig], type[FineTuning], str, str, dict]] = {
    "retrieval": (
        retrieval, RetrievalConfig, retrieval.Retrieving, "captions.json", "retrieval",
        {"queue_size": 20, "k_test": 4, "alpha_ramp_epochs": 0.5},
    ),
    "caption": (
        caption, CaptionConfig, caption.Captioning, "captions.json", "captions",
        {"prompt": '"a picture of "', "beams": 2, "max_new_tokens": 4, "best_metric": "val_bleu1"},
    ),
    "vqa": (
        vqa, VqaConfig, vqa.Answering, "questions.json", "answers",
        {"k_test": 3, "max_answer_tokens": 8, "drop_path": 0},
    ),
    "nlvr": (nlvr, NlvrConfig, nlvr.Judging, "statements.json", "judgements", {"drop_path": 0.1}),
    "dialogue": (
        dialogue, DialogueConfig, dialogue.DialogueRanking, "questions.json", "answers",
        {"max_text_tokens": 40, "max_caption_tokens": 16, "max_turn_tokens": 12, "max_answer_tokens": 3},
    ),
}  # fmt: skip
SHARED = {
    **{key: value for key, value in TINY.items() if key not in MODEL_SIZES and key != "queue_size"},
    "batch_size": 4,
    "epochs": 100,
    "max_steps": 6,
    "warmup_steps": 2,
    "lr": 0.003,
    "save_every_steps": 1,
}


def write_part(phantoms: Path, task: str, start: int, end: int, path: Path) -> Path:
    """Some records of the phantoms, with absolute paths; of dialogues one round each."""
    if task == "dialogue":
        path.write_text(json.dumps(dialogues(phantoms, start, end, rounds=1)))
        return path
    records = json.loads((phantoms / TASKS[task][3]).read_text())
    for record in records:
        if "images" in record:
            record["images"] = [str(phantoms / image) for image in record["images"]]
        else:
            record["image"] = str(phantoms / record["image"])
    path.write_text(json.dumps(records[start:end]))
    return path


def dialogues(phantoms: Path, start: int, end: int, *, rounds: int = 2, options: int = 4) -> list[dict[str, Any]]:
    """Records about the phantoms `start` to `end`: their questions, with answers of all phantoms to choose from."""
    about: dict[str, list[dict]] = {}
    for question in json.loads((phantoms / "questions.json").read_text()):
        about.setdefault(question["image"], []).append(question)
    captions = {one["image"]: one["caption"] for one in json.loads((phantoms / "captions.json").read_text())}
    answers = sorted({one["answer"] for several in about.values() for one in several})
    records = []
    for number, (image, questions) in enumerate(list(about.items())[start:end]):
        dialog = []
        for place, one in enumerate(questions[:rounds]):
            others = [text for text in answers if text != one["answer"]]
            shift = (number + place) % len(others)
            chosen = (others[shift:] + others[:shift])[: options - 1]
            right = (number + place) % options
            chosen.insert(right, one["answer"])
            values = [0.0] * options
            values[right], values[(right + 1) % options] = 1.0, 0.5
            dialog.append({"question": one["question"], "answer": one["answer"], "answer_options": chosen,
                           "gt_index": right, "relevance": values})  # fmt: skip
        caption = captions[image]
        caption = caption if isinstance(caption, str) else caption[0]
        records.append({"image": str(phantoms / image), "image_id": number, "caption": caption, "dialog": dialog})
    return records


def of_several_pictures(path: Path | str) -> None:
    """Every second record of a file of captions or questions gets further pictures: those of the next ones."""
    records = json.loads(Path(path).read_text())
    images = [record["image"] for record in records]
    for i, record in enumerate(records):
        if i % 2 == 0:
            del record["image"]
            record["images"] = [images[(i + step) % len(images)] for step in range(2 + i % 4 // 2)]
            record.pop("image_id", None)
    Path(path).write_text(json.dumps(records))


def configure(task: str, phantoms: Path, folder: Path, *options: str, init_from: Path | str = "") -> FineTuneConfig:
    """The configuration of a tiny run: 12 records to train (three steps an epoch), 7 for validation, 5 to test."""
    files = {
        f"{name}_file": f"[{write_part(phantoms, task, start, end, folder / f'{task}-{name}.json')}]"
        for name, start, end in (("train", 0, 12), ("val", 12, 19), ("test", 20, 25))
    }
    start = {"init_from": init_from} if init_from else {**MODEL_SIZES, "tokenizer": phantoms / "tokenizer.json"}
    values = {**SHARED, **TASKS[task][5], **files, **start}
    path = folder / f"{task}.yaml"
    path.write_text("".join(f"{key}: {value}\n" for key, value in values.items()))
    return load_config(path, TASKS[task][1], list(options))


def script_of(task: str) -> str:
    """The script in the root folder that trains a task."""
    return "train_visdial.py" if task == "dialogue" else f"train_{task}.py"


def train(task: str, config: FineTuneConfig, output: Path, resume: str = "") -> None:
    TASKS[task][0].run(config, output, resume, device=CPU)


def train_apart(task: str, config: FineTuneConfig, output: Path) -> None:
    """`train` in a process that was started for it."""
    torch.set_num_threads(1)
    be_quick()
    train(task, config, output)


def be_quick() -> None:
    """Without Java's scores and without a measurement of this machine."""
    blip.train.run.measure_peak = lambda *_: 0.0  # type: ignore[assignment]
    os.environ["PATH"] = ""


def score(task: str, config: FineTuneConfig, output: Path) -> dict[str, Any]:
    """`--evaluate` -> what it wrote."""
    folder = TASKS[task][0].score(config, output, CPU)
    return json.loads((folder / "evaluation.json").read_text())


def tree(folder: Path) -> dict[str, bytes]:
    """Every file in a folder, but for the locks."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(".blip.lock")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def evaluations(output: Path) -> list[dict]:
    """The lines of the log that hold validation scores."""
    return [line for line in read_metrics(output) if "best" in line]


def result(output: Path) -> tuple[list[dict], dict[str, torch.Tensor], dict]:
    """The log without times, the weights and the training state of a finished run."""
    lines = [{k: v for k, v in line.items() if k not in TIMES} for line in read_metrics(output)]
    last = complete_checkpoints(output)[-1]
    return lines, load_weights(last)[0], torch.load(last / "training.pt", weights_only=True)


def assert_same_run(one: Path, other: Path) -> None:
    """Equal logs but for times; weights, best weights and training state equal bit for bit."""
    (lines, weights, training), (other_lines, other_weights, other_training) = result(one), result(other)
    assert lines == other_lines
    logs = [read_history(run) for run in (one, other)]
    assert logs[0].samples == logs[1].samples and logs[0].similarities == logs[1].similarities
    same_tensors(weights, other_weights)
    same_tensors(training, other_training)
    if (one / "best").is_dir():
        same_tensors(load_weights(one / "best")[0], load_weights(other / "best")[0])


def same_tensors(one: Any, other: Any) -> None:
    """Everything in two nested states is the same."""
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            same_tensors(one[key], other[key])
    elif isinstance(one, list | tuple):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            same_tensors(a, b)
    else:
        assert one == other
