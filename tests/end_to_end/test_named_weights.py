"""Weights by name through verbs, training, resuming and adapters, from the hub server of the tests."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.fine_tuning import TASKS, configure, score, train, write_part
from helpers.hub_server import HubServer
from helpers.random_checkpoints import noise_images, random_checkpoint
from helpers.running import run_script, run_verb

import blip
from blip.capfilt.config import CapFiltConfig
from blip.capfilt.rounds import pin_start, remember
from blip.checkpoints import convert
from blip.config import load_config
from blip.errors import InputError
from blip.hub.names import RemoteError

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("no_java_nor_peak")]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    monkeypatch.setattr("blip.checkpoints.download.FIRST_DELAY", 0.0)
    with HubServer() as server:
        server.use_here(monkeypatch, tmp_path / "cache")
        yield server


@pytest.fixture(scope="module")
def captioner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return random_checkpoint(tmp_path_factory.mktemp("captioner"), "caption", prompt="a")


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return noise_images(tmp_path_factory.mktemp("images"))[0]


def test_every_form_of_a_name_loads_the_same_model(
    hub: HubServer, captioner: Path, image: Path, tmp_path: Path
) -> None:
    expected = blip.load(captioner, device="cpu").caption(image, "a")
    tensors, info = convert.read(captioner)
    words = captioner / "tokenizer.json"
    convert.write(tmp_path / "hf", tensors, info, to="huggingface", tokenizer_file=words)
    convert.write(tmp_path / "model.pth", tensors, info, to="salesforce")
    hub.add("models", "lab/ours", captioner)
    hub.add("models", "lab/hf", tmp_path / "hf")
    address = hub.add_file("models/model_base.pth", tmp_path / "model.pth")
    for name in ("hub:lab/ours", "lab/ours", "hub:lab/hf"):
        assert blip.load(name).caption(image, "a") == expected, name
    heads = {"image_heads": info["image_encoder"]["heads"], "text_heads": info["text_decoder"]["heads"]}
    assert blip.load(address, tokenizer="hub:lab/ours", **heads).caption(image, "a") == expected


def test_verbs_take_names(hub: HubServer, captioner: Path, image: Path, tmp_path: Path) -> None:
    hub.add("models", "lab/ours", captioner)
    result = run_verb("caption", image, "--checkpoint", "hub:lab/ours", "--json", "--device", "cpu")
    assert result.exit_code == 0, result.output
    result = run_verb("convert", "hub:lab/ours", tmp_path / "copy")
    assert result.exit_code == 0 and (tmp_path / "copy" / "tokenizer.json").is_file(), result.output
    result = run_verb("convert", f"{hub.url}/files/none.pth", tmp_path / "none")
    assert result.exit_code == 1 and "answers 404: there is no such file; the nearest" in " ".join(
        result.output.split()
    )
    result = run_verb("caption", image, "--checkpoint", "hub:lab/mine", "--device", "cpu")
    assert result.exit_code == 1 and "the hub shows no lab/mine" in " ".join(result.output.split())


@pytest.fixture
def part(phantoms: Path, tmp_path: Path) -> Path:
    return write_part(phantoms, "caption", 0, 8, tmp_path / "captions.json")


def config_of(run: Path) -> str:
    return load_config(run / "config.yaml", TASKS["caption"][1]).init_from


def test_a_run_pins_what_it_starts_from(
    hub: HubServer, tiny_checkpoint: Path, phantoms: Path, part: Path, tmp_path: Path
) -> None:
    commit = hub.add("models", "lab/ours", tiny_checkpoint)
    options = f"train_file=[{part}]", f"val_file=[{part}]"
    run = tmp_path / "run"
    train("caption", configure("caption", phantoms, tmp_path, *options, "max_steps=2", init_from="lab/ours"), run)
    assert config_of(run) == f"hub:lab/ours@{commit}"
    newer = tmp_path / "newer"
    shutil.copytree(tiny_checkpoint, newer)
    info = json.loads((newer / "model.json").read_text())
    (newer / "model.json").write_text(json.dumps({**info, "max_text_tokens": 31}))
    hub.add("models", "lab/ours", newer)
    again = configure("caption", phantoms, tmp_path, *options, "max_steps=4", init_from="lab/ours")
    asked = len(hub.asked)
    train("caption", again, run, resume="auto")  # continues from what it began with
    assert config_of(run) == f"hub:lab/ours@{commit}" and len(hub.asked) == asked
    train("caption", again, tmp_path / "other")
    assert config_of(tmp_path / "other") not in (f"hub:lab/ours@{commit}", "lab/ours")
    assert score(
        "caption", configure("caption", phantoms, tmp_path, *options, init_from="lab/ours"), tmp_path / "scores"
    )


def test_a_run_from_an_address_notices_other_bytes(
    hub: HubServer, tiny_checkpoint: Path, phantoms: Path, part: Path, tmp_path: Path
) -> None:
    tensors, info = convert.read(tiny_checkpoint)
    convert.write(tmp_path / "model.pth", tensors, info, to="salesforce")
    address = hub.add_file("model.pth", tmp_path / "model.pth")
    options = (f"train_file=[{part}]", "max_steps=1", "image_heads=2", "text_heads=2",
               f"tokenizer={tiny_checkpoint / 'tokenizer.json'}")  # fmt: skip
    run = tmp_path / "run"
    train("caption", configure("caption", phantoms, tmp_path, *options, init_from=address), run)
    name = config_of(run)
    assert name.startswith(f"{address}#sha256=")
    shutil.rmtree(tmp_path / "cache")
    hub.fail("model.pth", "wrong")
    config = configure("caption", phantoms, tmp_path, *options, init_from=name)
    with pytest.raises(RemoteError, match="is another file than before"):
        train("caption", config, tmp_path / "again")


def test_a_published_configuration_runs(
    hub: HubServer, tiny_checkpoint: Path, phantoms: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its address of weights, its annotation files and the tokenizer that the published code takes."""
    tensors, info = convert.read(tiny_checkpoint)
    convert.write(tmp_path / "model.pth", tensors, info, to="salesforce")
    address = hub.add_file("models/model_base.pth", tmp_path / "model.pth")
    hub.add("models", "bert-base-uncased", tiny_checkpoint)
    monkeypatch.chdir(tmp_path)
    Path("annotation").mkdir()
    for split, start in (("train", 0), ("val", 12), ("test", 16)):
        write_part(phantoms, "caption", start, start + 4, Path("annotation", f"coco_karpathy_{split}.json"))
    published = {"ann_root": "annotation", "pretrained": address, "vit_grad_ckpt": False, "vit_ckpt_layer": 0,
                 "batch_size": 4, "init_lr": 1e-5, "image_size": 32, "max_length": 8, "min_length": 5, "num_beams": 2,
                 "prompt": "'a picture of '", "weight_decay": 0.05, "min_lr": 0, "max_epoch": 1}  # fmt: skip
    Path("caption_coco.yaml").write_text("".join(f"{key}: {value}\n" for key, value in published.items()))
    sizes = ["image_heads=2", "text_heads=2", "num_workers=0", "precision=fp32", "device=cpu", "best_metric=val_bleu1"]
    config = load_config("caption_coco.yaml", TASKS["caption"][1], sizes)
    train("caption", config, tmp_path / "run")
    assert (tmp_path / "run" / "test.json").is_file() and config_of(tmp_path / "run").startswith(address)


