"""`blip data shard`: annotated images, resized once, into webdataset shards. No other room imports it.

Imports `data`, `hub`, `outputs`, `hashing`, `files` and `errors`; `cli` imports anything. Read `write.py` first.

resize   an image to the bytes that are stored
write    sources to shards, annotations that refer to them, and the list of what could not be read
cli      `blip data VERB`
"""
