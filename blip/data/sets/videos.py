"""Sets of videos: captions of MSR-VTT, questions about the videos of MSVD and MSR-VTT, as rows that name a video.

A row becomes a record in the generic form whose `image` is the file of the video. Names of videos without an ending get
that of the set's distributed files.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from blip.data.columns import Columns
from blip.data.formats import Records, iter_records, kind_of
from blip.errors import InputError

VIDEO_FOLDERS = ("videos", "../videos", "all", "TrainValVideo", "TestVideo", "YouTubeClips", "images")
ENDINGS = (".mp4", ".avi", ".mkv", ".webm", ".mov", ".mpg")


def _files(name: str) -> dict[str, tuple[str, ...]]:
    parts = {"train": ("train",), "validation": ("val", "validation"), "test": ("test",)}
    return {
        part: tuple(
            pattern.format(name, word)
            for word in words
            for pattern in ("{0}_{1}.jsonl", "{0}_{1}.json", "{1}.jsonl", "{1}.json")
        )
        for part, words in parts.items()
    }


MSRVTT, MSVD_QA, MSRVTT_QA = map(_files, ("msrvtt", "msvd_qa", "msrvtt_qa"))


def rows(*needed: str) -> Callable[[Path, str, Columns], Records]:
    """A reader of rows with these columns."""
    also = ("video_id", "question_id", "id", "split")
    return lambda path, root, columns: iter_records(path, needed=needed, also=also, columns=columns)


def with_video(record: Any, name: str, ending: str) -> dict[str, Any]:
    """A row with the file of its video as `image`; ValueError where it names none.

    Args:
        name: the key of the video's name. Rows of MSR-VTT's first distribution have `video_id` instead: 7010 is
            `video7010`.
        ending: of a name that has none.
    """
    if not isinstance(record, Mapping):
        raise InputError(f"a record is an object, not {kind_of(record)}")
    number = record.get("video_id")
    video = record.get(name, f"video{number}" if isinstance(number, int) else number)
    if not isinstance(video, str) or not video.strip():
        raise InputError(f"has no {name!r}, the name of a video; its keys: {', '.join(map(str, record)) or 'none'}")
    own = {"question_id": record["id"]} if "id" in record else {}
    return {**own, **record, "image": video if video.lower().endswith(ENDINGS) else video + ending}
