"""Reading a model's internals. Imports `inference`, `models`, `network`, `files` and, of `data`, formats and shards.

Read `trace.py` first, then `points.py`.

points       the names inside a model, and where their tensors are
trace hooks  `blip.trace`; reading and editing by forward hooks
lenses       layers as words, patches as features, attention rollout
maps explain explain_files pictures   maps of an image; of pairs; of files and folders; as pictures
pointing_game   whether maps point at what a text names
activations  the activations of a data set in shards
"""
