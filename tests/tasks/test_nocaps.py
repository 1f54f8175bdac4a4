"""NoCaps by domain: the published files, CIDEr of each domain, and the file of the challenge's server."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.fine_tuning import CPU, configure

from blip.data.formats import AnnotationError
from blip.data.pairs import read_pairs
from blip.evaluation.captions import score_captions
from blip.tasks import caption
from blip.tasks.captioning import Captioning
from blip.tokenizer import Tokenizer

pytestmark = pytest.mark.usefixtures("no_java_nor_peak")
DOMAINS = ["in-domain", "near-domain", "out-domain", "near-domain", "out-domain", "in-domain", "out-domain"]


def write_nocaps(folder: Path, phantoms: Path, part: str = "val", change: Callable[[dict], Any] | None = None) -> Path:
    """A few phantoms in the published form; a test set has neither domains nor captions."""
    known = json.loads((phantoms / "captions.json").read_text())[: len(DOMAINS)]
    content: dict[str, Any] = {"info": {}, "licenses": [], "images": [], "annotations": []}
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for number, (record, domain) in enumerate(zip(known, DOMAINS, strict=True), start=3):
        name = f"{number:016x}.png"
        shutil.copy(phantoms / record["image"], folder / "images" / name)
        entry = {"id": number, "file_name": name, "width": 48, "height": 48, "open_images_id": name[:-4]}
        content["images"].append(entry if part == "test" else {**entry, "domain": domain})
        texts = [record["caption"], f"a scan with {record['caption']}", f"image {number} of a body"]
        content["annotations"] += [{"id": 0, "image_id": number, "caption": text} for text in texts]
    if part == "test":
        del content["annotations"]
    if change is not None:
        change(content)
    path = folder / {"val": "nocaps_val_4500_captions.json", "test": "nocaps_test_image_info.json"}[part]
    path.write_text(json.dumps(content))
    return path


def evaluated(phantoms: Path, checkpoint: Path, folder: Path, *options: str) -> tuple[dict[str, Any], Path]:
    place = f"[{folder / 'nocaps'}]"
    given = ["dataset=nocaps", f"val_file={place}", "beams=3", "repetition_penalty=1.1", *options]
    config = configure("caption", phantoms, folder, *given, init_from=checkpoint)
    where = caption.score(config.model_copy(update={"train_file": []}), folder / "run", CPU)
    return json.loads((where / "evaluation.json").read_text()), where


def test_cider_by_domain_and_the_file_of_the_server(
    phantoms: Path, tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("pycocoevalcap")
    known = [one["caption"] for one in json.loads((phantoms / "captions.json").read_text())[: len(DOMAINS)]]
    texts = [text if i % 2 else f"a scan of {text.split()[0]}" for i, text in enumerate(known)]
    written = iter(2 * texts)  # what a random model writes has a CIDEr of 0
    monkeypatch.setattr(Tokenizer, "decode", lambda *_: next(written))
    write_nocaps(tmp_path / "nocaps", phantoms)
    write_nocaps(tmp_path / "nocaps", phantoms, "test")
    scores, where = evaluated(phantoms, tiny_checkpoint, tmp_path, f"test_file=[{tmp_path / 'nocaps'}]")
    rows = json.loads((where / "captions_val.json").read_text())
    assert [row["caption"] for row in rows] == texts and all(len(row["references"]) == 3 for row in rows)
    details = json.loads((where / "scores_val.json").read_text())
    for domain in ("in", "near", "out"):
        part = [row for row, name in zip(rows, DOMAINS, strict=True) if name.startswith(domain)]
        alone = score_captions([row["caption"] for row in part], [row["references"] for row in part], names=["CIDEr"])
        assert scores[f"val_cider_{domain}"] == pytest.approx(alone.scores["CIDEr"].mean, abs=1e-12)
        assert details["scores"][f"CIDEr, {domain}"]["count"] == len(part)
    assert len({scores[f"val_cider_{domain}"] for domain in ("in", "near", "out")}) == 3
    assert scores["val_cider"] == pytest.approx(details["scores"]["CIDEr"]["mean"])
    expected = [{"image_id": 3 + i, "caption": row["caption"]} for i, row in enumerate(rows)]
    assert json.loads((where / "results_val.json").read_text()) == expected
    # captions of the test set are not published
    assert json.loads((where / "results_test.json").read_text()) == expected
    assert {name: value for name, value in scores.items() if name.startswith("test_")} == {"test_images": 7}


def test_the_json_of_blip(phantoms: Path, tmp_path: Path) -> None:
    rows = [
        {"image": "val/a.jpg", "img_id": 8, "domain": "near-domain", "caption": ["x", "y"]},
        {"image": "b.jpg", "img_id": 9},
    ]
    (tmp_path / "nocaps_val.json").write_text(json.dumps(rows))
    found = read_pairs([str(tmp_path)], str(tmp_path), "nocaps", split="val")
    assert [(found.image_name(i), found.captions(i), found.pair_source(i)) for i in range(2)] == [
        ("8", ["x", "y"], "near"), ("9", [], ""),
    ]  # fmt: skip


BROKEN = [
    ("domain", lambda c: c["images"][1].update(domain="far"), "image 2: its domain is 'far'; it can be in-domain"),
    ("no images", lambda c: c["images"].clear(), "needs a list of images: not NoCaps' form"),
    ("no name", lambda c: c["images"][1].pop("file_name"), "image 2: needs id and file_name"),
    ("an id twice", lambda c: c["images"][1].update(id=3), "image 2: has the id 3 of an earlier one"),
    ("an odd id", lambda c: c["images"][1].update(id=[1]), "image 2: its id is a list, not a whole number"),
    ("unknown image", lambda c: c["annotations"][0].update(image_id=99), "has captions of 1 images that it does not"),
    ("no caption", lambda c: c["annotations"].__delitem__(slice(0, 3)), "image 3: has no caption, and other images"),
    ("an empty one", lambda c: c["annotations"][0].update(caption=" "), "image 3: its caption is empty"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), [c[1:] for c in BROKEN], ids=[c[0] for c in BROKEN])
def test_broken_files(change: Callable, message: str, phantoms: Path, tmp_path: Path) -> None:
    path = write_nocaps(tmp_path, phantoms, change=change)
    with pytest.raises(AnnotationError) as error:
        read_pairs([str(tmp_path)], dataset="nocaps", split="validation")
    assert str(error.value).startswith(str(path)) and message in str(error.value), error.value


def test_nothing_is_learned_from_images_without_captions(phantoms: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    path = write_nocaps(tmp_path / "nocaps", phantoms, "test")
    config = configure("caption", phantoms, tmp_path, "dataset=nocaps", f"train_file=[{path}]", "val_file=[]",
                       "test_file=[]", init_from=tiny_checkpoint)  # fmt: skip
    with pytest.raises(AnnotationError, match=r"has no caption of 0000000000000003\.png to learn from"):
        caption.run(config, tmp_path / "run", "", device=CPU)
    assert Captioning.task == "caption"
