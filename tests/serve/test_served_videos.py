"""Videos on the page: one item of frames, how many are shown, what cannot be read; without a server."""

import sys
from pathlib import Path

import pytest
from helpers.videos import numbers, write_video
from PIL import Image

from blip.data.image_bytes import ImageLimits
from blip.errors import InputError
from blip.serve.cli import examples_of
from blip.serve.handlers import Handlers
from blip.serve.items import Item, Picture
from blip.serve.limits import Limits
from blip.serve.uploads import Uploads


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Picture:
    """40 frames at 10 a second."""
    return Picture("clip.mp4", write_video(tmp_path_factory.mktemp("videos") / "clip.mp4", 40).read_bytes())


@pytest.fixture
def handlers(tmp_path: Path) -> Handlers:
    return Handlers({}, {}, Uploads(tmp_path / "uploads", Limits()), Limits())


def uploaded(handlers: Handlers, file: Picture, parts: str = "") -> str:
    """The preview of an upload."""
    place = handlers.uploads.folder / "0123abcd"
    place.mkdir(parents=True, exist_ok=True)
    (place / file.name).write_bytes(file.data)
    return handlers.opened({"path": str(place / file.name), "orig_name": file.name}, "", parts, "page")


def test_a_video_is_an_item_of_frames(clip: Picture, handlers: Handlers) -> None:
    shown = uploaded(handlers, clip)
    assert "8 frames of one video, in their order; the first has 32 x 16 pixels" in shown
    assert shown.count("data:image/jpeg") == 8 and 'alt="Picture 8 of 8 of the chosen item: clip.mp4"' in shown
    assert handlers.viewed("", "frames=3", "page").count("data:image/jpeg") == 3
    assert handlers.viewed("lung", "rate=1", "page").count("data:image/jpeg") == 4
    item = handlers.uploads.of("page")
    assert numbers(item.open(Limits())) == [0, 10, 20, 30]
    assert numbers(Item((clip,)).open(Limits(), ImageLimits(frames=2))) == [0, 20], "as in the model's training"
    assert numbers(Item((clip,), parts="frames=20").open(Limits(), ImageLimits(max_pictures=3))) == [0, 20, 38]


def test_a_video_and_an_image_are_one_item(clip: Picture, tmp_path: Path) -> None:
    Image.new("RGB", (32, 16), (10 + 4 * 50,) * 3).save(tmp_path / "a.png")
    item = Item((clip, Picture("a.png", (tmp_path / "a.png").read_bytes())), parts="frames=2")
    pictures = item.open(Limits())
    assert numbers(pictures) == [0, 20, 50]
    assert item.described(pictures).startswith("3 pictures of one item, in this order")


@pytest.mark.parametrize("parts, message", [
    ("slices=16", "'slices' is no option of a video: there can be frames=N"),
    ("frames=0", "frames is '0'; it has to be a whole number from 1 to 1,024"),
    ("rate=1e-9", "rate is '1e-9'; it has to be a number from 0.001 to 1000, frames a second"),
    ("frames=2&rate=1", "frames and rate exclude each other"),
])  # fmt: skip
def test_parts_that_a_video_does_not_have(clip: Picture, parts: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Item((clip,), parts=parts)


def test_parts_of_other_files_do_not_disturb_an_image() -> None:
    png = Picture("a.png", b"no scan")
    for parts in ("frames=8", "rate=1", "slices=16"):
        assert Item((png,), parts=parts).parts == parts
    with pytest.raises(InputError, match="'pages' is no option of a scan"):
        Item((png,), parts="pages=2")


def test_videos_that_cannot_be_read_are_named(
    clip: Picture, handlers: Handlers, monkeypatch: pytest.MonkeyPatch
) -> None:
    for data, message in ((b"", "the file is empty"), (b"hello" * 999, "not a video that can be decoded"),
                          (clip.data[: len(clip.data) // 2], "not a video that can be decoded")):  # fmt: skip
        with pytest.raises(InputError, match=f"^x.mp4 cannot be read: {message}"):
            uploaded(handlers, Picture("x.mp4", data))
    assert not [path for path in handlers.uploads.folder.rglob("*") if path.is_file()]
    with pytest.raises(InputError, match=r"clip.mp4 cannot be read: it takes too long to decode"):
        Item((clip,)).open(Limits(max_seconds=-1))
    with pytest.raises(InputError, match="32 x 16 pixels, more than 0"):
        Item((clip,)).open(Limits(max_megapixels=0))
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(InputError, match=r"on the computer that serves this page, reading videos needs PyAV: pip inst"):
        Item((clip,)).open(Limits())


def test_a_video_may_be_as_large_as_an_upload(clip: Picture, handlers: Handlers) -> None:
    handlers.uploads.limits = Limits(max_image_mb=1, max_upload_mb=2)
    larger = clip.data + bytes((1 << 20) + 1)  # what follows the boxes of MP4 is not read
    assert "8 frames" in uploaded(handlers, Picture("clip.mp4", larger))
    with pytest.raises(InputError, match=r"clip.png has [\d,]+ bytes; at most 1,048,576"):
        uploaded(handlers, Picture("clip.png", larger))
    with pytest.raises(InputError, match=r"clip.mp4 has [\d,]+ bytes; at most 2,097,152"):
        uploaded(handlers, Picture("clip.mp4", clip.data + bytes(2 << 20)))


def test_videos_of_the_folder_of_images(clip: Picture, handlers: Handlers, tmp_path: Path) -> None:
    folder = tmp_path / "images"
    (folder / "b").mkdir(parents=True)
    (folder / "b" / "clip.mp4").write_bytes(clip.data)
    assert list(examples_of(str(folder))) == ["b/clip.mp4"]
    Image.new("L", (4, 4)).save(folder / "a.png")
    handlers.examples = examples_of(str(folder))
    assert list(handlers.examples) == ["a.png", "b/clip.mp4"]
    assert "8 frames of one video" in handlers.example("b/clip.mp4", "", "", "page")
