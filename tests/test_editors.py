"""An editor completes the public names and shows their signatures, from the source alone."""

import pytest

import blip

jedi = pytest.importorskip("jedi")


def names_after(text: str) -> set[str]:
    return {one.name for one in jedi.Script(f"import blip\n{text}").complete()}


def test_public_names_are_completed() -> None:
    assert {*blip.__all__, "runs"} - {"__version__"} <= names_after("blip.")
    assert "finetune" in names_after("blip.fi") and "load" in names_after("blip.lo")


@pytest.mark.parametrize(
    "call, parameters",
    [
        ("blip.load(", {"path", "device", "image_size"}),
        ("blip.finetune(", {"task", "train", "val", "init_from", "output_dir", "options"}),
        ("blip.pretrain(", {"train", "val"}),
        ("blip.evaluate(", {"task", "checkpoint", "data"}),
        ("blip.data(", {"source", "split", "limit", "columns"}),
        ("blip.explain_pairs(", {"images", "texts", "method"}),
    ],
)
def test_signatures_are_shown(call: str, parameters: set[str]) -> None:
    (signature, *_) = jedi.Script(f"import blip\n{call}").get_signatures()
    assert parameters <= {one.name for one in signature.params}
    assert signature.docstring().strip()


@pytest.mark.parametrize(
    "expression, names",
    [
        ("blip.load('x').", {"caption", "answer", "match_probability"}),
        ("blip.finetune('vqa').", {"history", "plot", "show", "best", "resume", "scores", "report", "folder"}),
        ("blip.finetune('vqa').best().", {"caption", "answer"}),
        ("blip.Run('x').", {"history", "plot"}),
        ("blip.runs.", {"open", "Run"}),
        ("blip.runs.open('x').", {"history"}),
        ("blip.data('x').", {"show"}),
        ("blip.load('x').answer('a', 'b')[0].", {"text", "probability", "candidates"}),
    ],
)
def test_results_are_known(expression: str, names: set[str]) -> None:
    assert names <= names_after(expression)


def test_an_interactive_prompt_shows_public_names_alone() -> None:
    shown = {name for name in dir(blip) if not name.startswith("_")}
    assert shown == {*blip.__all__, "runs"} - {"__version__"}
