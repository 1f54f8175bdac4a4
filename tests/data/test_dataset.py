"""`blip.data`: an ordinary data set of torch from any source, of the hub too."""

import json
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.hub_server import HubServer
from helpers.set_files import hub_rows, png, put, put_parquet, shade
from torch.utils.data import DataLoader

import blip
import blip.data.hub
from blip.config import WeightedFile
from blip.data.formats import AnnotationError
from blip.data.hub import pinned
from blip.data.image_bytes import UnreadableImage
from blip.data.pairs import read_pairs
from blip.data.places import images_of
from blip.data.questions import read_questions
from blip.errors import InputError
from blip.hub.names import RemoteError, parse_data


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    rows = [{"image": f"{i}.png", "question": f"which {i}?", "answer": ["left", "right"]} for i in range(6)]
    for i in range(5):
        put(tmp_path / f"{i}.png", png(i))
    return put(tmp_path / "q.json", rows)


def test_records_by_number(questions: Path) -> None:
    data = blip.data(questions)
    assert len(data) == 6 and data.kind == "questions"
    item = data[3]
    assert (item.question, item.answer, item.answers, item.caption, item.label) == (
        "which 3?", "left", ["left", "right"], "", None)  # fmt: skip
    assert shade(item.image) == 3 and item.image.mode == "RGB" and data[-2].question == "which 4?"
    assert [one.index for one in data] == list(range(6))
    for wrong in (6, -7):
        with pytest.raises(IndexError, match="of 6"):
            data[wrong]
    with pytest.raises(TypeError):
        data["question"]  # type: ignore[index]
    again = pickle.loads(pickle.dumps(data))
    assert shade(again[4].image) == 4


def test_loaders_and_subsets(questions: Path) -> None:
    data = blip.data(questions, limit=5)
    assert [item.index for item in data[1:9:2]] == [1, 3] and [item.index for item in data[-2:]] == [3, 4]
    batches = list(DataLoader(data, batch_size=2, collate_fn=list, num_workers=1, multiprocessing_context="fork"))
    assert [[shade(item.image) for item in batch] for batch in batches] == [[0, 1], [2, 3], [4]]
    drawn = [item.question for item in blip.data(questions, limit=3, seed=1)]
    assert drawn == [item.question for item in blip.data(questions, limit=3, seed=1)] and len(set(drawn)) == 3


def test_other_kinds(tmp_path: Path) -> None:
    put(tmp_path / "a.png", png(1))
    put(tmp_path / "b.png", png(2))
    captions = blip.data(
        put(tmp_path / "c.json", [{"image": "a.png", "text": ["x", "y"]}]), columns={"caption": "text"}
    )
    assert (captions.kind, captions[0].caption, captions[0].captions) == ("captions", "x", ["x", "y"])
    rows = [{"images": ["a.png", "b.png"], "sentence": "they differ", "label": "True"}]
    statements = blip.data(put(tmp_path / "s.json", rows))
    assert (statements.kind, statements[0].statement, statements[0].label) == ("statements", "they differ", True)
    assert [shade(image) for image in statements[0].images] == [1, 2]
    images = blip.data(tmp_path)
    assert (images.kind, len(images), images[1].path) == ("images", 2, str(tmp_path / "b.png"))


def test_a_run_can_hold_it(questions: Path) -> None:
    data = blip.data(questions, limit=3, seed=2)
    entry = WeightedFile(**data.entry()).model_dump()
    assert entry == {"path": str(questions), "weight": 1.0, "split": "all", "limit": 3, "seed": 2}
    held = read_questions([json.loads(json.dumps(entry))], split="train")
    assert [held[i].question for i in range(3)] == [item.question for item in data]


def test_notebooks_show_it(questions: Path, tmp_path: Path) -> None:
    rows = [{"image": "0.png", "question": "<script>alert(1)</script> $x$ ?", "answer": "a\x1b[31m"[:1]}]
    data = blip.data(put(tmp_path / "odd.json", rows))
    assert "<script>" not in data._repr_html_() and "&lt;script&gt;" in data._repr_html_()
    pytest.importorskip("matplotlib")
    assert data.show()._repr_png_().startswith(b"\x89PNG")
    figure = blip.data(questions).show(6)  # of the last one the image is missing
    assert figure.axes[0].get_title() == "which 0? - left"
    assert "cannot read image" in figure.axes[5].get_title()
    with pytest.raises(InputError, match="no records to show"):
        data.show(0)
    many = put(tmp_path / "many.json", [{"image": "gone.png", "caption": "x"}] * 401)
    with pytest.raises(InputError, match="shows 400 records at most, not 401"):
        blip.data(many).show(500)


def test_it_is_a_function_and_a_package() -> None:
    import blip.data.pairs

    assert blip.data.pairs.read_pairs is read_pairs and callable(blip.data)
    assert "data" in blip.__all__


