"""Data: annotation files to samples to batches. Imports `files`, `hashing`, `distributed`, `tokenizer` and `errors`.

Read `pairs.py` first: an image-caption pair from its record to its sample.

formats tables columns records   annotation files record by record, tables among them; names of columns; what texts
                       and paths may hold
sets sources hub hints compact   a reader for each published set; which records of which place; data sets of the hub;
                       advice about wrong paths and encodings; records in flat arrays
pairs questions statements question_splits   the samples of each task; whole sets of questions divided by image
images image_bytes grey_levels   opening images; the bytes of one, from files and rows of tables; 16 bits to 8
transforms skipped     images to tensors; notes about unreadable ones
order batches loader gallery   which record comes when; samples to a batch; batches read ahead; images by number
workers          the processes that read ahead, and their errors
webdataset stream jsonl_shards   tar shards, training batches streamed from them; shards of JSON lines
tar_reader tar_sizes   the samples of a tar file; sizes.json, and shards that were cut short
check check_report phantoms   `blip check-data` and its report; the synthetic data generator
places           the records of any place: image files, folders, annotation files, data sets of the hub
"""
