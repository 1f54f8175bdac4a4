"""What a request may cost, and how long a page may wait."""

from dataclasses import dataclass, replace

from blip.data.frame_choice import is_video_name
from blip.data.image_bytes import ImageLimits


@dataclass(frozen=True)
class Limits:
    """Limits of a server; sizes are in MiB, times in seconds.

    Args:
        max_image_mb: of an image's file.
        max_megapixels: million pixels of an image.
        max_files: images of a batch, and files of an item of several pictures.
        max_upload_mb: of the files of one upload together, such as those of a batch; and of a video's file.
        max_characters: of a question, caption or statement.
        max_texts: texts that are matched with an image at once, and questions about each image of a batch.
        max_beams: of a search for captions.
        queue_size: requests that wait for the models; more are refused.
        max_seconds: from the beginning of a request's work to its end, and for a batch altogether.
        keep_seconds: for which the image of a page that is not used stays in memory.
        memory_mb: of the images of all pages together; the one that was not used for longest makes room.
        sessions: pages whose state gradio keeps; the one that was not used for longest makes room.
    """

    max_image_mb: int = 20
    max_megapixels: int = 40
    max_files: int = 100
    max_upload_mb: int = 200
    max_characters: int = 2000
    max_texts: int = 20
    max_beams: int = 10
    queue_size: int = 64
    max_seconds: float = 120
    keep_seconds: float = 1800
    memory_mb: int = 1024
    sessions: int = 64

    @property
    def image(self) -> ImageLimits:
        """The limits of an image's file and of its pixels."""
        return ImageLimits(self.max_image_mb << 20, self.max_megapixels * 1_000_000)

    def of_file(self, name: str) -> ImageLimits:
        """The limits of the file of an image or a video, which its name tells."""
        return replace(self.image, max_bytes=self.max_upload_mb << 20) if is_video_name(name) else self.image
