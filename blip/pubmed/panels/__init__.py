"""Compound figures: the panels of a picture, the parts of its caption, and which part belongs to which panel.

Read `split.py` first.

split progress   the figures of a file to pairs, over several runs
captions caption_parts           panel labels, the words of each panel, and those that all share
given        captions that were split elsewhere
caption_labels caption_rows      what may be labels: candidates in all forms, and rows of them
caption_atoms caption_features caption_words   what stands between labels, and features of it
caption_readings                 what a caption may mean, and how likely that is, by learned weights
caption_rules                    the same by rules alone
compose_captions compose_behind compose_places caption_writer   composed captions
caption_score train_captions     learning on them
gutters      bands between panels
detector     panels found by a small network, whose weights are beside it
match arrange order letters      which text belongs to which panel: by the order of letters, or by reading them
train_detector drawn_figures     training the detector on generated figures
compose layouts singles plots solids drawings    the generated figures
"""
