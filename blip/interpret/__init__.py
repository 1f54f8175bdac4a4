"""Reading a model's internals. Read `trace.py` first, then `points.py`.

Imports `inference`, `models`, `network`, `tokenizer`, `files`, `html_page`, `errors` and, of `data`, `formats`,
`images`, `places` and `jsonl_shards`; `cli` imports anything.

points       the named points inside a model, and the layout of their tensors
trace recording hooks   `blip.trace`; what it returns; the forward hooks that record and edit
lenses       layers as words, patches as features, attention rollout
objectives   what a map explains: a match, a caption, an answer
maps query_maps requests   methods of maps; those of BLIP-2's queries; which combinations of options are possible
explain explain_files pictures   maps of pairs; of files and folders; as pictures
pointing_game   whether maps point at the lesion that a text names
activations  the activations of a data set in shards
activation_shards  these shards on disk
causes       a room: attribution, patching of activations and paths, ablation
cli          the verbs `blip explain`, `blip activations` and `blip localise`
"""
