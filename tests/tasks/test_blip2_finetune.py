"""Fine-tuning of BLIP-2 by the scripts of BLIP: which class trains, what is scored, saved and resumed."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.blip2_runs import SHARED, SIZED, stage1, stage2, train, write_language_model
from helpers.fine_tuning import CPU, TASKS, assert_same_run, evaluations, score, write_part

import blip
from blip.checkpoints.format import load_weights
from blip.config import ConfigError, load_config
from blip.inference.load_blip2 import LanguageChoice
from blip.tasks import blip2_finetune, blip2_start
from blip.tasks.config import FineTuneConfig
from blip.tasks.vqa import KINDS

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_java_nor_peak")]
LORA = "lora={rank: 2, language_model: [q_proj], qformer: [query]}"
SETTINGS: dict[str, dict[str, object]] = {
    "caption": {"prompt": '"a photo of"', "beams": 2, "max_new_tokens": 4, "best_metric": "val_bleu1"},
    "vqa": {"max_answer_tokens": 8, "max_new_tokens": 3, "beams": 1, "max_text_tokens": 20},
    "retrieval": {"k_test": 4},
}


@pytest.fixture(scope="module")
def language(phantoms: Path, tiny_config: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_language_model(tmp_path_factory.mktemp("language") / "model", phantoms)


@pytest.fixture(scope="module")
def stages(language: Path, phantoms: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folders of a run of each stage, of one step."""
    folder = tmp_path_factory.mktemp("stages")
    train(stage1(phantoms, max_steps=1), folder / "first")
    train(stage2(phantoms, language, init_from=folder / "first", max_steps=1), folder / "second")
    second = folder / "second"
    return {"caption": second, "vqa": second, "retrieval": folder / "first", "language": language}


def configured(task: str, phantoms: Path, folder: Path, *options: str, **values: Any) -> FineTuneConfig:
    files = {
        f"{name}_file": f"[{write_part(phantoms, task, start, end, folder / f'{task}-{name}.json')}]"
        for name, start, end in (("train", 0, 12), ("val", 12, 19), ("test", 20, 25))
    }
    given = {key: value for key, value in SHARED.items() if key not in SIZED}
    if task != "retrieval":
        given["language_dtype"] = "fp32"
    path = folder / f"{task}.yaml"
    content = {**given, **SETTINGS[task], **files, **values}
    path.write_text("".join(f"{key}: {value}\n" for key, value in content.items()))
    return load_config(path, TASKS[task][1], list(options))


def tuned(task: str, config: FineTuneConfig, output: Path, resume: str = "") -> None:
    TASKS[task][0].run(config, output, resume, device=CPU)


@pytest.mark.parametrize("task", SETTINGS)
def test_trains_and_is_scored(task: str, stages: dict[str, Path], phantoms: Path, tmp_path: Path) -> None:
    config = configured(task, phantoms, tmp_path, init_from=stages[task], test_file="[]")
    tuned(task, config, tmp_path / "run")
    metric = TASKS[task][1].model_fields["best_metric"].default if task != "caption" else "val_bleu1"
    (line, *_) = evaluations(tmp_path / "run")
    assert metric in line and "val_loss" in line
    assert json.loads((tmp_path / "run" / f"{TASKS[task][4]}_val.json").read_text())
    _, info = load_weights(tmp_path / "run" / "best")
    assert info["task"] == ("blip2" if task == "retrieval" else "blip2_language")
    again = score(task, configured(task, phantoms, tmp_path, init_from=tmp_path / "run" / "best", test_file="[]"),
                  tmp_path / "scored")  # fmt: skip
    best = json.loads((tmp_path / "run" / "best" / "metrics.json").read_text())
    assert again[metric] == pytest.approx(best[metric], abs=1e-6)


