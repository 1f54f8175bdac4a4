"""Pages of what data hold and what runs did: `blip show` and `blip report`. Read `grid.py`, then `run_page.py`.

Imports `train`, `options`, `interpret`, `inference`, `models`, `evaluation`, `data`, `config`, `hub`, `html_page`,
`tasks.{config,data_options,pretrain_data}`, `files` and `errors`; `cli` and `labels` import anything.

items sources results   what `blip show` shows; where it comes from; files that models write, as items
tiles maps              their images; maps over them
grid grid_picture       a grid as a page; as one picture
run_files               what the folder of a run tells
charts curves drawing   what to draw of a log; as matplotlib figures, for notebooks too; as parts of a page
scores findings samples   scores with intervals; sentences on a run, such as leaks; outputs epoch by epoch
sections run_page       the parts of the page of a run, or of several; the page
cli labels              the verbs `blip show` and `blip report`; those of `blip labels`
"""
