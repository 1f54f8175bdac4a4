"""CapFilt: bootstrapping captions (Li et al. 2022, section 3.3). Nothing of the core imports it. Read `steps.py` first.

Imports `inference`, `models`, `data` and `checkpoints`; `rounds` also `tasks` and `train`.

candidates   images with the texts proposed for them
steps        writing captions and scoring texts, in shards
merge report what passes the filter, as annotations or shards; a page on it
rounds config   captioner, filter, captions, scores and the next model, round by round; its options
cli          `blip capfilt VERB`
"""
