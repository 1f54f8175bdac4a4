"""Data: annotation files to samples to batches. Imports `files`, `hashing`, `distributed`, `tokenizer` and `errors`.

Read `pairs.py` first: an image-caption pair from its record to its sample.

formats text_lines records sets compact   annotation files record by record; what texts and paths may hold; a reader
                       for each published set; records in flat arrays
pairs questions statements question_splits   the samples of each task; whole sets of questions divided by image
images image_bytes decoding_cost grey_levels   opening images; the bytes of one, from files and rows of tables; what
                       decoding may cost; 16 bits to 8
transforms skipped     images to tensors; notes about unreadable ones
order batches loader gallery   which record comes when; samples to a batch; batches read ahead; images by number
workers          the processes that read ahead, and their errors
webdataset stream jsonl_shards   tar shards, training batches streamed from them; shards of JSON lines
tar_addresses tar_reader tar_sizes   which shards an address stands for; the samples of a tar file; sizes.json, and
                       shards that were cut short
check check_report phantoms   `blip check-data` and its report; the synthetic data generator
places           which images a command line names: image files, folders, annotation files
"""
