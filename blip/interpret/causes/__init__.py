"""What inside a model causes its outputs, on the named points of `blip.interpret.points`. Read `metrics.py` first.

metrics      what an effect is measured by: match, cosine, caption, answer, or any function of pairs
labelled     an array of effects with names: as a picture, as CSV
attribution  `blip.attribute`: what every patch would change, estimated from one gradient
sweep        `blip.patch_sweep`: what every patch changes, hundreds of them in one pass
paths        `blip.path_patch`: what one part sends to another directly
ablation     `blip.ablate`: what a metric loses without each head, layer or feed-forward network, over a data set
donors       which pair stands in for another one in resample ablation
ablation_files   the same in shards on disk, and its table
cli          the verb `blip ablate`
patching     a patch, and many of them as rows of one pass; values that are frozen
items        the pictures of an item at the points of the image encoder
prefix       rows that are the same up to some layer are computed once up to there
places       heads, tokens, patches and layers, and their names
"""
