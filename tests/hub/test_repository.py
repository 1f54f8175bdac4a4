"""Repositories of the hub: which files are fetched, what is kept, and what is said when one cannot be had."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from helpers.hub_server import HubServer
from huggingface_hub import constants

from blip.checkpoints.places import checkpoint_files, local, pinned, pinned_tokenizer
from blip.checkpoints.places import similar_repositories as similar
from blip.errors import InputError
from blip.hub.names import RemoteError
from blip.hub.repository import fetch_tokenizer

FILES = {
    "config.json": b"{}",
    "vocab.txt": b"[PAD]\n",
    "model.safetensors": b"weights " * 1000,
    "pytorch_model.bin": b"pickled " * 1000,
    "tf_model.h5": b"others " * 1000,
    "README.md": b"about",
    "run.py": b"raise SystemExit",
}


def folder_of(place: Path, *names: str, **contents: bytes) -> Path:
    """A folder of some of FILES."""
    place.mkdir(parents=True)
    for name in names:
        (place / name).write_bytes(FILES[name])
    for name, content in contents.items():
        (place / name.replace("__", ".")).write_bytes(content)
    return place


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    monkeypatch.chdir(tmp_path)
    with HubServer() as server:
        server.use_here(monkeypatch, tmp_path / "cache")
        yield server


@pytest.fixture
def commit(hub: HubServer, tmp_path: Path) -> str:
    return hub.add("models", "lab/model", folder_of(tmp_path / "model", *FILES))


def objects(hub: HubServer) -> int:
    """Large files that were fetched, each from its other address."""
    return sum(line.startswith("GET /objects/") for line in hub.asked)


def test_only_the_needed_files_are_fetched(hub: HubServer, commit: str) -> None:
    folder = local("hub:lab/model")
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors", "vocab.txt"]
    assert (folder / "model.safetensors").read_bytes() == FILES["model.safetensors"] and folder.name == commit
    assert objects(hub) == 1 and not {"README.md", "run.py", "tf_model.h5"} & set(hub.fetched())


def test_a_pickle_is_fetched_where_there_is_nothing_else(hub: HubServer, tmp_path: Path) -> None:
    hub.add("models", "lab/old", folder_of(tmp_path / "old", "config.json", "pytorch_model.bin", "tf_model.h5"))
    assert sorted(path.name for path in local("hub:lab/old").iterdir()) == ["config.json", "pytorch_model.bin"]


def test_a_single_pth_is_the_checkpoint(hub: HubServer, tmp_path: Path) -> None:
    hub.add("models", "lab/pth", folder_of(tmp_path / "pth", "README.md", model_base__pth=b"pickled"))
    assert local("hub:lab/pth").name == "model_base.pth"
    hub.add("models", "lab/two", folder_of(tmp_path / "two", a__pth=b"1", b__pth=b"2"))
    with pytest.raises(InputError, match=r"holds a.pth, b.pth: download one"):
        local("hub:lab/two")


def test_a_pinned_name_needs_no_server(hub: HubServer, commit: str, tmp_path: Path) -> None:
    name = pinned("lab/model")
    assert name == f"hub:lab/model@{commit}" == pinned(name)
    hub.add("models", "lab/model", folder_of(tmp_path / "newer", "config.json", model__safetensors=b"newer"))
    asked = len(hub.asked)
    assert local(name).name == commit and len(hub.asked) == asked
    assert pinned("lab/model") != name  # the branch stands for the newer one


def test_revisions(hub: HubServer, commit: str, tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "first", "config.json", model__safetensors=b"first")
    hub.add("models", "lab/model", folder, revision="v1")
    assert (local("hub:lab/model@v1") / "model.safetensors").read_bytes() == b"first"
    with pytest.raises(RemoteError, match=r"lab/model has no revision 'v2' on the hub"):
        local("hub:lab/model@v2")


def test_a_bare_name_is_said_to_come_from_the_hub(
    hub: HubServer, commit: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert local("lab/model").name == commit
    assert "lab/model is no path here: taken from the hub, as hub:lab/model" in capsys.readouterr().err
    Path("lab/model").mkdir(parents=True)
    assert local("lab/model") == Path("lab/model")


def test_without_a_connection_the_cache_is_used(
    hub: HubServer, commit: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    local("hub:lab/model")
    hub.fail("/", "none")
    assert local("hub:lab/model").name == commit
    with pytest.raises(RemoteError, match=r"hub:lab/other is not in the cache .* cannot be reached .*hf download"):
        local("hub:lab/other")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    asked = len(hub.asked)
    assert local("hub:lab/model").name == commit
    with pytest.raises(RemoteError, match=r"there is no path lab/other, and .* HF_HUB_OFFLINE is set"):
        local("lab/other")
    assert len(hub.asked) == asked


def test_tokens(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = folder_of(tmp_path / "secret", "config.json", "model.safetensors")
    hub.add("models", "lab/private", folder, token="hf_right")
    hub.add("models", "lab/gated", folder, token="hf_right", gated=True)
    with pytest.raises(RemoteError, match=r"the hub shows no lab/private without a token \(HF_TOKEN"):
        local("hub:lab/private")
    with pytest.raises(RemoteError, match="open only to those who accepted its terms"):
        local("hub:lab/gated")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(RemoteError, match="the hub shows no lab/private with this HF_TOKEN"):
        local("hub:lab/private")
    with pytest.raises(RemoteError, match="open only to those"):
        local("hub:lab/gated")
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    assert local("hub:lab/private").is_dir() and local("hub:lab/gated").is_dir()
    assert not any(head.get("authorization") for head, line in zip(hub.headers, hub.asked, strict=True)
                   if "/objects/" in line), "the other address does not get the token"  # fmt: skip


def test_a_mistyped_name_gets_the_nearest_released_ones(hub: HubServer) -> None:
    for name in ("hub:Salesforce/blip-vqa", "Salesforce/blip-vqa"):
        with pytest.raises(RemoteError, match=r"nearest of BLIP's released .* Salesforce/blip-vqa-base"):
            local(name)
    assert "Salesforce/blip-itm-large-coco" in similar("salesforce/blip-itm-large")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("403", "the hub answers 403: the token"),
        ("429", "the hub answers 429: too many requests"),
        ("503", "the hub answers 503: start the command again"),
    ],
)
def test_answers_of_the_hub(hub: HubServer, commit: str, kind: str, message: str) -> None:
    hub.fail("/api/models/lab/model", kind)
    with pytest.raises(RemoteError, match=message):
        local("hub:lab/model")


def test_a_cut_connection_is_resumed(hub: HubServer, commit: str) -> None:
    hub.fail("/objects/", "cut", times=1)
    assert (local("hub:lab/model") / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    assert objects(hub) == 2


def test_a_damaged_file_is_refused_and_not_kept(hub: HubServer, commit: str) -> None:
    hub.fail("/objects/", "wrong", times=1)
    with pytest.raises(RemoteError, match=r"model.safetensors arrived damaged: its sha256 is"):
        local("hub:lab/model")
    assert (local("hub:lab/model") / "model.safetensors").read_bytes() == FILES["model.safetensors"]


def test_a_file_that_is_too_large_is_not_fetched(hub: HubServer, commit: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("blip.hub.repository.MAX_LARGE", 100)
    with pytest.raises(RemoteError, match=r"model.safetensors has 8,000 bytes; at most 100"):
        local("hub:lab/model")
    assert objects(hub) == 0


def test_of_many_at_once_one_fetches(hub: HubServer, commit: str) -> None:
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(local, [f"hub:lab/model@{commit}"] * 4))
    assert set(found) == {found[0]} and objects(hub) == 1


def test_what_is_no_checkpoint(hub: HubServer, tmp_path: Path) -> None:
    hub.add("models", "lab/notes", folder_of(tmp_path / "notes", "README.md", "run.py"))
    with pytest.raises(InputError, match=r"^hub:lab/notes: the repository holds no checkpoint of BLIP"):
        local("hub:lab/notes")
    parts = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    index = "model.safetensors.index.json"
    with pytest.raises(InputError, match="some of its files of weights are missing"):
        checkpoint_files(["config.json", index, parts[0]])
    assert checkpoint_files(["merges.txt", *parts, index, "x.py"]) == ["merges.txt", index, *parts]
    assert checkpoint_files(["../model.safetensors", "model.safetensors"]) == ["model.safetensors"]


def test_a_tokenizer_alone(hub: HubServer, commit: str, tmp_path: Path) -> None:
    hub.add("models", "bert-base-uncased", folder_of(tmp_path / "bert", "vocab.txt", "model.safetensors"))
    assert fetch_tokenizer("hub:bert-base-uncased").name == "vocab.txt"
    assert objects(hub) == 0
    name = pinned_tokenizer("hub:bert-base-uncased")
    asked = len(hub.asked)
    assert fetch_tokenizer(name).name == "vocab.txt" and len(hub.asked) == asked
    hub.add("models", "lab/notes", folder_of(tmp_path / "notes", "README.md"))
    with pytest.raises(InputError, match=r"^hub:lab/notes: the repository holds no tokenizer of BERT's kind"):
        fetch_tokenizer("hub:lab/notes")
