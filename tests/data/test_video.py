"""Frames of videos: the right ones, from any format, and one line about files that cannot be read."""

import struct
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.videos import grey_frame, numbers, turned, write_video

from blip.data import video
from blip.data.frame_choice import at_rate, evenly, is_video
from blip.data.image_bytes import ImageLimits, UnreadableImage
from blip.data.video import open_frames
from blip.errors import InputError

KINDS = [("mp4", "libx264"), ("mkv", "libx264"), ("webm", "libvpx"), ("avi", "mpeg4"), ("mov", "mpeg4"),
         ("mpg", "mpeg1video"), ("ts", "mpeg2video")]  # fmt: skip


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """50 frames at 10 a second, with key frames every 12 and frames in between that depend on later ones."""
    return write_video(tmp_path_factory.mktemp("videos") / "clip.mp4", 50, key_every=12)


@pytest.mark.parametrize("wanted", [1, 2, 7, 8, 16])
def test_frames_are_spread_evenly(wanted: int) -> None:
    for count in range(1, 501):
        taken = evenly(count, wanted)
        assert len(taken) == min(count, wanted) and taken[0] == 0
        gaps = np.diff([*taken, count])
        assert gaps.min() >= 1 and gaps.max() - gaps.min() <= 1, (count, taken)
        if count % wanted == 0:  # as published where the published step is whole
            assert taken == np.arange(0, count, count / wanted, dtype=int).tolist()
    assert evenly(100, 8) == [0, 12, 25, 37, 50, 62, 75, 87]  # published: 0, 12, 24 ... 84
    assert evenly(5, 8) == [0, 1, 2, 3, 4]  # published: the first frame eight times


def test_rates_take_the_frame_that_is_shown() -> None:
    tenths = np.arange(50) / 10
    assert at_rate(tenths, 1) == [0, 10, 20, 30, 40]
    assert at_rate(tenths + 3, 2.5) == [0, 4, 8, 12, 16, 20, 24, 28, 32, 36, 40, 44, 48]
    assert at_rate(np.array([0, 0.1, 0.2, 5.0]), 1) == [0, 2, 3]  # the third is shown for nearly 5 seconds
    assert at_rate(tenths, 1000) == list(range(50))
    with pytest.raises(InputError, match="at most 1,024"):
        at_rate(np.arange(2000.0), 1)


@pytest.mark.parametrize(("ending", "codec"), KINDS)
def test_frames_of_every_format(ending: str, codec: str, tmp_path: Path) -> None:
    path = write_video(tmp_path / f"clip.{ending}", 40, codec=codec, rate=10 if "mpeg" not in codec[:5] else 25)
    frames = open_frames(path)
    assert numbers(frames) == [0, 5, 10, 15, 20, 25, 30, 35]
    assert {(frame.mode, frame.size) for frame in frames} == {("RGB", (32, 16))}
    assert numbers(open_frames(f"{path}#frames=3")) == [0, 13, 26]
    assert numbers(open_frames(path, ImageLimits(frames=2))) == [0, 20]
    assert len(open_frames(f"{path}#frames=60")) == 40


