"""Pages of what data hold and what runs did: `blip show` and `blip report`. Read `grid.py` first, then `run_page.py`.

Imports `train`, `tasks.config`, `interpret`, `inference`, `evaluation`, `data`, `config`, `html_page`, `files`, `outputs`
and `errors`; `cli` imports anything. Nothing imports it but `runs` and the command line.

items sources results   what `blip show` shows; where it comes from; files that models write, as items
tiles maps         their images; maps over them
grid grid_picture  a grid as a page; as one picture
cli                the verbs `blip show` and `blip report`
"""
