"""What an evaluation logs: losses equal to those of training's own forward pass, samples, histograms, the document."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.fine_tuning import CPU, TASKS, TIMES, configure, same_tensors, train
from helpers.running import ROOT

from blip.checkpoints.format import load_weights
from blip.config import PretrainConfig, load_config
from blip.data.batches import Batch
from blip.data.gallery import ImagesByNumber
from blip.evaluation.pretraining import evaluate_pretraining
from blip.models.matching import match_logits
from blip.models.nlvr import statement_loss
from blip.network.packing import Rows, with_first
from blip.tasks import pretrain, start
from blip.tasks.samples import SHOWN, chosen
from blip.train.checkpoint import complete_checkpoints
from blip.train.history import History, read_history
from blip.train.log import RunLog, read_metrics

pytestmark = [pytest.mark.usefixtures("no_java_nor_peak"), pytest.mark.slow]
ALL = ("pretrain", *TASKS)
OBJECTIVES = {
    "pretrain": ("itc", "itm", "lm"), "retrieval": ("itc", "itm"), "caption": ("lm",), "vqa": ("lm",), "nlvr": ("ce",),
    "dialogue": ("itm",),
}  # fmt: skip
# entries of lines that have their own meaning: of steps, then of epochs and evaluations
DOCUMENTED = {"train_itc", "val_itc", "val_lm", "val_ce", "val_images", "val_statements", "val_rouge_l", "val_meteor"}
DOCUMENTED |= {"val_token_recall", "pairs_NAME", "val_itm", "val_chance", "val_itc_r_mean"}


@pytest.fixture(scope="module")
def made(
    phantoms: Path, tiny_config: Path, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Callable:
    """(task, options) -> the folder of a run of two epochs, and the configuration; each is run once."""
    known: dict[tuple, tuple[Path, Any]] = {}

    def run(task: str, *options: str) -> tuple[Path, Any]:
        if (task, *options) not in known:
            folder = tmp_path_factory.mktemp(task)
            config: Any
            if task == "pretrain":
                config = load_config(tiny_config, PretrainConfig, ["max_steps=12", "dropout=0.1", "epochs=9", *options])
                pretrain.run(config, folder / "run", "", device=CPU)
            else:
                given = ("max_steps=7", "dropout=0.1", *options)
                config = configure(task, phantoms, folder, *given, init_from=tiny_checkpoint)
                train(task, config, folder / "run")
            known[task, *options] = folder / "run", config
        return known[task, *options]

    return run


def of_steps(output: Path) -> list[dict]:
    return [{k: v for k, v in line.items() if k not in TIMES} for line in read_metrics(output) if "lr" in line]


@pytest.mark.parametrize("task", ALL)
def test_every_epoch_has_losses_of_training_and_validation(task: str, made: Callable) -> None:
    output, _ = made(task)
    history: History = read_history(output)
    per_epoch = 6 if task == "pretrain" else 3
    assert [line["epoch"] for line in history.epochs] == ([1, 2] if task == "pretrain" else [1, 2, 2])
    assert [line["epoch"] for line in history.steps][:2] == pytest.approx([1 / per_epoch, 2 / per_epoch], abs=1e-5)
    for line in history.epochs:
        for part in ("train", "val"):
            parts = [line[f"{part}_{name}"] for name in OBJECTIVES[task]]
            assert line[f"{part}_loss"] == pytest.approx(sum(parts), rel=1e-6)
    first = [line for line in history.steps if line["epoch"] <= 1]
    mean = sum(line["loss"] for line in first) / len(first)
    assert history.epochs[0]["train_loss"] == pytest.approx(mean, rel=1e-6)


@pytest.mark.parametrize("task", ["pretrain", "retrieval", "caption"])
def test_validation_losses_change_no_number_of_training(task: str, made: Callable) -> None:
    """With dropout, a changed state of random numbers would show."""
    (with_losses, _), (without, _) = made(task), made(task, "val_loss=false")
    assert of_steps(with_losses) == of_steps(without)
    weights = [load_weights(complete_checkpoints(output)[-1])[0] for output in (with_losses, without)]
    same_tensors(*weights)
    assert "val_loss" not in read_metrics(without)[-1] and "val_loss" in read_metrics(with_losses)[-1]
    scores = [{k: v for k, v in read_metrics(output)[-1].items() if k not in kept} for output in (with_losses, without)
              for kept in ({"val_loss", *(f"val_{name}" for name in OBJECTIVES[task])},)]  # fmt: skip
    assert scores[0] == scores[1]


@pytest.mark.parametrize("task", TASKS)
def test_an_evaluation_draws_nothing(task: str, phantoms: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    one = built(task, configure(task, phantoms, tmp_path, "dropout=0.1", init_from=tiny_checkpoint), tmp_path)
    before = torch.get_rng_state()
    one.scores("val")
    assert torch.equal(torch.get_rng_state(), before)


def test_an_evaluation_of_pretraining_draws_nothing(tiny_config: Path, tmp_path: Path) -> None:
    config = load_config(tiny_config, PretrainConfig, ["dropout=0.1", "max_steps=1"])
    task = pretrain.Pretraining(config, tmp_path, None, device=CPU)
    before = torch.get_rng_state()
    line = task.at_step_end(1, RunLog(tmp_path, 0, 1))
    assert line is not None and "val_loss" in line
    assert torch.equal(torch.get_rng_state(), before) and task.model.training


@pytest.mark.parametrize("task", ALL)
def test_the_same_records_are_shown_each_time(task: str, made: Callable) -> None:
    output, _ = made(task)
    samples = read_history(output).samples
    evaluations = sorted({line["step"] for line in samples})
    assert len(evaluations) == len(read_history(output).epochs)
    seen = [[(line["index"], line["image"], line["text"], line["truth"]) for line in samples if line["step"] == step]
            for step in evaluations]  # fmt: skip
    assert all(one == seen[0] for one in seen)
    assert len(seen[0]) == (SHOWN if task == "pretrain" else 7 if task != "retrieval" else len({s[1] for s in seen[0]}))
    for line in samples:
        images = line["image"] if isinstance(line["image"], list) else [line["image"]]
        assert all(Path(image).is_file() for image in images) and len(images) == (2 if task == "nlvr" else 1)
        assert isinstance(line["output"], str) and line["truth"] and line["epoch"] in (1, 2)
        assert bool(line["text"]) == (task in ("vqa", "nlvr", "dialogue"))
        assert "rank" not in line or (line["rank"] == 1) == (line["truth"] == line["output"])


def test_records_are_spread_over_the_set() -> None:
    assert chosen(7) == set(range(7)) and chosen(0) == set() and len(chosen(1000)) == SHOWN
    assert max(chosen(1600)) == 1500 and min(chosen(1600)) == 0


@pytest.mark.parametrize("task", ["pretrain", "retrieval"])
def test_histograms_count_every_pair(task: str, made: Callable) -> None:
    output, _ = made(task)
    lines = read_history(output).similarities
    assert len(lines) == len(read_history(output).epochs)
    for line in lines:
        assert len(line["edges"]) == 101 and line["edges"][0] == -1 and line["edges"][-1] == 1
        assert len(line["matched"]) == len(line["unmatched"]) == 100
    images = 48 if task == "pretrain" else 7
    texts = images if task == "pretrain" else json.loads((output / "retrieval_val.json").read_text())["texts"]
    total = sum(lines[0]["matched"]) + sum(lines[0]["unmatched"])
    assert total == images * (texts if isinstance(texts, int) else len(texts))
    assert images <= sum(lines[0]["matched"]) < total


@pytest.mark.parametrize("task", ALL)
def test_the_document_explains_every_entry(task: str, made: Callable) -> None:
    text = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(\w+)`", text))
    assert named >= DOCUMENTED
    spoken = {general(name) for name in named}
    for line in read_metrics(made(task)[0]):
        for name in line:
            kinds = [known for known in ("val_exact_match", "val_token_recall", "val_token_f1", "val_bleu1")
                     if name.startswith(f"{known}_")]  # fmt: skip
            found = general(name.removeprefix("train_")) in spoken or general(name) in spoken
            assert found or kinds, f"docs/metrics.md does not explain {name}"


def general(name: str) -> str:
    """One name for R@1 and R@5, for both directions, and for contrast and matching of a score."""
    name = re.sub(r"_r\d+$", "_r1", name).replace("t2i", "i2t")
    return name.replace("val_itc_i2t", "val_itm_i2t")


# ---- equal to the forward pass of training ---------------------------------------------------------------------------


def built(task: str, config: Any, output: Path) -> Any:
    """The task with its model in evaluation mode."""
    source = start.read_source(config)
    made = TASKS[task][2](start.with_sizes_of(config, source), source, output, resume=None, device=CPU)
    made.model.eval()
    return made


@pytest.mark.parametrize("task", ["caption", "vqa", "nlvr"])
def test_losses_of_all_records_in_one_batch(
    task: str, phantoms: Path, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The evaluation has batches of 4 and 3 records."""
    one = built(task, configure(task, phantoms, tmp_path, init_from=tiny_checkpoint), tmp_path)
    found = one.scores("val")
    datasets: list[Any] = []
    plain = one.eval_batches
    monkeypatch.setattr(one, "eval_batches", lambda dataset: (datasets.append(dataset), plain(dataset))[1])
    one.scores("val")
    dataset = datasets[0]
    batch = one.collate_fn([dataset[i] for i in range(len(dataset))], pad_id=one.tokenizer.pad_id)
    with torch.no_grad():
        if task == "caption":
            expected = one.model(batch.images, batch.ids, batch.lengths, prompt_length=one.prompt.shape[1])
        elif task == "vqa":
            answers = {name: getattr(batch, name) for name in ("answer_ids", "answer_lengths", "owner", "weights")}
            expected = one.model(batch.images, batch.ids, batch.lengths, **answers)
        else:
            expected = statement_loss(one.model(batch.images, batch.ids, batch.lengths), batch.labels)
    assert found[f"val_{OBJECTIVES[task][0]}"] == pytest.approx(expected.item(), rel=1e-5)
    assert found["val_loss"] == found[f"val_{OBJECTIVES[task][0]}"]
    encoded = dataset.encode(dataset.records.captions(0)[0]) if task == "caption" else []
    assert task != "caption" or encoded[: one.prompt.shape[1]][1:] == one.prompt[0].tolist()[1:], "with the prompt"