@pytest.mark.parametrize("choice", ["frames=1", "frames=5", "frames=50", "rate=1", "rate=3"])
def test_entering_at_key_frames_gives_the_frames_of_decoding_in_order(
    choice: str, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(video._Video, "_in_order", lambda *_: pytest.fail("decoded in order"))
        entered = open_frames(f"{clip}#{choice}")
    monkeypatch.setattr(video, "ENTERED", ("no such format",))
    in_order = open_frames(f"{clip}#{choice}")
    assert len(entered) == len(in_order)
    assert all(np.array_equal(one, other) for one, other in zip(entered, in_order, strict=True))


def test_rates_follow_the_times_of_the_frames(tmp_path: Path) -> None:
    path = write_video(tmp_path / "uneven.mkv", 6, times=[0, 1, 2, 20, 21, 40])
    assert numbers(open_frames(f"{path}#rate=1")) == [0, 2, 3, 4, 5]


def test_no_more_than_the_chosen_frames_are_kept(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, convert = [], video._Video._picture
    monkeypatch.setattr(video._Video, "_picture", lambda self, frame: made.append(frame.pts) or convert(self, frame))
    open_frames(f"{clip}#frames=4")
    assert len(made) == 4


def test_headers_that_count_too_few_frames_are_not_believed(tmp_path: Path) -> None:
    path = write_video(tmp_path / "clip.avi", 40, codec="mpeg4")
    data = bytearray(path.read_bytes())
    for place in (data.index(b"avih") + 24, data.index(b"strh") + 40):
        assert struct.unpack("<I", data[place : place + 4]) == (40,)
        data[place : place + 4] = struct.pack("<I", 9)
    path.write_bytes(data)
    assert numbers(open_frames(f"{path}#frames=4")) == [0, 10, 20, 30]


def test_frames_are_turned_upright(tmp_path: Path) -> None:
    def left_bright(number: int) -> np.ndarray:
        return np.concatenate([grey_frame(50, (16, 16)), grey_frame(0, (16, 16))], axis=1)

    path = write_video(tmp_path / "clip.mp4", 4, left_bright)
    (frame,) = open_frames(f"{turned(path, tmp_path / 'turned.mp4')}#frames=1")
    assert frame.size == (16, 32)  # clockwise: what was left is above
    assert np.asarray(frame)[:12].mean() > 180 and np.asarray(frame)[20:].mean() < 40


def test_names_of_videos(tmp_path: Path) -> None:
    yes = ["a.mp4", "b/c.MKV", "a.mp4#frames=8", "a#b.avi#rate=1", Path("x.webm")]
    assert all(map(is_video, yes))
    assert not any(
        map(is_video, ["a.png", "a.parquet#3", "series/#slices=16", "a.nii.gz#slices=2", "mp4", "a.mp4/b.png"])
    )
    path = write_video(tmp_path / "odd#frames=2.mp4", 6)
    assert numbers(open_frames(path)) == [0, 1, 2, 3, 4, 5]
    assert numbers(open_frames(f"{path}#frames=2")) == [0, 3]


def broken_files(clip: Path, folder: Path) -> dict[str, str]:
    """Reference -> what its message says."""
    whole = clip.read_bytes()
    contents = {
        "empty.mp4": (b"", "the file is empty"),
        "noise.mp4": (np.random.default_rng(0).bytes(9999), "not a video"),
        "half.mp4": (whole[: len(whole) // 2], "not a video"),
        "list.mp4": (f"ffconcat version 1.0\nfile '{clip.name}'\n".encode(), "not a video"),  # names another file
        "head.mp4": (whole[:64], "not a video"),
    }
    matroska = write_video(folder / "whole.mkv", 50).read_bytes()
    contents["half.mkv"] = (matroska[: len(matroska) // 2], "cut short")
    fast = whole.replace(b"mdat", b"free", 1)  # the index stays, what it points at is gone
    contents["hollow.mp4"] = (fast[: fast.index(b"free") + 900] + fast[fast.index(b"moov") - 4 :], "")
    found = {}
    for name, (content, says) in contents.items():
        (folder / name).write_bytes(content)
        found[str(folder / name)] = says
    return found | {
        str(folder / "absent.mp4"): "no such file",
        f"{clip}#frames=0": "frames is '0'",
        "/dev/zero": "not a regular file",
    }


def test_files_that_cannot_be_read_end_in_one_line(
    clip: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(clip.parent)
    for reference, says in broken_files(clip, tmp_path).items():
        with pytest.raises(UnreadableImage) as caught:
            open_frames(reference)
        assert caught.value.path == reference and says in caught.value.reason, (reference, caught.value.reason)
        assert "\n" not in str(caught.value)
    assert capfd.readouterr() == ("", "")


def test_large_and_long_videos_are_refused(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnreadableImage, match="32 x 16 pixels, more than 500"):
        open_frames(clip, ImageLimits(max_pixels=500))
    with pytest.raises(UnreadableImage, match="a frame takes"):
        open_frames(clip, ImageLimits(max_bytes=10))
    monkeypatch.setattr(video, "MOST_PACKETS", 49)
    with pytest.raises(UnreadableImage, match="more than 49 frames"):
        open_frames(clip)


def test_without_the_extra_one_line_says_what_to_install(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(InputError, match=r"PyAV: pip install -e '\.\[video\]'"):
        open_frames(clip)