def test_two_processes_fetch_once(hub: HubServer, tiny_checkpoint: Path, phantoms: Path, tmp_path: Path) -> None:
    hub.add("models", "lab/ours", tiny_checkpoint)
    configure("caption", phantoms, tmp_path, init_from="hub:lab/ours")
    run = tmp_path / "run"
    done = run_script(
        "--config", tmp_path / "caption.yaml", "--output_dir", run, "--set", "max_steps=1", "--set", "test_file=[]",
        processes=2, script="train_caption.py", env=hub.environment(tmp_path / "cache"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert sum(line.startswith("GET /objects/") for line in hub.asked) == 1
    assert done.stderr.count("fetching model.safetensors") == 1 and "@" in config_of(run)


def test_adapters_find_their_base_by_name(
    hub: HubServer, tiny_checkpoint: Path, phantoms: Path, part: Path, tmp_path: Path, image: Path
) -> None:
    pytest.importorskip("peft")
    commit = hub.add("models", "lab/ours", tiny_checkpoint)
    options = (f"train_file=[{part}]", f"val_file=[{part}]", "max_steps=2", "lora={rank: 2, targets: [q, v]}")
    run = tmp_path / "run"
    train("caption", configure("caption", phantoms, tmp_path, *options, init_from="hub:lab/ours"), run)
    alone = tmp_path / "alone"
    alone.mkdir()
    for name in ("adapter.safetensors", "adapter.json", "tokenizer.json"):
        shutil.copy(run / "best" / name, alone / name)
    assert json.loads((alone / "adapter.json").read_text())["base"] == f"hub:lab/ours@{commit}"
    assert blip.load(alone).caption(image) == blip.load(run / "best").caption(image)


def test_rounds_of_capfilt_pin_their_start(hub: HubServer, tiny_checkpoint: Path, tmp_path: Path) -> None:
    commit = hub.add("models", "lab/ours", tiny_checkpoint)
    config = CapFiltConfig(web_file=["a.json"], human_file=["b.json"], start="lab/ours")
    remember(begun := pin_start(config, tmp_path / "rounds"), tmp_path / "rounds")
    assert begun.start == f"hub:lab/ours@{commit}"
    shutil.copytree(tiny_checkpoint, tmp_path / "newer")
    (tmp_path / "newer" / "config.json").write_text("{}")
    assert hub.add("models", "lab/ours", tmp_path / "newer") != commit
    remember(pin_start(config, tmp_path / "rounds"), tmp_path / "rounds")  # ConfigError if it were the newer one
    assert pin_start(config, tmp_path / "others").start != begun.start


def test_devices(captioner: Path) -> None:
    assert blip.load(captioner, device="cpu").device.type == "cpu"
    for device, message in (("tpu", "it can be auto, cpu, cuda"), ("cuda:99", "torch finds")):
        with pytest.raises(InputError, match=message):
            blip.load(captioner, device=device)
