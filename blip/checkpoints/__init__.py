"""Checkpoints: the file format, conversion from and to other formats, and starting weights. Read `format.py` first.

Imports `network`, `models`, `files`, `hashing`, `tokenizer`, `hub` and `errors`.

format       model.safetensors, model.json and tokenizer.json in a folder; reading tensors from files safely
places       names of weights: a path, a repository of the hub or an address -> a path
download exchange   a file of an address, in the cache of this package; one request for it
info         the content of model.json, checked
states       state dicts of others' files, also of several files with an index
convert      reading and writing the released files and Hugging Face folders
blip2_convert blip2_export   the same of BLIP-2: files of LAVIS, folders of transformers
processor    what transformers reads beside the weights: images, texts, generation
names blip2_names   tensor names of the other formats
sizes blip2_sizes   a model's sizes from its tensors, and to a Hugging Face configuration
towers       image encoders of elsewhere: EVA, CLIP and those of whole checkpoints
frozen       an image encoder that a checkpoint names instead of holding
language_models language_files   language models of transformers, by name, and their files
fingerprint  the same for the same weights in whatever format
initialize blip2_initialize   starting weights from timm, from BERT or from a checkpoint of another task
adapters adapter_files part_adapters   low-rank adapters around linear layers; their files; those of parts
"""
