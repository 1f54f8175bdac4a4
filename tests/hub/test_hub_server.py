"""The server of the tests is a hub to the hub's own libraries: models, parquet files and folders of images."""

import io
from pathlib import Path

import pytest
from helpers.hub_server import HubServer
from PIL import Image


def png(grey: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (grey, grey, grey)).save(buffer, "PNG")
    return buffer.getvalue()


def test_a_model_is_fetched_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import snapshot_download

    folder = tmp_path / "model"
    (folder / "below").mkdir(parents=True)
    files = {"config.json": b"{}", "model.safetensors": b"12345" * 1000, "below/vocab.txt": b"a\nb"}
    for name, content in files.items():
        (folder / name).write_bytes(content)
    with HubServer() as hub:
        commit = hub.add("models", "lab/model", folder)
        hub.use_here(monkeypatch, tmp_path / "cache")
        there = Path(snapshot_download("lab/model"))
        assert there.name == commit and {name: (there / name).read_bytes() for name in files} == files
        snapshot_download("lab/model")
        assert sorted(hub.fetched()) == ["below/vocab.txt", "config.json"]  # and the large one from its other address
        assert sum(line.startswith("GET /objects/") for line in hub.asked) == 1


def test_data_sets_of_parquet_files_and_of_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pytest.importorskip("pyarrow").table
    images = [{"bytes": png(i), "path": f"{i}.png"} for i in range(4)]
    (tmp_path / "qa" / "data").mkdir(parents=True)
    for split in ("train", "validation"):
        columns = {"image": images, "question": ["which plane"] * 4, "answer": list("abcd")}
        parquet.write_table(table(columns), tmp_path / "qa" / "data" / f"{split}-00000-of-00001.parquet")
    (tmp_path / "pictures" / "train").mkdir(parents=True)
    for i in range(3):
        (tmp_path / "pictures" / "train" / f"{i}.png").write_bytes(png(i))
    lines = ["file_name,caption", *(f"{i}.png,number {i}" for i in range(3))]
    (tmp_path / "pictures" / "train" / "metadata.csv").write_text("\n".join(lines))
    with HubServer() as hub:
        hub.add("datasets", "lab/qa", tmp_path / "qa")
        hub.add("datasets", "lab/pictures", tmp_path / "pictures")
        hub.use_here(monkeypatch, tmp_path / "cache")
        questions = datasets.load_dataset("lab/qa")
        assert {split: len(part) for split, part in questions.items()} == {"train": 4, "validation": 4}
        assert questions["validation"]["answer"][3] == "d"
        pictures = datasets.load_dataset("lab/pictures", split="train")
        assert [one["caption"] for one in pictures] == ["number 0", "number 1", "number 2"]
        assert pictures[2]["image"].size == (8, 8)
