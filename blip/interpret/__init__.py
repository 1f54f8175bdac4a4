"""Reading a model's internals. Read `trace.py` first, then `points.py`.

Imports `inference`, `models`, `network`, `tokenizer`, `files`, `html_page`, `errors`, of `data` `formats`, `images`,
`places`, `transforms` and `jsonl_shards`, and of `evaluation` `bootstrap`; `cli` imports anything.

points       the named points inside a model, and the layout of their tensors
trace recording hooks   `blip.trace`; what it returns; the forward hooks that record and edit
lenses       layers as words, patches as features, attention rollout
objectives   what a map explains: a match, a caption, an answer
maps query_maps requests   methods of maps; those of BLIP-2's queries; which combinations of options are possible
explain explain_files pictures   maps of pairs; of files and folders; as pictures
pointing_game   whether maps point at the lesion that a text names
map_scores map_boxes map_curves map_controls map_report   maps scored: by boxes, by covering patches, by controls
attention_facts attention_sums query_flow   where heads attend over a data set; how texts read through BLIP-2's queries
activations  the activations of a data set in shards
activation_shards  these shards on disk
causes       a room: attribution, patching of activations and paths, ablation
cli          the verbs `blip explain`, `blip activations`, `blip localise` and `blip score-maps`
"""
