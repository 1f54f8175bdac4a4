"""Data: annotation files to samples to batches; `blip.data(...)` opens any of them as a data set of torch.

    >>> data = blip.data("chest.png")  # or an annotation file, a folder, hub:OWNER/NAME; see `open_data`
    >>> data[0].image.size
    (40, 30)

Imports `files`, `outputs`, `hashing`, `distributed`, `tokenizer`, `hub` and `errors`. Read `pairs.py` first: an
image-caption pair from its record to its sample.

formats text_lines tables columns records   annotation files record by record, tables among them; names of columns; what
                       texts and paths may hold
sets sources hub hints compact   a reader for each published set; which records of which place; data sets of the hub;
                       advice about wrong paths and encodings; records in flat arrays
pairs questions statements question_splits   the samples of each task; whole sets of questions divided by image
question_batches   questions side by side
pictures           items of several pictures: references that mean several, and the pixels of a sample
dialogues dialogue_texts dialogue_samples   dialogues, their texts as ids, their samples
images image_formats image_bytes image_files decoding_cost grey_levels   opening images; the formats of Pillow; the
                       bytes of an image, from files, rows of tables and shards; the images of folders; what decoding
                       may cost; 16 bits to 8
scans                  DICOM and NIfTI files, series and volumes
transforms crops training_images randaugment augment   images to tensors; crops that are read alone; both ways from a
                       file to pixels; RandAugment on an image, and on batches, with normalisation
video frame_choice     frames of videos, as pictures of one item; which frames are meant
reference_options      the options behind # of references: frames=8, axis=coronal&slice=40
skipped                notes about unreadable images
eval_records     what the evaluation sets of all tasks share
order batches loader gallery   which record comes when; samples to a batch; batches read ahead; images by number
workers          the processes that read ahead, and their errors
webdataset stream jsonl_shards   tar shards, training batches streamed from them; shards of JSON lines
tar_addresses tar_reader tar_sizes tar_members   which shards an address stands for; the samples of a tar file;
                       sizes.json, and shards that were cut short; single files of a tar file in any order
check check_report     `blip check-data` and its report
phantoms phantom_studies phantom_drawing   the synthetic data generator: single pictures; studies of several; what
                       both are drawn with
places dataset figure   the records of any place: image files, folders, annotation files, data sets of the hub; these as
                 a data set of torch; pictures of it
"""

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from blip.data.dataset import DataSet


class _Room(ModuleType):
    """This package, which can be called: `blip.data` is both the room and the function that opens data."""

    def __call__(
        self,
        source: Any,
        *,
        split: str = "",
        limit: int | None = None,
        columns: Any = None,
        image_root: str = "",
        dataset: str = "json",
        seed: int | None = None,
    ) -> "DataSet":
        """The records of any source as a data set of torch; arguments, errors and an example in `open_data`."""
        from blip.data.dataset import open_data

        return open_data(
            source, split=split, limit=limit, columns=columns, image_root=image_root, dataset=dataset, seed=seed
        )


sys.modules[__name__].__class__ = _Room
