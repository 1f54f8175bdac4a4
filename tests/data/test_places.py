"""Images of files, folders and annotation files, as the verbs take them."""

import json
from pathlib import Path

import pytest
from PIL import Image

from blip.data.formats import AnnotationError
from blip.data.images import NoImages, open_image
from blip.data.places import images_of, is_annotation_file, items_of


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two images in a folder, one beside it, and annotations of the three."""
    (tmp_path / "inner").mkdir()
    for name in ("inner/b.png", "inner/a.png", "c.png"):
        Image.new("L", (8, 8), 90).save(tmp_path / name)
    records = [{"image": name, "caption": "text"} for name in ("c.png", "inner/b.png", "c.png")]
    (tmp_path / "captions.json").write_text(json.dumps(records))
    (tmp_path / "captions.csv").write_text("image,question\ninner/a.png,where?\n")
    return tmp_path


def test_places_keep_their_order_and_records_give_each_image_once(folder: Path) -> None:
    inner = [folder / "inner" / "a.png", folder / "inner" / "b.png"]
    assert images_of([folder / "inner", folder / "c.png"]) == [*inner, folder / "c.png"]
    assert images_of([folder / "captions.json"]) == [folder / "c.png", folder / "inner" / "b.png"]
    assert images_of([str(folder / "captions.csv"), str(folder / "inner")]) == [inner[0], *inner]


def test_references_to_frames_and_slices_are_places(folder: Path) -> None:
    for name in ("c.mp4", "d # e.mp4"):
        (folder / name).write_bytes(b"a video")
    places = [f"{folder}/c.mp4#frames=2", f"{folder}/d # e.mp4", f"{folder}/d # e.mp4#rate=1", "ct/#slices=2"]
    assert items_of(places) == [[place] for place in places]


def test_images_inside_parquet_files(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("pyarrow")
    import pyarrow
    from pyarrow import parquet

    column = [{"bytes": (folder / "c.png").read_bytes(), "path": "c.png"}]
    parquet.write_table(pyarrow.table({"image": column}), folder / "set.parquet")
    monkeypatch.chdir(folder)
    (image,) = images_of(["set.parquet"])
    assert image.name == "set.parquet#0"
    assert open_image(image).size == (8, 8)


def test_what_is_no_place(folder: Path) -> None:
    (folder / "wrong.json").write_text('[{"image": "c.png"}, {"picture": "c.png"}]')
    (folder / "empty").mkdir()
    assert not is_annotation_file(folder / "c.png")
    with pytest.raises(AnnotationError, match=r"wrong\.json, record 2: has no image"):
        images_of([folder / "wrong.json"])
    with pytest.raises(NoImages, match="folder without images"):
        images_of([folder / "empty"])
    with pytest.raises(NoImages, match=r"x\.json: does not exist"):
        images_of([folder / "x.json"])
