"""Data: annotation files to samples to batches. Imports `files`, `hashing`, `distributed` and `tokenizer`.

Read `pairs.py` first: an image-caption sample from its record to its tensors.

formats compact   annotation files record by record; annotations in flat arrays
pairs questions statements   the samples of each task; `question_splits` divides whole sets of questions
order batches loader   which record comes when; samples to a batch; worker processes
images transforms skipped gallery   opening images, making tensors of them, noting unreadable ones, images by number
stream webdataset jsonl_shards   shards: streamed, as tar files, as lines of JSON
check phantoms    what `blip check-data` reports; the synthetic data generator
sets              one small reader for each published data set
"""
