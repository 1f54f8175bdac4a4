"""Configuration files: what is read, what is refused, and what the message says."""

import shutil
from dataclasses import fields
from pathlib import Path

import pytest
from helpers.running import ROOT
from ruamel.yaml import YAML

from blip.config import ConfigError, PretrainConfig, RunConfig, WeightedFile, dump_config, find_config, load_config
from blip.models.decoding import Decoding
from blip.options import reading
from blip.tasks.config import DECODING_KEYS, WritingConfig


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A configuration with a few keys."""
    path = tmp_path / "own.yaml"
    path.write_text("lr: 1e-5\ntrain_file: [a.json]\nvit: tiny\n")
    return path


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("pretrain*.yaml")), ids=lambda path: path.name)
def test_files_of_the_project_load_and_say_what_they_are_for(path: Path) -> None:
    assert load_config(path, PretrainConfig).epochs > 0
    text = path.read_text()
    assert text.startswith("# ")
    assert "pretrain.py" in text or "make demo" in text, "the header shows the command"


def test_there_are_files_to_load() -> None:
    assert {"pretrain.yaml", "pretrain_demo.yaml"} <= {path.name for path in (ROOT / "configs").iterdir()}


def test_defaults_are_the_papers() -> None:
    config = PretrainConfig()
    assert (config.lr, config.weight_decay, config.momentum, config.alpha) == (3e-4, 0.05, 0.995, 0.4)
    assert (config.queue_size, config.randaugment, config.crop_scale) == (57600, (2, 5), (0.2, 1.0))
    assert not config.horizontal_flip


def test_numbers_in_scientific_notation_are_numbers(file: Path) -> None:
    assert load_config(file, PretrainConfig).lr == 1e-5
    assert load_config(file, PretrainConfig, ["min_lr=1e-7"]).min_lr == 1e-7
    assert load_config(file, PretrainConfig, ["lr=2E-4"]).lr == 2e-4


def test_overrides(file: Path) -> None:
    overrides = [
        "batch_size=7", "crop_scale=null", "train_file=[b.json, {path: c.json, weight: 0.5}]", "compile=true",
        "tokenizer=hub:a/b", "image_root=", "clip_norm=1", "randaugment=[1, 3]", "batch_size=8",
    ]  # fmt: skip
    config = load_config(file, PretrainConfig, overrides)
    assert config.batch_size == 8  # the last one counts
    assert config.crop_scale is None
    assert config.train_file == ["b.json", WeightedFile(path="c.json", weight=0.5)]
    assert config.compile is True
    assert (config.tokenizer, config.image_root) == ("hub:a/b", "")
    assert config.clip_norm == 1.0
    assert config.randaugment == (1, 3)
    assert config.vit == "tiny"  # from the file


def test_written_and_read_again(file: Path, tmp_path: Path) -> None:
    config = load_config(file, PretrainConfig, ["train_file=[{path: 'ä: b.json', weight: 2}]", "max_steps=3"])
    dump_config(config, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml", PretrainConfig) == config
    assert set(PretrainConfig.model_fields) <= {
        line.split(":")[0] for line in (tmp_path / "config.yaml").read_text().splitlines()
    }


def test_empty_file_is_an_empty_configuration_only_when_it_says_so(tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").write_text("{}\n")
    assert load_config(tmp_path / "empty.yaml", PretrainConfig) == PretrainConfig()


UNKNOWN = {"batchsize": "batch_size", "warmup": "warmup_steps", "image_res": "image_size", "wd": "."}


@pytest.mark.parametrize(("key", "near"), UNKNOWN.items())
def test_unknown_key_names_the_nearest(file: Path, key: str, near: str) -> None:
    with pytest.raises(ConfigError, match=f"--set {key}=1: unknown key '{key}'; did you mean '({near})"):
        load_config(file, PretrainConfig, [f"{key}=1"])
    file.write_text(f"{key}: 1\n")
    with pytest.raises(ConfigError, match=rf"own\.yaml: unknown key '{key}'; did you mean"):
        load_config(file, PretrainConfig)


REFUSED = [
    # types and ranges
    ("batch_size=many", r"batch_size: .*integer.*got 'many'"),
    ("batch_size=8.5", "batch_size: .*integer"),
    ("batch_size=0", "batch_size: .*greater than 0"),
    ("max_steps=0", "max_steps: .*greater than 0"),
    ("lr=-1", "lr: .*greater than 0"),
    ("lr=.nan", "lr: .*(finite|greater)"),
    ("lr=.inf", "lr: .*finite"),
    ("precision=fp16", "precision: .*'fp32', 'tf32' or 'bf16'.*got 'fp16'"),
    ("device=tpu", "device: .*'auto', 'cpu' or 'cuda'"),
    ("compile=perhaps", "compile: .*boolean"),
    ("train_file=a.json", "train_file: .*list.*got 'a.json'"),
    ("train_file=[{path: a.json, wieght: 2}]", "wieght"),
    ("train_file=[{path: a.json, weight: 0}]", "greater than 0"),
    ("crop_scale=[0.2]", "crop_scale"),
    ("dropout=1", "dropout: .*less than 1"),
    ("temperature=1", "temperature: .*less than or equal to 0.5"),
    ("max_skipped_fraction=1.5", "less than or equal to 1"),
    ("activation_checkpointing=all", "'none', 'torch' or 'fairscale'"),
    # options that do not go together
    ("vit_width=64", "vit: tiny has its own sizes"),
    ("vit=custom", "vit: custom needs vit_width"),
    ("text_heads=7", "text_width 768 is no multiple of text_heads 7"),
    ("max_text_tokens=600", "max_text_tokens 600 is above max_positions 512"),
    ("crop_scale=[1.0, 0.2]", r"crop_scale \[1.0, 0.2\] must be two shares"),
    ("crop_scale=[0, 1]", "crop_scale .* must be two shares"),
    ("min_lr=0.1", "min_lr 0.1 is above lr 1e-05"),
    # not an option at all
    ("batch_size", "--set batch_size: expected key=value"),
    ("train_file=[a.json", r"--set train_file=\[a\.json: not YAML"),
]


@pytest.mark.parametrize(("override", "message"), REFUSED, ids=[override for override, _ in REFUSED])
def test_refused(file: Path, override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(file, PretrainConfig, [override])
    assert "pydantic" not in str(caught.value)


def test_weights_from_two_places_are_refused(file: Path) -> None:
    for option in ("vision_init=timm/vit_tiny_patch16_224", "text_init=bert"):
        with pytest.raises(ConfigError, match="init_from gives every weight: --set vision_init= --set text_init="):
            load_config(file, PretrainConfig, ["init_from=a.pth", option])


BROKEN = {
    "a list": ("- a\n- b\n", r"own\.yaml: expected lines of `key: value`"),
    "nothing": ("", "expected lines of `key: value`"),
    "a colon too many": ("lr: 1: 2\n", r"own\.yaml: not YAML"),
    "a tab": ("train_file:\n\t- a.json\n", "not YAML"),
    "a key twice": ("lr: 1e-4\nlr: 1e-5\n", "not YAML.*duplicate key|duplicate key"),
    "not UTF-8": (b"image_root: \xe4\n", r"own\.yaml: not UTF-8"),
    "a key without a name": (": 3\n", "unknown key"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_file(file: Path, name: str) -> None:
    content, message = BROKEN[name]
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError, match=f"(?s){message}"):
        load_config(file, PretrainConfig)


def test_missing_file_names_those_there_are(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(ConfigError, match=r"no configuration configs/pretrian\.yaml; did you mean 'pretrain'"):
        load_config("configs/pretrian.yaml", PretrainConfig)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=r"no configuration x\.yaml$"):
        load_config("x.yaml", PretrainConfig)


def test_every_problem_is_named_at_once(file: Path) -> None:
    with pytest.raises(ConfigError, match=r"(?s)epochs.*batch_size|batch_size.*epochs"):
        load_config(file, PretrainConfig, ["batch_size=0", "epochs=x"])


def test_run_options_alone(file: Path) -> None:
    file.write_text("epochs: 3\n")
    assert load_config(file, RunConfig).epochs == 3


NAMES = ("pretrain_demo", "pretrain_demo.yaml", "configs/pretrain_demo.yaml", "configs/pretrain_demo")


@pytest.mark.parametrize("name", NAMES)
def test_a_name_finds_the_packaged_file(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_config(name) == ROOT / "configs" / "pretrain_demo.yaml"
    assert load_config(name, PretrainConfig) == load_config(ROOT / "configs" / "pretrain_demo.yaml", PretrainConfig)


@pytest.mark.parametrize("name", NAMES)
def test_an_installed_package_has_its_files_inside(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    inside = tmp_path / "site-packages" / "blip" / "configs"
    shutil.copytree(ROOT / "configs", inside)
    monkeypatch.setattr(reading, "__file__", str(inside.parent / "options" / "reading.py"))
    monkeypatch.chdir(tmp_path)
    assert find_config(name) == inside / "pretrain_demo.yaml"


def test_an_existing_file_goes_before_a_packaged_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("pretrain", "configs/pretrain_demo.yaml"):
        path = Path(name)
        path.parent.mkdir(exist_ok=True)
        path.write_text("epochs: 77\n")
        assert find_config(name) == path
        assert load_config(name, PretrainConfig).epochs == 77


def test_files_that_configurations_name_are_found_anywhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("capfilt", "capfilt_phantoms"):
        values = YAML(typ="safe").load(find_config(name))
        for named in (values["pretrain"], values["captioner"], values["filter"]):
            assert find_config(named) == ROOT / named


def test_a_name_of_none_is_refused_with_those_near_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="no configuration pretrian_demo; did you mean 'pretrain_demo'"):
        load_config("pretrian_demo", PretrainConfig)
    with pytest.raises(ConfigError, match=r"no configuration runs/pretrain_demo\.yaml; did you mean 'pretrain_demo'"):
        load_config("runs/pretrain_demo.yaml", PretrainConfig)  # another folder's file is not replaced


def test_every_option_of_decoding_has_a_key() -> None:
    keys = {field.name: DECODING_KEYS.get(field.name, field.name) for field in fields(Decoding)}
    assert {name for name, key in keys.items() if key not in WritingConfig.model_fields} == {"num_return"}
    given = {"sample": True, "top_p": 0.5, "top_k": 7, "sampling_temperature": 2.0, "min_new_tokens": 3}
    given |= {"max_new_tokens": 9, "length_penalty": 0.5, "length_norm": "whole", "repetition_penalty": 1.5}
    decoding = WritingConfig(**given, beams=1, no_repeat_ngram=2).decoding()
    values = {DECODING_KEYS.get(name, name): value for name, value in vars(decoding).items()}
    assert values == {**given, "beams": 1, "no_repeat_ngram": 2, "num_return": 1}