@pytest.mark.parametrize(("task", "options"), [("caption", (LORA,)), ("vqa", ()), ("retrieval", ())])
def test_resumed_bit_for_bit(
    task: str, options: tuple[str, ...], stages: dict[str, Path], phantoms: Path, tmp_path: Path
) -> None:
    config = configured(task, phantoms, tmp_path, *options, init_from=stages[task], dropout=0.1)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    tuned(task, config, whole)
    shutil.copytree(whole, killed, symlinks=True)
    shutil.rmtree(killed / "checkpoints" / "step-00000004")
    tuned(task, config, killed, "auto")
    assert_same_run(whole, killed)
    if options:
        tensors, info = load_weights(whole / "best")
        assert info["lora"]["rank"] == 2 and any(".lora_A." in name for name in tensors)
        rows = json.loads((whole / "captions_val.json").read_text())
        model = blip.load(whole / "checkpoints" / "latest", language_model=LanguageChoice(dtype="fp32"))
        written = model.caption([row["image"] for row in rows], decoding=config.decoding())
        assert written == [row["caption"] for row in rows]


def test_a_long_question_is_cut_and_its_answer_is_not(
    stages: dict[str, Path], phantoms: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    """In training and when it is asked; the run tells the share."""
    config = configured("vqa", phantoms, tmp_path, init_from=stages["vqa"], max_steps=1, max_answer_tokens=4)
    files = [Path(str(entry)) for entry in (*config.train_file, *config.val_file)]
    records = [json.loads(path.read_text()) for path in files]
    long = "which plane is " + "it normal and " * 9 + "shown"
    for record in (*records[0][:3], records[1][0]):
        record["question"] = long
    answers = [record["answer"] for record in records[0]]
    for path, some in zip(files, records, strict=True):
        path.write_text(json.dumps(some))
    tuned("vqa", config, tmp_path / "run")
    assert "25.0% of questions cut at 20 tokens, 0.0% of answers where both have 24" in capsys.readouterr().err
    source = blip2_start.read_source(config)
    config = blip2_start.with_sizes_of(config, source)
    task = KINDS.blip2(config, source, tmp_path / "again", resume=None, device=CPU)
    (prompt,) = task.prompts_of([task.questions[0]])
    assert long.startswith(prompt.removeprefix("Question: ").removesuffix(" Answer:")) and "Answer:" in prompt
    assert len(task.language.tokens.tokenizer(prompt)["input_ids"]) == 20
    for question, answer in zip((task.questions[i] for i in range(4)), answers, strict=False):
        (learned, *ids), *_ = task.encoder()(question)[1]
        assert task.tokenizer.decode(ids[learned:]) == task.tokenizer.written(answer)


def test_a_question_beside_the_queries(stages: dict[str, Path], phantoms: Path, tmp_path: Path) -> None:
    """From the first stage, whose Q-Former has words; its own tokenizer reads the question."""
    given = {"init_from": stages["retrieval"], "question_in_qformer": True, "max_steps": 1}
    config = configured("vqa", phantoms, tmp_path, **given, language_model=stages["language"])
    tuned("vqa", config, tmp_path / "run")
    tensors, info = load_weights(tmp_path / "run" / "best")
    assert info["question_in_qformer"] and "qformer.embeddings.words.weight" in tensors


def test_options_of_blip2_are_refused_for_blip(phantoms: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    config = configured("caption", phantoms, tmp_path, init_from=tiny_checkpoint, language_dropout=True)
    with pytest.raises(ConfigError, match="language_dropout, language_dtype: for BLIP-2"):
        tuned("caption", config, tmp_path / "run")


def test_layer_decay_reaches_the_qformer(stages: dict[str, Path], phantoms: Path, tmp_path: Path) -> None:
    from blip.train.optim import layer_scales

    config = configured("caption", phantoms, tmp_path, init_from=stages["caption"])
    source = blip2_finetune.blip2_start.read_source(config)
    config = blip2_finetune.blip2_start.with_sizes_of(config, source)
    made = blip2_finetune.Blip2Captioning(config, source, tmp_path / "run", resume=None, device=torch.device("cpu"))
    scales = layer_scales(made.model, 0.5)
    assert scales["qformer.layers.0.self_attention.q.weight"] == 0.25
    assert scales["qformer.layers.1.self_attention.q.weight"] == 0.5
    assert scales["qformer.queries"] == 0.125 and scales["language_proj.weight"] == 1
