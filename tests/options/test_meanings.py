"""What options mean: no option is without a meaning, and `blip options` prints all of them."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from helpers.running import ROOT, code_and_text, run_verb
from pydantic import BaseModel, Field

from blip.cli import sections
from blip.config import ModelConfig, RunConfig
from blip.options.meanings import comments, has_numbers, options_of
from blip.tasks.config import VqaConfig


class Explained(BaseModel):
    """Options of a test."""

    # first group
    explained: int = Field(3, gt=0, le=9)  # above all [pixels]
    silent: int = 4


class Child(Explained):
    """A class that changes a default and adds an option."""

    explained: int = Field(5, gt=0)
    silent: int = 7  # not at all
    added: float | None = None  # one [metres] more


def test_an_option_without_a_meaning_is_an_error() -> None:
    assert comments(Explained) == (dict.fromkeys(["explained", "silent"], "first group"),
                                   {"explained": "above all [pixels]", "silent": ""})  # fmt: skip
    with pytest.raises(ValueError, match=r"Explained\.silent has no meaning"):
        options_of(Explained)


def test_a_child_has_the_meanings_of_its_parents() -> None:
    rows = {one.name: one for one in options_of(Child)}
    assert [*rows] == ["explained", "silent", "added"]
    explained = rows["explained"]
    assert (explained.type, explained.default, explained.unit, explained.meaning, explained.group) == (
        "integer, > 0", "5", "pixels", "above all", "first group")  # fmt: skip
    assert rows["silent"].meaning == "not at all"
    assert (rows["added"].unit, rows["added"].meaning) == ("", "one [metres] more")  # a unit stands at the end


@pytest.mark.parametrize("cls", sections().values(), ids=lambda cls: cls.__name__)
def test_every_option_has_a_meaning_and_every_number_a_unit(cls: type[BaseModel]) -> None:
    options = options_of(cls)
    assert {one.name for one in options} == set(cls.model_fields)
    for one in options:
        assert one.meaning
        numeric = has_numbers(cls.model_fields[one.name].annotation)
        assert bool(one.unit) == numeric, f"{cls.__name__}.{one.name}: end its comment with a unit: [steps]"


def subclasses(cls: type[BaseModel]) -> set[type[BaseModel]]:
    return {cls} | {one for child in cls.__subclasses__() for one in subclasses(child)}


def test_no_class_of_the_package_is_left_out() -> None:
    of_package = {cls for cls in subclasses(RunConfig) if cls.__module__.startswith("blip.")}
    assert of_package <= set(sections().values())


def test_the_verb_prints_every_option_of_a_task() -> None:
    result = run_verb("options", "vqa", env={"COLUMNS": "200"})
    assert result.exit_code == 0
    for name in VqaConfig.model_fields:
        assert f" {name} " in result.output, name
    assert "pixels" in result.output and "480" in result.output


def test_a_narrow_window_has_room_for_meanings() -> None:
    shown = run_verb("options", "vqa", "--find", "epochs", env={"COLUMNS": "80"}).output
    assert "passes over the training data" in shown and "integer, > 0; default 20; epochs" in shown


def test_the_verb_prints_json_markdown_and_what_is_looked_for() -> None:
    rows = json.loads(run_verb("options", "vqa", "--json").output)
    assert {row["name"] for row in rows} == set(VqaConfig.model_fields)
    assert {"name", "type", "default", "unit", "meaning", "section"} == set(rows[0])
    everything = json.loads(run_verb("options", "--json").output)
    assert {row["section"].partition(":")[0] for row in everything} == set(sections())
    text = run_verb("options", "vqa", "--find", "warm-up", "--markdown").output
    assert "| `warmup_steps` | integer, ≥ 0 | `3000` | steps |" in text and "image_size" not in text


def test_the_verb_and_words_that_are_none() -> None:
    assert code_and_text("options", "vqq")[0] == 1
    assert "did you mean 'vqa'" in code_and_text("options", "vqq")[1]
    assert "--find searches" in code_and_text("options", "epochs")[1]
    assert "the published code's init_lr is lr here" in code_and_text("options", "--find", "init_lr")[1]
    assert "no option has 'xyz'" in code_and_text("options", "vqa", "--find", "xyz")[1]


@pytest.mark.parametrize("form", ["folder", "zip"])
def test_meanings_are_there_outside_a_checkout(form: str, tmp_path: Path) -> None:
    """In a folder or an archive on the path, which has the sources and nothing else of a checkout."""
    place = tmp_path / "site"
    with zipfile.ZipFile(tmp_path / "site.zip", "w") as archive:
        for path in (ROOT / "blip").rglob("*.py"):
            archive.write(path, path.relative_to(ROOT))
    if form == "folder":
        zipfile.ZipFile(tmp_path / "site.zip").extractall(place)
    code = "from blip.options.meanings import options_of; from blip.config import ModelConfig as M; "
    code += "import blip; print(blip.__file__, len(options_of(M)))"
    env = {**os.environ, "PYTHONPATH": str(place if form == "folder" else tmp_path / "site.zip")}
    done = subprocess.run([sys.executable, "-c", code], env=env, cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout.split()[-1:] == [str(len(ModelConfig.model_fields))], done.stderr
    assert str(tmp_path) in done.stdout


def test_the_version() -> None:
    from blip import __version__

    assert code_and_text("--version") == (0, f"blip {__version__}")
