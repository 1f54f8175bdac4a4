"""Runs of every task on records of several pictures: trained, scored, resumed, saved, loaded and started from."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import blip2_runs
from helpers.fine_tuning import CPU, TASKS, assert_same_run, configure, of_several_pictures, score, train

import blip
from blip.checkpoints.format import load_weights
from blip.config import ConfigError, PretrainConfig, load_config
from blip.data.image_bytes import ImageLimits
from blip.data.pairs import read_pairs
from blip.network.flops import ImageTokens, pretrain_step
from blip.network.vit import TABLE, ViTConfig
from blip.tasks import item_pictures, pretrain, rehearsal, start
from blip.tasks.dry_run import trained_on_meta
from blip.train.checkpoint import complete_checkpoints

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_java_nor_peak")]

NAME = f"image_encoder.{TABLE}"
GIVEN = ("picture_embeddings=time", "max_pictures=3", "max_steps=3", "frames=5", "keep_checkpoints=9", "batch_size=4")


def resumed(whole: Path, killed: Path, continue_run: Any) -> None:
    """A copy of a run without its last checkpoint, continued."""
    shutil.copytree(whole, killed, symlinks=True)
    shutil.rmtree(complete_checkpoints(killed)[-1])
    continue_run(killed)


@pytest.mark.parametrize("task", ["retrieval", "caption", "vqa"])
def test_fine_tuning(task: str, phantoms: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    config = configure(task, phantoms, tmp_path, *GIVEN, init_from=tiny_checkpoint)
    for files in (config.train_file, config.val_file, config.test_file):
        of_several_pictures(str(files[0]))
    run = tmp_path / "run"
    train(task, config, run)
    resumed(run, tmp_path / "killed", lambda folder: train(task, config, folder, "auto"))
    assert_same_run(run, tmp_path / "killed")
    tensors, info = load_weights(run / "best")
    assert info["image_encoder"]["picture_embeddings"] == "time" and info["image_encoder"]["max_pictures"] == 3
    assert tensors[NAME].shape == (3, 32) and tensors[NAME].abs().sum(dim=1).min() > 0
    scores = score(task, config.model_copy(update={"init_from": str(run / "best")}), tmp_path / "scored")
    assert scores
    m = blip.load(run / "best")
    assert m.limits == ImageLimits(max_pictures=3, frames=5) and "slices" not in m.info
    pictures = [phantoms / "images" / f"00000{i}.png" for i in range(5)]
    if task == "caption":
        rows = json.loads((run / "captions_val.json").read_text())
        assert [len(row.get("images", [""])) for row in rows] == [2, 1, 3, 1, 2, 1, 3]
        items = [[*row["images"]] if "images" in row else row["image"] for row in rows]
        written = [texts[0].log_prob for texts in m.write(items, decoding=config.decoding())]
        assert written == pytest.approx([row["log_prob"] for row in rows], abs=1e-3)
    elif task == "vqa":
        assert m.answer(blip.Study(pictures[:3]), "where?")[0].text
    else:
        order = [m.match_logits(blip.Study(one), "a lesion") for one in (pictures[:3], pictures[2::-1])]
        assert not torch.equal(*order)  # the embeddings tell which is the current one
    # a run that starts from it keeps the embeddings, of as many pictures as it reads
    more = configure(task, phantoms, tmp_path, "max_pictures=5", init_from=run / "best")
    source = start.read_source(more)
    made = TASKS[task][2](start.with_sizes_of(more, source), source, tmp_path / "next", resume=None, device=CPU)
    assert made.model.image_encoder.config.picture_embeddings == "time"
    assert torch.equal(made.model.state_dict()[NAME][:3], tensors[NAME]) and not made.model.state_dict()[NAME][3:].any()


@pytest.mark.parametrize("option", ["freeze=[image_encoder]", "lora={rank: 2, targets: [qkv]}"])
def test_embeddings_learn_beside_frozen_weights(
    option: str, phantoms: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    """They start at zero, and would stay there."""
    if option.startswith("lora"):
        pytest.importorskip("peft", reason="peft is not installed")
    config = configure("caption", phantoms, tmp_path, *GIVEN, option, init_from=tiny_checkpoint)
    for files in (config.train_file, config.val_file, config.test_file):
        of_several_pictures(str(files[0]))
    train("caption", config, tmp_path / "run")
    resumed(tmp_path / "run", tmp_path / "killed", lambda folder: train("caption", config, folder, "auto"))
    tensors, other = (load_weights(complete_checkpoints(tmp_path / run)[-1])[0] for run in ("run", "killed"))
    assert tensors[NAME].abs().sum(dim=1).min() > 0 and torch.equal(tensors[NAME], other[NAME])
    norm = "image_encoder.norm.weight"
    assert torch.equal(tensors[norm], load_weights(tiny_checkpoint)[0][norm])


def test_pre_training(tiny_config: Path, phantoms: Path, tmp_path: Path) -> None:
    records = json.loads((phantoms / "captions.json").read_text())[:16]
    for record in records:
        record["image"] = str(phantoms / record["image"])
    (tmp_path / "set.json").write_text(json.dumps(records))
    of_several_pictures(tmp_path / "set.json")
    files = [f"{name}=[{tmp_path / 'set.json'}]" for name in ("train_file", "val_file")]
    options = [*GIVEN, *files, "epochs=9", "save_every_steps=1", "patch_dropout=0.4", "eval_every_epochs=1"]
    config = load_config(tiny_config, PretrainConfig, options)
    run = tmp_path / "run"
    pretrain.run(config, run, "", device=CPU)
    resumed(run, tmp_path / "killed", lambda folder: pretrain.run(config, folder, "auto", device=CPU))
    one, other = (load_weights(complete_checkpoints(folder)[-1]) for folder in (run, tmp_path / "killed"))
    assert all(torch.equal(tensor, other[0][name]) for name, tensor in one[0].items())
    assert one[0][NAME].abs().sum() > 0 and one[1]["image_encoder"]["picture_embeddings"] == "time"
    again = config.model_copy(update={"init_from": str(complete_checkpoints(run)[-1]), "picture_embeddings": "none"})
    with pytest.raises(ConfigError, match="set picture_embeddings: time"):
        start.build_pretrain(again, 120, start.Specials(0, 119, 118), device=CPU)
    captions = configure("caption", phantoms, tmp_path, init_from=complete_checkpoints(run)[-1])
    source = start.read_source(captions)
    made = TASKS["caption"][2](start.with_sizes_of(captions, source), source, tmp_path / "c", resume=None, device=CPU)
    assert torch.equal(made.model.state_dict()[NAME][:3], one[0][NAME])


def test_both_stages_of_blip2(phantoms: Path, tmp_path: Path) -> None:
    """The tower is frozen, its embeddings of pictures are trained."""
    pytest.importorskip("transformers")
    records = json.loads((phantoms / "captions.json").read_text())[:12]
    for record in records:
        record["image"] = str(phantoms / record["image"])
    (tmp_path / "set.json").write_text(json.dumps(records))
    of_several_pictures(tmp_path / "set.json")
    files = [f"{name}=[{tmp_path / 'set.json'}]" for name in ("train_file", "val_file")]
    first = blip2_runs.train(blip2_runs.stage1(phantoms, *GIVEN[:3], *files), tmp_path / "q1")
    tensors, info = load_weights(first)
    assert info["image_encoder"]["picture_embeddings"] == "time" and tensors[NAME].abs().sum() > 0
    language = blip2_runs.write_language_model(tmp_path / "language", phantoms)
    second = blip2_runs.train(blip2_runs.stage2(phantoms, language, *files, init_from=first), tmp_path / "q2")
    later, info = load_weights(second)
    assert info["image_encoder"]["picture_embeddings"] == "time" and not torch.equal(later[NAME][:3], tensors[NAME])
    m = blip.load(second)
    pictures = [phantoms / "images" / f"00000{i}.png" for i in range(3)]
    together = m.caption([blip.Study(pictures), pictures[0]], max_new_tokens=4)
    assert together == [m.caption([pictures], max_new_tokens=4)[0], m.caption(pictures[0], max_new_tokens=4)[0]]


# ---- costs, and what is left out -------------------------------------------------------------------------------------


def test_dry_runs_count_pictures(tiny_config: Path, phantoms: Path, tmp_path: Path) -> None:
    config = configure("caption", phantoms, tmp_path)
    assert item_pictures.pictures_of_run(config) == 1
    of_several_pictures(str(config.train_file[0]))
    item_pictures._most.cache_clear()
    assert item_pictures.pictures_of_run(config) == 3
    assert item_pictures.pictures_of_run(config.model_copy(update={"max_pictures": 2})) == 2
    assert item_pictures.pictures_of_run(config.model_copy(update={"train_file": ["nowhere.json"]})) == 1
    task = TASKS["caption"][2](config, None, tmp_path / "run", resume=None, device=CPU, training=False)
    task.pictures = 3
    assert rehearsal.RANDOM[task.collate_fn](task).images.shape == (4, 3, 3, 32, 32)
    made = load_config(tiny_config, PretrainConfig, [f"train_file=[{config.train_file[0]}]"])
    assert trained_on_meta(made).batch[0].shape == (8, 3, 3, 32, 32)
    vit = ViTConfig(32, 8, 24, 2, 3)
    costs = [pretrain_step(vit, start.text_config(made, 50), [5] * 4, seen=ImageTokens(17, 17, 17, n)) for n in (1, 3)]
    assert costs[1].image == 3 * costs[0].image and costs[1].keys == 3 * costs[0].keys
    assert costs[0].total < costs[1].total < 3 * costs[0].total


def test_what_is_left_out_is_said(phantoms: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = configure("caption", phantoms, tmp_path, "max_pictures=2")
    of_several_pictures(str(config.train_file[0]))
    pairs = read_pairs([str(config.train_file[0])])
    item_pictures.tell_left_out(pairs, config)
    assert "3 items have more than 2 pictures" in capsys.readouterr().err
    item_pictures.tell_left_out(pairs, config.model_copy(update={"max_pictures": 3}))
    assert capsys.readouterr().err == "" and ImageLimits().max_pictures == 16
