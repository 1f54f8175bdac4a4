"""Fine-tuning in two processes: the scores of one, negatives of all as in a plain loop, exact resuming."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.fine_tuning import TASKS, assert_same_run, configure, evaluations, of_several_pictures, write_part
from helpers.recorded_fine_tuning import STEPS, build, process
from helpers.recorded_pretraining import CLIP, LR, hardest
from helpers.running import start_two
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from blip.models import losses, momentum
from blip.models.momentum import contrast_with_candidates, unit_features
from blip.models.retrieval import RetrievalModel
from blip.network.packing import Rows, with_first

COUNTS = (1, 7)  # records: one process has none; they have 4 and 3
CLOSE = {"rtol": 1e-4, "atol": 1e-5}  # float32, summed in another order


@pytest.fixture(scope="module")
def configs(phantoms: Path, tiny_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict:
    """What the processes are given: (evaluated, trained, recorded)."""
    folder = tmp_path_factory.mktemp("configs")
    evaluated, trained = {}, {}
    for task in TASKS:
        for count in COUNTS:
            file = write_part(phantoms, task, 12, 12 + count, folder / f"{task}-{count}.json")
            evaluated[task, count] = configure(
                task, phantoms, folder, f"val_file=[{file}]", "test_file=[]", init_from=tiny_checkpoint
            )
        # six steps an epoch become three
        given = ["max_steps=4", "save_every_steps=2", "keep_checkpoints=9", "batch_size=2"]
        given += ["negative_all_rank=true"] if task == "retrieval" else []
        trained[task] = configure(task, phantoms, folder, *given, init_from=tiny_checkpoint)
    for files in (trained["retrieval"].train_file, trained["retrieval"].val_file):
        of_several_pictures(str(files[0]))  # also in hard negatives of the other process
    plain = ["dropout=0", "negative_all_rank=true", "momentum=0.9", "val_file=[]", "test_file=[]"]
    recorded = configure("retrieval", phantoms, folder, *plain, init_from=tiny_checkpoint)
    return {"evaluated": evaluated, "trained": trained, "recorded": recorded}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("two")


@pytest.fixture(scope="module")
def seen(configs: dict, folder: Path) -> list[dict]:
    """What each of the two processes saw."""
    return start_two(process, folder, *configs.values())


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("count", COUNTS)
def test_evaluation_equals_one_process(seen: list[dict], configs: dict, folder: Path, task: str, count: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", "")  # no Java
        one = build(task, configs["evaluated"][task, count], folder / f"{task}-{count}-one").scores("val")
    assert seen[0]["evaluate"][task, count] == seen[1]["evaluate"][task, count]
    assert seen[0]["evaluate"][task, count] == pytest.approx(one, abs=1e-5)
    name = f"{TASKS[task][4]}_val.json"
    found = [json.loads((folder / f"{task}-{count}-{world}" / name).read_text()) for world in ("one", "two")]
    assert len(found[0]["image_to_text"] if task == "retrieval" else found[0]) == count
    assert_like(*found)


def assert_like(one: Any, other: Any) -> None:
    """The same but for numbers, which differ by 1e-5 at most."""
    if isinstance(one, float):
        assert one == pytest.approx(other, abs=1e-5)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_like(one[key], other[key])
    elif isinstance(one, list):
        assert len(one) == len(other)
        for a, b in zip(one, other, strict=True):
            assert_like(a, b)
    else:
        assert one == other


@pytest.mark.parametrize("task", TASKS)
def test_trains_and_resumes_as_if_undisturbed(seen: list[dict], folder: Path, task: str) -> None:
    assert seen  # every parameter got a gradient, or torch would have stopped the run
    assert [line["step"] for line in evaluations(folder / f"{task}-whole")] == [3, 4]
    assert_same_run(folder / f"{task}-whole", folder / f"{task}-killed")


# ---- negatives from all processes ------------------------------------------------------------------------------------


def plain_losses(
    model: RetrievalModel, batches: list, found: list[momentum.Candidates], alpha: float
) -> tuple[list[tuple[Tensor, Tensor]], int]:
    """(ITC, ITM) of each rank, every pair of the match losses on its own, and how many negatives are another rank's."""
    images, texts, owner = [], [], []
    for rank, batch in enumerate(batches):
        images += list(model.image_encoder(batch.images))  # (N, D) each
        texts += [ids[:length] for ids, length in zip(batch.ids, batch.lengths.tolist(), strict=True)]
        owner += [rank] * len(batch)
    image_features = unit_features(model.image_proj, torch.stack(images)[:, 0])
    text_features = torch.cat([unit_features(model.text_proj, first_state(model, ids, None)) for ids in texts])
    captions = torch.cat([batch.caption_ids for batch in batches])
    image_ids = torch.cat([batch.image_ids for batch in batches])
    same = (captions[:, None] == captions) | (image_ids[:, None] == image_ids)
    out, foreign = [], 0
    for rank in range(len(batches)):
        own = [i for i, r in enumerate(owner) if r == rank]
        itc, _, _ = contrast_with_candidates(
            image_features[own], text_features[own], found[rank], temperature=model.temperature, alpha=alpha
        )
        each = []
        for i in own:
            to_texts = (image_features[i] @ text_features.T).detach().masked_fill(same[i], -2)
            to_images = (text_features[i] @ image_features.T).detach().masked_fill(same[i], -2)
            text, image = int(to_texts.argmax()), int(to_images.argmax())
            foreign += (owner[text] != rank) + (owner[image] != rank)
            for ids, states, label in ((i, i, 1), (i, image, 0), (text, i, 0)):
                logits = model.itm_head(first_state(model, texts[ids], images[states]))
                each.append(F.cross_entropy(logits, torch.tensor([label])))
        out.append((itc, torch.stack(each).mean()))
    return out, foreign


