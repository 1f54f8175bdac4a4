"""Verbs that write data: `blip data shard`, annotated images, resized once, into webdataset shards; `blip phantoms`.
No other room imports it.

Imports `data`, `hub`, `outputs`, `hashing`, `files` and `errors`; `cli` and `phantoms` import anything. Read
`write.py` first.

items    the different images of the records, and their items of several pictures
resize   an image to the bytes that are stored
write    sources to shards, annotations that refer to them, and the list of what could not be read
cli      `blip data VERB`
phantoms `blip phantoms`
"""
