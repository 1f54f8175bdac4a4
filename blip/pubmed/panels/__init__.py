"""Compound figures: the panels of a picture, the parts of its caption, and which belongs to which.

Read `split.py` first.

split        a compound figure to pairs
captions     panel labels and the text of each panel
gutters      bands between panels
detector     panels found by a small network, whose weights lie beside it
match letters   which text belongs to which panel: by reading order, or by the letters in the picture
train_detector compose singles plots   training the detector on generated figures
"""