def first_state(model: RetrievalModel, ids: Tensor, states: Tensor | None) -> Tensor:
    """The state (1, D) of one text's first token, alone or with one image's states (N, D)."""
    rows = Rows(torch.tensor([len(ids)]), len(ids), ids.device)
    if states is None:
        return model.text_encoder.text(ids[None], rows)[:1]
    keys = model.text_encoder.image_keys(states[None])
    return model.text_encoder.multimodal(with_first(ids[None], model.specials.enc), rows, keys)[:1]


def test_negatives_of_all_ranks_equal_a_plain_loop(seen: list[dict], configs: dict, folder: Path) -> None:
    ranks = [found["record"] for found in seen]
    task = build("retrieval", configs["recorded"], folder / "plain")
    model, twin, queue, config = task.model, task.contrast.twin, task.contrast.queue, task.config
    assert_close(dict(model.state_dict()), ranks[0]["start"], rtol=0, atol=0)
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=0.9)
    foreign = 0
    for step in range(STEPS):
        batches = [rank["batches"][step] for rank in ranks]
        features = [twin(batch.images, batch.ids, batch.lengths) for batch in batches]
        found = [
            momentum.candidates(momentum.Entries(*two, batch.caption_ids, batch.image_ids), queue)
            for two, batch in zip(features, batches, strict=True)
        ]
        alpha = losses.alpha_ramp(step, 1, config.alpha)  # half an epoch of one and a half steps
        out, from_others = plain_losses(model, batches, found, alpha)
        foreign += from_others
        for rank, (itc, itm) in zip(ranks, out, strict=True):
            assert itc.item() == pytest.approx(rank["losses"][step]["itc"], rel=1e-4)
            assert itm.item() == pytest.approx(rank["losses"][step]["itm"], rel=1e-4)
        optimizer.zero_grad()
        sum((itc + itm for itc, itm in out), torch.zeros(())).div(len(ranks)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        for rank in ranks:
            for name, parameter in model.named_parameters():
                assert_close(rank["gradients"][step][name], parameter.grad, **CLOSE)
        optimizer.step()
        with torch.no_grad():
            momentum.update_twin(*twin.pairs_with(model), config.momentum)
        entries = zip(*(
            (*two, batch.caption_ids, batch.image_ids) for two, batch in zip(features, batches, strict=True)
        ), strict=True)  # fmt: skip
        queue.push(momentum.Entries(*(torch.cat(parts) for parts in entries)))
        for mine, theirs in zip((model, twin, queue), ranks[0]["after"][step], strict=True):
            assert_close(dict(mine.state_dict()), theirs, **CLOSE)
    assert foreign, "some hard negatives come from the other process"
    assert hardest(torch.eye(2))[0].tolist() == [0, 1]
