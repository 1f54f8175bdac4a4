"""`--set`: which option or file a message blames, and what it says about brackets and quotation marks."""

from pathlib import Path

import pytest

from blip.config import ConfigError, PretrainConfig, find_config, load_config
from blip.options.overrides import quoted, stray_words


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "own.yaml"
    path.write_text("vit: tiny\nmin_lr: 1e-6\n")
    return path


def message(file: Path, *overrides: str, **options: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_config(file, PretrainConfig, [*overrides], options=options)
    return str(caught.value)


@pytest.mark.parametrize(
    ("override", "pattern"),
    [
        ("batch_size=many", "--set batch_size=many:\n  batch_size: Input should be a valid integer"),
        ("vit=custom", "--set vit=custom:\n  vit: custom needs vit_width"),
        ("min_lr=1", "--set min_lr=1:\n  min_lr 1.0 is above lr"),
        ("randaugment=[1]", "--set randaugment=[1]:"),
    ],
)
def test_a_value_of_the_command_line_is_not_blamed_on_the_file(file: Path, override: str, pattern: str) -> None:
    text = message(file, "epochs=3", override)
    assert text.startswith(pattern) and "own.yaml" not in text and "epochs" not in text


def test_the_file_is_blamed_for_what_is_in_it(file: Path) -> None:
    file.write_text("vit_width: 3\nepochs: x\n")
    text = message(file, "batch_size=0", "vit=tiny")
    assert f"{file}:\n  epochs: " in text and "--set batch_size=0:\n  batch_size: " in text
    file.write_text("vit: custom\n")
    assert message(file, "epochs=3").startswith(f"{file}:\n  vit: custom needs")
    assert message(file, "vision_init=timm/x", "vit=tiny", init_from="a.pth").startswith(
        "--set vision_init=timm/x, --i"
    )


def test_an_option_of_its_own_comes_last_and_is_named(file: Path) -> None:
    assert load_config(file, PretrainConfig, ["init_from=a"], options={"init_from": "b: c"}).init_from == "b: c"


LISTS = {
    "train_file=a.json": "it takes a list: --set 'train_file=[a.json]'",
    "train_file=\\[a.json\\]": "it takes a list: --set 'train_file=[a.json]'",
    "'train_file=[a.json]'": "part of the name: type --set 'train_file=[a.json]'",
    "train_file=[a.json,": "since shells divide words at blanks: --set 'train_file=[a.json,]'",
    "\u201ctrain_file=[a.json]\u201d": "quotation marks: type plain ones, such as --set 'train_file=[a.json]'",
    "train_file": "expected key=value",
    "trainfile=[a.json]": "unknown key 'trainfile'; did you mean 'train_file',",
}


@pytest.mark.parametrize(("override", "said"), LISTS.items())
def test_brackets_and_quotation_marks(file: Path, override: str, said: str) -> None:
    assert said in message(file, override)


def test_a_list_in_the_file(file: Path) -> None:
    file.write_text("train_file: a.json\n")
    assert "it takes a list: train_file: [a.json]" in message(file)


def test_words_that_a_shell_divided() -> None:
    said = stray_words(["b.json]"], ["epochs=3", "train_file=[a.json,"])
    assert "'b.json]' belongs to no option: type --set 'train_file=[a.json, b.json]'" in said
    assert "'x' belongs to no option" in stray_words(["x"], [])
    assert quoted("epochs", "3") == "--set epochs=3"


def test_a_mistyped_configuration_has_three_near_names_at_most(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as caught:
        find_config("configs/retina_vqq.yaml")
    text = str(caught.value)
    assert "did you mean 'retina_vqa'" in text and text.count("'") <= 6


def test_the_folder_of_a_run_is_its_configuration(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("epochs: 3\n")
    assert find_config(tmp_path) == tmp_path / "config.yaml"
