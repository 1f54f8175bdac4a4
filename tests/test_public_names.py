"""The public names: each resolves, has a docstring with an example, and the example runs."""

import doctest
import inspect
from pathlib import Path

import pytest
from PIL import Image

import blip
from blip.data.phantoms import write_phantoms

NAMES = [name for name in blip.__all__ if name != "__version__"]


def example_of(name: str) -> str:
    """The statements of the example in a docstring."""
    found = doctest.DocTestParser().get_examples(inspect.getdoc(getattr(blip, name)) or "")
    return "".join(example.source for example in found)


def test_all_names_resolve_and_nothing_else_is_offered() -> None:
    assert all(hasattr(blip, name) for name in blip.__all__)
    assert set(NAMES) == set(blip.MODULE_OF)
    assert set(blip.__all__) <= set(dir(blip))


@pytest.mark.parametrize("name", NAMES)
def test_docstring_has_an_example_that_runs(
    name: str, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("checkpoint").symlink_to(tiny_checkpoint)
    for picture in ("chest.png", "normal.png"):
        Image.effect_noise((40, 30), 50).save(picture)
    write_phantoms(tmp_path, 8)  # questions.json and captions.json
    example = example_of(name)
    assert f"blip.{name}(" in example, f"the docstring of blip.{name} needs an example"
    exec(compile(example, f"the example of blip.{name}", "exec"), {"blip": blip})
