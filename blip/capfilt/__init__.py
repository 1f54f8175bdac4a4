"""CapFilt: bootstrapping captions (Li et al. 2022, section 3.3). No other room imports it. Read `steps.py` first.

Imports `inference`, `models`, `data`, `checkpoints`, `config`, `tokenizer`, `distributed`, `errors`, `files`, `hashing`
and `html_page`; `rounds` also `tasks` and `train`; `cli` imports anything.

candidates   images with the texts proposed for them
steps        writing captions and scoring texts, in shards
merge report   the texts that pass, as annotations or shards; a page about them
rounds config   `blip capfilt run`: all steps, round by round; its options
cli          `blip capfilt VERB`
"""