@pytest.mark.parametrize("k", [1, 2, 100])
def test_matching_of_retrieval_pair_by_pair(k: int, phantoms: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Hard negatives are the wrong candidates with the largest cosine; with one candidate there may be none."""
    config = configure("retrieval", phantoms, tmp_path, f"k_test={k}", init_from=tiny_checkpoint)
    one = built("retrieval", config, tmp_path)
    found = one.scores("val")
    gallery = one.galleries["val"]
    texts = gallery.texts
    pixels = next(iter(ImagesByNumber(gallery.images, one.eval_transform())([range(len(gallery.images))])))
    model = one.model
    with torch.no_grad():
        states = model.image_encoder(pixels)
        twin = one.contrast.twin.eval()
        images, lines = twin(pixels, texts.ids, texts.lengths)  # equal to the model's, from which it was copied
        cosines = images @ lines.T  # (I, M)
        logits = torch.stack([
            match_logits(model.text_encoder, model.itm_head, with_first(texts.ids, model.specials.enc),
                         lengths=texts.lengths, keys=model.text_encoder.image_keys(state[None]))
            for state in states
        ])  # (I, M, 2)  # fmt: skip
    right = torch.zeros_like(cosines, dtype=torch.bool)
    for text, owners in enumerate(texts.images):
        right[owners, text] = True
    ce = torch.nn.functional.cross_entropy
    own = [ce(logits[owners[0], text], torch.tensor(1)) for text, owners in enumerate(texts.images)]
    means = []
    for scores, answers, pairs in ((cosines, right, logits), (cosines.T, right.T, logits.transpose(0, 1))):
        several = []
        for query, row in enumerate(scores):
            best = [c for c in row.argsort(descending=True, stable=True)[:k].tolist() if not answers[query, c]]
            several += [ce(pairs[query, best[0]], torch.tensor(0))] if best else []
        means += [torch.stack(several).mean()] if several else []
    matched = torch.stack(own).mean()
    expected = (matched + 2 * torch.stack(means).mean()) / 3 if means else matched
    assert found["val_itm"] == pytest.approx(expected.item(), rel=1e-4)
    similarity = cosines / model.temperature
    both = [-(s.log_softmax(dim=1) * t.float() / t.sum(dim=1, keepdim=True)).sum(dim=1).mean()
            for s, t in ((similarity, right), (similarity.T, right.T))]  # fmt: skip
    assert found["val_itc"] == pytest.approx(sum(both).item() / 2, rel=1e-5)  # type: ignore[union-attr]


def test_losses_of_pretraining_pair_by_pair(tiny_config: Path, tmp_path: Path) -> None:
    config = load_config(tiny_config, PretrainConfig, ["batch_size=5"])
    task = pretrain.Pretraining(config, tmp_path, None, device=CPU)
    model = task.model.eval()
    assert task.val is not None
    found = evaluate_pretraining(model, task.val, CPU).metrics
    lm, matched, unmatched = [], [], []
    ce = torch.nn.functional.cross_entropy
    with torch.no_grad():
        for batch in task.val:
            rows = [trimmed(batch, i) for i in range(len(batch))]
            for i, (image, ids) in enumerate(rows):
                keys = model.text_encoder.image_keys(model.image_encoder(image))
                length = torch.tensor([ids.shape[1]])
                packed = Rows(length, ids.shape[1], CPU)
                states = model.text_decoder(with_first(ids, model.specials.dec), packed, keys)
                lm += ce(model.text_decoder.head(states)[:-1], ids[0, 1:], label_smoothing=0.1, reduction="none")
                for text, label, losses in ((ids, 1, matched), (rows[i - 1][1], 0, unmatched)):
                    if label or batch.caption_ids[i] != batch.caption_ids[i - 1]:
                        logits = match_logits(
                            model.text_encoder, model.itm_head, with_first(text, model.specials.enc),
                            lengths=torch.tensor([text.shape[1]]), keys=keys,
                        )  # fmt: skip
                        losses.append(ce(logits[0], torch.tensor(label)))
    means = [torch.stack(several).mean().item() for several in (lm, matched, unmatched)]
    assert found["val_lm"] == pytest.approx(means[0], rel=1e-4)
    assert found["val_itm"] == pytest.approx((means[1] + 2 * means[2]) / 3, rel=1e-4)


def trimmed(batch: Batch, row: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Image and text of a pair, without padding."""
    return batch.images[row : row + 1], batch.ids[row : row + 1, : int(batch.lengths[row])]
