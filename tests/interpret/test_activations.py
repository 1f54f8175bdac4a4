"""Activations of a data set: shards hold what a trace reads, and an interrupted run continues."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from helpers.bad_finetune_cases import answerer
from helpers.hub_server import HubServer
from helpers.running import code_and_text
from helpers.set_files import hub_rows, put_parquet
from safetensors.torch import load_file, save_file

import blip
from blip.errors import BlipError
from blip.inference.predictor import Predictor
from blip.interpret import activations
from blip.interpret.activation_shards import ActivationError, read_shards
from blip.interpret.activations import Capture, capture
from blip.interpret.explain_files import Wanted, find_pairs


@pytest.fixture
def wanted(phantoms: Path) -> list[Wanted]:
    return list(find_pairs(phantoms / "captions.json", []))[:10]


def wish(points: list[str], **more: object) -> Capture:
    return Capture("weights", "captions.json", points, "match", shard_size=4, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize("form", ["safetensors", "npy"])
def test_shards_hold_what_a_trace_reads(model: Predictor, wanted: list[Wanted], tmp_path: Path, form: str) -> None:
    points = ["image.1.out", "text.0.cross.pattern", "text.0.out", "text.1.out"]
    assert capture(model, wanted, wish(points, format=form), tmp_path, batch_size=3) == []
    numbers, rows = [], 0
    for records, tensors in read_shards(tmp_path):
        assert tensors.keys() == {*points, "lengths"}
        for row, number in enumerate(records):
            with blip.trace(model, points) as t:
                model.match_logits(wanted[number].image, wanted[number].text)
            length = int(tensors["lengths"][row])
            assert torch.allclose(tensors["text.0.out"][row, :length], t["text.0.out"][0], atol=1e-5)
            assert (tensors["text.0.out"][row, length:] == 0).all()
            pattern = tensors["text.0.cross.pattern"][row]
            assert torch.allclose(pattern[:, :length], t.pattern("text.0.cross")[0], atol=1e-5)
            assert torch.allclose(tensors["image.1.out"][row], t["image.1.out"][0], atol=1e-5)
        numbers += records
        rows += len(tensors["lengths"])
    assert numbers == list(range(10)) and rows == 10


def test_an_interrupted_run_goes_on(
    model: Predictor, wanted: list[Wanted], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, broken = tmp_path / "whole", tmp_path / "broken"
    capture(model, wanted, wish(["text.1.out"]), whole)
    shard = activations._shard
    calls = []

    def dies(*args: object, **options: object) -> object:
        calls.append(args[2])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return shard(*args, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(activations, "_shard", dies)
    with pytest.raises(KeyboardInterrupt):
        capture(model, wanted, wish(["text.1.out"]), broken)
    (broken / "shard-00001.safetensors.partial").write_bytes(b"half")
    capture(model, wanted, wish(["text.1.out"]), broken)
    assert calls == [0, 4, 4, 8]  # the first shard was not made again
    for (_, a), (_, b) in zip(read_shards(whole), read_shards(broken), strict=True):
        assert torch.equal(a["text.1.out"], b["text.1.out"])
    assert json.loads((whole / "index.json").read_text()) == json.loads((broken / "index.json").read_text())


def test_pools(model: Predictor, wanted: list[Wanted], tmp_path: Path) -> None:
    for pool in ("all", "first", "mean"):
        capture(model, wanted[:4], wish(["text.0.out", "image.1.out"], pool=pool), tmp_path / pool)
    (_, full), (_, first), (_, mean) = (next(read_shards(tmp_path / pool)) for pool in ("all", "first", "mean"))
    assert torch.equal(full["text.0.out"][:, 0], first["text.0.out"])
    expected = torch.stack([x[:n].mean(0) for x, n in zip(full["text.0.out"], full["lengths"], strict=True)])
    assert torch.allclose(mean["text.0.out"], expected, atol=1e-6)
    assert torch.allclose(mean["image.1.out"], full["image.1.out"].mean(1), atol=1e-6)


def test_unreadable_images_are_named_and_left_out(model: Predictor, wanted: list[Wanted], tmp_path: Path) -> None:
    wanted[2] = Wanted(tmp_path / "gone.png", "a lesion")
    problems = capture(model, wanted, wish(["text.1.out"]), tmp_path / "out")
    assert len(problems) == 1 and "gone.png" in problems[0]
    records, tensors = next(read_shards(tmp_path / "out"))
    assert records == [0, 1, 3] and len(tensors["text.1.out"]) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pool": "first"}, "with pool 'all', now it is 'first'"),
        ({"points": ["text.0.out"]}, "with points"),
        ({"pool": "max"}, "all, first, mean"),
        ({"format": "zarr"}, "safetensors, npy"),
        ({"points": ["text.0.cross.q"], "pool": "mean"}, "has a head axis"),
        ({"weights": "others"}, "with weights 'weights', now it is 'others'"),
        ({"task": "nlvr"}, "match, caption, answer, image"),
        ({"tokenizer": "1a2b"}, "with tokenizer '', now it is '1a2b'"),
    ],
)
def test_another_wish_is_refused(
    model: Predictor, wanted: list[Wanted], tmp_path: Path, change: dict, message: str
) -> None:
    capture(model, wanted, wish(["text.1.out"]), tmp_path)
    again = wish(["text.1.out"])
    for name, value in change.items():
        setattr(again, name, value)
    with pytest.raises(ActivationError, match=message):
        capture(model, wanted, again, tmp_path)


def test_other_contents_are_refused_and_lost_shards_made_again(
    model: Predictor, wanted: list[Wanted], tmp_path: Path
) -> None:
    capture(model, wanted, wish(["text.1.out"]), tmp_path)
    (tmp_path / "shard-00001.safetensors").unlink()
    capture(model, wanted, wish(["text.1.out"]), tmp_path)
    assert [records for records, _ in read_shards(tmp_path)] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    changed = [*wanted[:-1], Wanted(wanted[-1].image, "another text")]
    with pytest.raises(ActivationError, match="with contents"):
        capture(model, changed, wish(["text.1.out"]), tmp_path)
    for damaged in ("[]", '{"shards": 3}', "{"):
        (tmp_path / "index.json").write_text(damaged)
        with pytest.raises(ActivationError, match="is damaged"):
            capture(model, wanted, wish(["text.1.out"]), tmp_path)


@pytest.mark.parametrize("form", ["safetensors", "npy"])
def test_shards_that_were_cut_short_are_made_again(
    form: str, model: Predictor, wanted: list[Wanted], tmp_path: Path
) -> None:
    capture(model, wanted, wish(["text.1.out"], format=form), tmp_path)
    expected = [tensors["text.1.out"].clone() for _, tensors in read_shards(tmp_path)]  # not the file, mapped
    path = tmp_path / ("shard-00001.safetensors" if form == "safetensors" else "shard-00001/text.1.out.npy")
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(ActivationError, match=r"shard-00001.* is damaged or cut short"):
        list(read_shards(tmp_path))
    capture(model, wanted, wish(["text.1.out"], format=form), tmp_path)
    found = [tensors["text.1.out"] for _, tensors in read_shards(tmp_path)]
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_a_shard_that_was_changed_is_kept(model: Predictor, wanted: list[Wanted], tmp_path: Path) -> None:
    capture(model, wanted, wish(["text.1.out"]), tmp_path)
    path = tmp_path / "shard-00001.safetensors"
    whole = path.read_bytes()
    save_file({"text.1.out": torch.ones(3, 4)}, path)
    changed = path.read_bytes()
    with pytest.raises(ActivationError, match=r"shard-00001\.safetensors has other tensors .*--overwrite"):
        capture(model, wanted, wish(["text.1.out"]), tmp_path)
    assert path.read_bytes() == changed
    capture(model, wanted, wish(["text.1.out"]), tmp_path, overwrite=True)
    assert path.read_bytes() == whole


@pytest.mark.parametrize("form", ["safetensors", "npy"])
def test_shards_of_equal_size_that_changed_places_are_noticed(
    form: str, model: Predictor, wanted: list[Wanted], tmp_path: Path
) -> None:
    asked = wish(["image.1.out"], format=form)
    capture(model, wanted, asked, tmp_path)
    first, second = sorted(tmp_path.glob("shard-*"))[:2]
    for old, new in ((first, tmp_path / "x"), (second, first), (tmp_path / "x", second)):
        old.rename(new)
    for read in (lambda: list(read_shards(tmp_path)), lambda: capture(model, wanted, asked, tmp_path)):
        with pytest.raises(ActivationError, match=r"shard-00000\S* has other tensors"):
            read()


def test_shards_of_earlier_versions_name_no_records(model: Predictor, wanted: list[Wanted], tmp_path: Path) -> None:
    capture(model, wanted, wish(["text.1.out"]), tmp_path)
    path = tmp_path / "shard-00001.safetensors"
    tensors = load_file(path)
    assert tensors.pop("records").tolist() == [4, 5, 6, 7]
    save_file(tensors, path)
    assert [records for records, _ in read_shards(tmp_path)][1] == [4, 5, 6, 7]


@pytest.mark.parametrize(("change", "message"), [
    ({"file": "../../other.safetensors"}, "file"),
    ({"file": "/etc/passwd"}, "file"),
    ({"records": [0, 1, 2]}, "has other tensors"),
    ({"shapes": {"text.1.out": [4, 9, 9]}}, "has other tensors"),
    ({"asked": -4}, "asked"),
    ({"records": ["0"]}, "records"),
])  # fmt: skip
def test_an_index_is_typed(change: dict, message: str, model: Predictor, wanted: list[Wanted], tmp_path: Path) -> None:
    capture(model, wanted[:4], wish(["text.1.out"]), tmp_path)
    index = json.loads((tmp_path / "index.json").read_text())
    index["shards"][0].update(change)
    (tmp_path / "index.json").write_text(json.dumps(index))
    with pytest.raises(ActivationError, match=message):
        list(read_shards(tmp_path))


def test_another_precision_is_another_capture(model: Predictor, wanted: list[Wanted], tmp_path: Path) -> None:
    asked, index = wish(["text.1.out"], precision="bf16"), tmp_path / "index.json"
    capture(model, wanted, asked, tmp_path)
    with pytest.raises(ActivationError, match="with precision 'bf16', now it is 'fp32'"):
        capture(model, wanted, wish(["text.1.out"]), tmp_path)
    earlier = json.loads(index.read_text())
    del earlier["precision"]  # of earlier versions, which did not say
    index.write_text(json.dumps(earlier))
    capture(model, wanted, wish(["text.1.out"]), tmp_path)


class Loaded(BlipError):
    """In place of a model."""


@pytest.mark.parametrize("verb", ["explain captions.json --out map.png", "activations captions.json --points x --out a",
                                  "localise captions.json"])  # fmt: skip
@pytest.mark.parametrize("given", ["", "bf16"])
def test_precision_of_commands(
    verb: str, given: str, phantoms: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def load(*_: object, precision: str, **__: object) -> None:
        raise Loaded(f"in {precision}")

    monkeypatch.setattr("blip.inference.load.load", load)
    monkeypatch.setattr("blip.interpret.pointing_game.read_named", lambda *_, **__: ([], {}))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "captions.json").symlink_to(phantoms / "captions.json")
    words = [*verb.split(), "--checkpoint", "x", *(["--precision", given] if given else [])]
    code, said = code_and_text(*words)
    assert code == 1 and said.endswith(f"error: in {given or 'auto'}"), said


def test_lengths_of_answers_are_their_own(tiny_checkpoint: Path, phantoms: Path, tmp_path: Path) -> None:
    m = blip.load(answerer(tmp_path, tiny_checkpoint))
    picture = phantoms / "images" / "000000.png"
    asked = [Wanted(picture, "where is the lesion?", "left"), Wanted(picture, "what?", "upper left lesion")]
    points = ["decoder.1.out", "text.0.out"]
    for pool in ("all", "mean"):
        capture(m, asked, Capture("w", "d", points, "answer", pool=pool), tmp_path / pool)
    (_, full), (_, mean) = (next(read_shards(tmp_path / pool)) for pool in ("all", "mean"))
    counts = {"decoder.1.out": full["answer_lengths"], "text.0.out": full["lengths"]}
    assert counts["decoder.1.out"].tolist() == m.ids(["left", "upper left lesion"])[1].tolist()
    for point in points:
        expected = torch.stack([x[:n].mean(0) for x, n in zip(full[point], counts[point], strict=True)])
        assert torch.allclose(mean[point], expected, atol=1e-5)


def test_command(tiny_checkpoint: Path, phantoms: Path, tmp_path: Path) -> None:
    def run(*arguments: object) -> tuple[int, str]:
        return code_and_text("activations", *arguments, "--checkpoint", tiny_checkpoint)

    code, said = run(phantoms / "images", "--points", "image.*.out", "--out", tmp_path / "a", "--pool", "first")
    assert code == 0 and "48 records, 2 points" in said
    code, said = run(phantoms / "images", "--points", "text.1.out", "--out", tmp_path / "b")
    assert code != 0 and "its text is empty" in said
    code, said = run(phantoms / "captions.json", "--points", "txt.1.out", "--out", tmp_path / "c")
    assert code != 0 and "nearest: text.1.out" in said
    words = (tiny_checkpoint / "tokenizer.json").read_text()
    (tmp_path / "own.json").write_text(words)
    last = (phantoms / "captions.json", "--points", "text.1.out", "--out", tmp_path / "d", "--limit", 2)
    assert run(*last, "--tokenizer", tmp_path / "own.json")[0] == 0
    (tmp_path / "own.json").write_text(words + " ")
    code, said = run(*last, "--tokenizer", tmp_path / "own.json")
    assert code == 1 and "holds activations with tokenizer " in said and "--overwrite" in said
    other = shutil.copytree(tiny_checkpoint, tmp_path / "other")
    about = json.loads((other / "model.json").read_text())
    (other / "model.json").write_text(json.dumps({**about, "max_text_tokens": 24}))
    shutil.rmtree(tmp_path / "d")
    assert run(*last)[0] == 0
    code, said = code_and_text("activations", *last, "--checkpoint", other)
    assert code == 1 and "with weights" in said


def test_command_reads_what_training_reads(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_parquet(
        tmp_path / "x.parquet", [{"Befund": row.pop("caption"), **row} for row in hub_rows(4, caption="a lesion")]
    )
    what = (tmp_path / "x.parquet", "--columns", "caption=Befund", "--limit", 3, "--points", "text.1.out")
    with HubServer() as hub:
        hub.use_here(monkeypatch, tmp_path / "cache")
        hub.add("models", "lab/tiny", tiny_checkpoint)
        code, said = code_and_text("activations", *what, "--checkpoint", "hub:lab/tiny", "--out", tmp_path / "a")
    assert code == 0 and "3 records, 1 points" in said, said
    assert [numbers for numbers, _ in read_shards(tmp_path / "a")] == [[0, 1, 2]]


def test_activations_of_items_of_several_pictures(model: Predictor, wanted: list[Wanted], tmp_path: Path) -> None:
    """Points of the texts, which have read all pictures; those of the image have a row for each picture."""
    one, other = wanted[0], wanted[1]
    items = [Wanted(one.image, one.text, further=[other.image, wanted[2].image]), other]
    capture(model, items, wish(["text.1.out"], pool="first"), tmp_path / "a")
    ((_, tensors),) = read_shards(tmp_path / "a")
    with blip.trace(model, ["text.1.out"]) as t:
        model.match_logits([blip.Study(items[0].paths), other.image], [one.text, other.text])
    assert torch.allclose(tensors["text.1.out"], t["text.1.out"][:, 0], atol=1e-6)
    with pytest.raises(ActivationError, match=r"image\.1\.out has a row for each picture"):
        capture(model, items, wish(["image.1.out"]), tmp_path / "b")
    with pytest.raises(ActivationError, match="with view '', now it is 'window=lung'"):
        capture(model, items, wish(["text.1.out"], pool="first", view="window=lung"), tmp_path / "a")
