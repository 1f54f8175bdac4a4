"""Compound figures: the panels of a picture, the parts of its caption, and which part belongs to which panel.

Read `split.py` first.

split progress   the figures of a file to pairs, over several runs
captions     panel labels and the text of each panel
gutters      bands between panels
detector     panels found by a small network, whose weights are beside it
match letters   which text belongs to which panel: by reading order, or by the letters in the picture
train_detector compose singles plots drawings   training the detector on generated figures
"""
