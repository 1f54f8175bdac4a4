"""`blip serve`: a page on which a model is asked about images in a browser. Read `abilities.py`, then `page.py`.

What a model does and how the page is laid out are apart: `abilities` knows the predictor and `blip.interpret` and
returns plain values; `results` turns these into markup; `handlers`, `views` and `page` connect both.
Imports `inference`, `interpret`, `models`, `distributed`, `html_page`, `errors` and, of `data`, `images`,
`image_bytes`, `pictures`, `scans`, `video` and `frame_choice`; `cli` imports anything. Gradio is imported by `page`,
`views`, `parts` and `site` alone.

limits       what a request may cost
served worker   the checkpoints by name; the one thread in which each of them runs
abilities    ask, caption, match, judge, explain and batches: images and texts in, values out
items        what a page is about: an image, or an item of several pictures; scans and videos with their parts
uploads      the images of open pages, in memory; files of uploads are removed once they are read
results      values as markup, with `results.html`
handlers     what happens on each event of the page; errors become messages in it
page views   the layout: the frame with the choice of the image; one view for each ability; page.css is its style
parts        what several views share
passwords    who may use the page
guard        the routes, headers and sizes of requests that the server accepts
site         starts the server and ends it
cli          the verb `blip serve`
"""