# ---- the hub ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    pytest.importorskip("datasets")
    with HubServer() as server:
        server.use_here(monkeypatch, tmp_path / "cache")
        yield server


def test_questions_of_the_hub(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for split, count in (("train", 5), ("test", 3)):
        put_parquet(tmp_path / f"vqa/data/{split}-00000-of-00001.parquet", hub_rows(count, Question="what", answer="a"))
    commit = hub.add("datasets", "lab/vqa", tmp_path / "vqa")
    assert pinned("hub:lab/vqa") == f"hub:lab/vqa@{commit}" == pinned(f"hub:lab/vqa@{commit}")
    data = blip.data("hub:lab/vqa", split="train", limit=4)
    assert [item.question for item in data] == [f"what {i}" for i in range(4)] and shade(data[3].image) == 3
    assert data.entry() == {"path": f"hub:lab/vqa@{commit}", "split": "train", "limit": 4}
    assert not [
        line for line in hub.asked if "/resolve/" not in line and "/api/" not in line and "/objects/" not in line
    ]
    put_parquet(tmp_path / "vqa/data/test-00000-of-00001.parquet", hub_rows(9, Question="what", answer="a"))
    hub.add("datasets", "lab/vqa", tmp_path / "vqa")
    held = [read_questions([name], split="test") for name in (f"hub:lab/vqa@{commit}", "hub:lab/vqa")]
    assert [len(one) for one in held] == [3, 9], "a commit stays as it was"
    with pytest.raises(AnnotationError, match="holds no split validation; it has train, test"):
        read_questions(["hub:lab/vqa"], split="validation")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    assert len(read_questions([f"hub:lab/vqa@{commit}"], split="test")) == 3, "out of reach, but in the cache"
    with pytest.raises(RemoteError, match="hub:lab/none is not in the cache"):
        blip.data("hub:lab/none")


def test_a_commit_in_the_cache_needs_no_hub(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub may be out of reach or have removed it, and the cache may hold another commit of later."""
    names = []
    for count in (3, 5):
        put_parquet(tmp_path / "vqa/data/train.parquet", hub_rows(count, question="what", answer="a"))
        names.append(f"hub:lab/vqa@{hub.add('datasets', 'lab/vqa', tmp_path / 'vqa')}")
        assert len(blip.data(names[-1])) == count
    hub.repositories.clear()
    asked = len(hub.asked)
    for offline in (False, True):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
        monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", offline)
        blip.data.hub._files_of.cache_clear()
        assert [len(blip.data(name)) for name in names] == [3, 5]
        assert shade(blip.data(names[1])[4].image) == 4
    assert len(hub.asked) == asked
    with pytest.raises(RemoteError, match=r"hub:lab/vqa@0+ .*not in the cache"):
        blip.data("hub:lab/vqa@" + "0" * 40)


def test_without_a_connection_the_last_commit_is_read(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With and without a README, by a branch too; the hub is asked once, where libraries ask for each file again and
    again."""
    put_parquet(tmp_path / "vqa/data/train.parquet", hub_rows(3, question="what", answer="a"))
    commits = {"bare": hub.add("datasets", "lab/bare", tmp_path / "vqa")}
    put(tmp_path / "vqa/README.md", "---\n{}\n---\n")
    commits |= {name: hub.add("datasets", "lab/vqa", tmp_path / "vqa", revision=name) for name in ("main", "v1")}
    names = {"bare": "hub:lab/bare", "main": "hub:lab/vqa", "v1": "hub:lab/vqa@v1"}
    assert [len(blip.data(name)) for name in names.values()] == [3, 3, 3]
    hub.fail("/", "none")
    blip.data.hub._files_of.cache_clear()
    for key, name in names.items():
        asked = len(hub.asked)
        assert len(blip.data(name)) == 3 and pinned(name) == f"{name.partition('@')[0]}@{commits[key]}"
        assert len(hub.asked) <= asked + 4  # pinned twice; a request may be sent again over a new connection
    with pytest.raises(RemoteError, match=r"lab/vqa@v2 is not in the cache of the hub, and the hub cannot be reached"):
        blip.data("hub:lab/vqa@v2")


def test_a_configuration_in_the_cache_is_not_taken_for_the_usual_one(hub: HubServer, tmp_path: Path) -> None:
    for name, count in (("first", 2), ("second", 4)):
        put_parquet(tmp_path / f"vqa/{name}/train.parquet", hub_rows(count, question="what", answer="a"))
    configs = [f"- config_name: {name}\n  data_files: {name}/*.parquet\n" for name in ("first", "second")]
    put(tmp_path / "vqa/README.md", "---\nconfigs:\n" + "  default: true\n".join(configs) + "---\n")
    commit = hub.add("datasets", "lab/vqa", tmp_path / "vqa")
    assert len(blip.data(f"hub:lab/vqa/second@{commit}")) == 4
    blip.data.hub._files_of.cache_clear()
    assert len(blip.data(f"hub:lab/vqa@{commit}")) == 2
    hub.repositories.clear()
    blip.data.hub._files_of.cache_clear()
    assert len(blip.data(f"hub:lab/vqa/second@{commit}")) == 4


def test_folders_of_images_and_saved_sets_of_the_hub(hub: HubServer, tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    for i in range(3):
        put(tmp_path / f"pictures/train/{i}.png", png(i * 10))
    lines = [json.dumps({"file_name": f"{i}.png", "text": f"number {i}"}) for i in range(3)]
    put(tmp_path / "pictures/train/metadata.jsonl", "\n".join(lines))
    hub.add("datasets", "lab/pictures", tmp_path / "pictures")
    data = blip.data("hub:lab/pictures", columns={"caption": "text"})
    assert [(item.caption, shade(item.image)) for item in data] == [("number 0", 0), ("number 1", 10), ("number 2", 20)]
    features = datasets.Features({
        "img": datasets.Image(), "question": datasets.Value("string"),
        "answer": datasets.ClassLabel(names=["no", "yes"]),
    })  # fmt: skip
    rows = {"img": [{"bytes": png(i), "path": None} for i in range(2)], "question": ["q"] * 2, "answer": [1, 0]}
    datasets.DatasetDict({"train": datasets.Dataset.from_dict(rows, features=features)}).save_to_disk(
        tmp_path / "saved"
    )
    hub.add("datasets", "lab/saved", tmp_path / "saved")
    for place in ("hub:lab/saved", str(tmp_path / "saved")):
        data = blip.data(place, columns={"image": "img"})
        assert [(item.answer, shade(item.image)) for item in data] == [("yes", 0), ("no", 1)]
        assert [shade(blip.data.images.open_image(path)) for path in images_of([place], columns={"image": "img"})] == [
            0,
            1,
        ]


def test_rows_of_the_hub_name_no_files_of_this_machine(hub: HubServer, tmp_path: Path) -> None:
    """Anyone can publish a data set: neither paths in place of bytes nor a column of paths lead out of its folder."""
    put(tmp_path / "private.png", png(200))
    up = "/".join([".."] * 30)
    rows = hub_rows(4, caption="a")
    for row, path in zip(rows, (f"{tmp_path}/private.png", f"{up}{tmp_path}/private.png", "none.png"), strict=False):
        row["image"] = {"bytes": None, "path": path}
    put_parquet(tmp_path / "evil/train.parquet", rows)
    hub.add("datasets", "lab/evil", tmp_path / "evil")
    data = blip.data("hub:lab/evil")
    assert shade(data[3].image) == 3
    for i in range(2):
        with pytest.raises(UnreadableImage, match=r"private.png, a file outside of its data set, which is not read"):
            _ = data[i].image
    rows = [{"picture": row["image"], "image": f"{tmp_path}/private.png", "caption": "b"} for row in hub_rows(2)]
    put_parquet(tmp_path / "paths/train.parquet", rows)
    hub.add("datasets", "lab/paths", tmp_path / "paths")
    for read in (blip.data, lambda name: read_pairs([name]), lambda name: images_of([name])):
        with pytest.raises(AnnotationError, match="and data sets of the hub have images in their rows"):
            read("hub:lab/paths")
    assert shade(blip.data("hub:lab/paths", columns={"image": "picture"})[1].image) == 1
    put_parquet(tmp_path / "mine.parquet", [{"image": {"bytes": None, "path": "private.png"}, "caption": "c"}])
    assert shade(blip.data(tmp_path / "mine.parquet")[0].image) == 200, "files of one's own name what they like"


def test_what_the_hub_does_not_give(hub: HubServer, tmp_path: Path) -> None:
    put(tmp_path / "texts/train.csv", "text,label\na,b\n")
    hub.add("datasets", "lab/texts", tmp_path / "texts")
    hub.add("datasets", "lab/closed", tmp_path / "texts", token="secret", gated=True)
    with pytest.raises(InputError, match="no column of images; its columns are text, label"):
        blip.data("hub:lab/texts")
    with pytest.raises(RemoteError, match="has no revision 'old'"):
        blip.data("hub:lab/texts@old")
    with pytest.raises(RemoteError, match="the hub shows no data set lab/nothing without a token"):
        blip.data("hub:lab/nothing")
    with pytest.raises(RemoteError, match=r"open only to those who accepted its terms.*, then give a token"):
        blip.data("hub:lab/closed")
    with pytest.raises(RemoteError, match="'other' not found"):
        blip.data("hub:lab/texts/other")


@pytest.mark.parametrize("name", ["hub:", "hub:lab", "hub:a/b/c/d", "hub:../x", "hub:a/b@", "hub:a/b@c@d"])
def test_names_of_another_form(name: str) -> None:
    with pytest.raises(InputError, match="no name of a data set"):
        parse_data(name)
