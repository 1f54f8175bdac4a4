"""What a page is about: one image, or an item of several pictures, from uploaded files or from the operator's folder.

Several DICOM files of one series are a volume, whose slices are ordered by position; other files are the pictures of an
item in their own order, a video all of its chosen frames. Which part of a scan is read is said as in references:
`slices=16`, `axis=coronal&slice=40`; of a video likewise: `frames=16`, `rate=1`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from PIL import Image

from blip.data.frame_choice import OPTIONS as OF_VIDEOS
from blip.data.frame_choice import check_options, is_video_name
from blip.data.image_bytes import LIMITS, ImageLimits, UnreadableImage
from blip.data.images import open_image
from blip.data.pictures import evenly, open_pictures
from blip.data.scans.nifti import NEEDED, is_nifti
from blip.data.scans.references import parts_of
from blip.data.scans.series import series_in_memory
from blip.data.scans.volumes import open_scans
from blip.data.scans.windows import NAMED, check_view
from blip.data.video import open_video
from blip.errors import InputError
from blip.serve.limits import Limits

AS_TRAINED, OWN = "as in training", "the file's own"  # windows that are none of NAMED
WINDOWS = (AS_TRAINED, OWN, *NAMED)
LONGEST_PARTS = 200  # characters


@dataclass(frozen=True)
class Picture:
    """The file of an image or a video: its name, without a folder, and its bytes."""

    name: str
    data: bytes

    def open(self, limits: Limits, shown: ImageLimits = LIMITS) -> Image.Image:
        """The image in RGB, upright; a scan as `shown` says, such as the `limits` of a model.

        Raises:
            InputError: it cannot be read or is too large; the message begins with its name.
        """
        try:
            return open_image(self.data, replace(limits.image, window=shown.window, channels=shown.channels))
        except UnreadableImage as error:
            raise InputError(f"{self.name} cannot be read: {error.reason}") from None

    def frames(self, options: str, limits: Limits, shown: ImageLimits = LIMITS) -> list[Image.Image]:
        """The frames of a video that are chosen, as many as `shown` says where `options` do not. InputError."""
        fewer, end = partial(evenly, most=shown.max_pictures), limits.max_seconds
        try:
            return open_video(self.name, self.data, options, limits=shown, fewer=fewer, seconds=end)
        except UnreadableImage as error:
            reason = error.reason
        except InputError as error:  # what is to be installed
            reason = f"on the computer that serves this page, {error}"
        raise InputError(f"{self.name} cannot be read: {reason}")

    @property
    def is_video(self) -> bool:
        return is_video_name(self.name)

    @property
    def is_dicom(self) -> bool:
        return self.data[128:132] == b"DICM"

    @property
    def is_scan(self) -> bool:
        return self.is_dicom or is_nifti(self.data[:NEEDED])


@dataclass(frozen=True)
class Item:
    """The files of an item, or the folder of a series; and how scans and videos among them are shown.

    Args:
        files: one or more; none where there is a `folder`.
        window: one of WINDOWS, or LEVEL/WIDTH.
        parts: of a scan or a video, as behind # in references; "" for the one picture of a scan or, of a series, for
            some slices; for some frames of a video.
        folder: a series in the operator's folder, and the name that the page shows.
    """

    files: tuple[Picture, ...]
    window: str = AS_TRAINED
    parts: str = ""
    folder: tuple[Path, str] | None = None

    def __post_init__(self) -> None:
        """InputError where window or parts mean nothing."""
        if self.window not in (AS_TRAINED, OWN):
            check_view(self.window, ())
        if len(self.parts) > LONGEST_PARTS:
            raise InputError(f"parts of a scan are named by at most {LONGEST_PARTS} characters, such as slices=16")
        has_scans = self.folder is not None or any(file.is_scan for file in self.files)
        key = self.parts.partition("=")[0]  # other images have no parts: those of a scan or a video may stand there
        if any(file.is_video for file in self.files) or (key in OF_VIDEOS and not has_scans):
            check_options(self.parts)
        else:
            parts_of(self.parts)

    @property
    def name(self) -> str:
        if self.folder is not None:
            return self.folder[1]
        return self.files[0].name + (f" and {len(self.files) - 1} more" if len(self.files) > 1 else "")

    @property
    def size(self) -> int:
        """Bytes that it takes in memory."""
        return sum(len(file.data) for file in self.files)

    def open(self, limits: Limits, shown: ImageLimits = LIMITS) -> list[Image.Image]:
        """Its pictures in RGB; scans as `shown` says, such as the `limits` of a model, unless a window was chosen.

        Raises:
            InputError: one of them cannot be read or is too large; the message begins with its name.
        """
        shown = replace(shown, max_bytes=limits.image.max_bytes, max_pixels=limits.image.max_pixels)
        if self.window != AS_TRAINED:
            shown = replace(shown, window="" if self.window == OWN else self.window, channels=())
        try:
            pictures = self._pictures(limits, shown)
        except UnreadableImage as error:
            raise InputError(f"{self.name} cannot be read: {error.reason}") from None
        return [pictures[place] for place in evenly(len(pictures), shown.max_pictures)]

    def _pictures(self, limits: Limits, shown: ImageLimits) -> list[Image.Image]:
        if self.folder is not None:
            return open_pictures([f"{self.folder[0]}/#{self.parts}" if self.parts else f"{self.folder[0]}/"], shown)
        if self.is_volume or (self.parts and len(self.files) == 1 and self.files[0].is_scan):
            return open_scans(self.name, [file.data for file in self.files], parts_of(self.parts), shown)
        pictures = []
        for file in self.files:
            pictures += file.frames(self.parts, limits, shown) if file.is_video else [file.open(limits, shown)]
        return pictures

    @property
    def is_volume(self) -> bool:
        """Whether it is a series of several slices, whose positions order them."""
        if self.folder is not None:
            return True
        if len(self.files) < 2 or not all(file.is_dicom for file in self.files):
            return False
        try:
            return len(series_in_memory([file.data for file in self.files])) > 1
        except InputError:  # several series, or no positions: pictures by themselves, such as views from two sides
            return "series=" in self.parts

    def described(self, pictures: Sequence[Image.Image]) -> str:
        """What the page says of its pictures."""
        sides = f"{pictures[0].width} x {pictures[0].height} pixels"
        if len(pictures) == 1:
            return sides
        order = "pictures of one item, in this order"
        if len(self.files) == 1 and self.files[0].is_video:
            order = "frames of one video, in their order"
        elif self.is_volume or len(self.files) == 1:
            order = "slices or frames of one scan, in their order"
        return f"{len(pictures)} {order}; the first has {sides}"
