"""What inside a model causes its outputs, on the named points of `blip.interpret.points`. Read `metrics.py` first.

metrics      what an effect is measured by: match, cosine, caption, answer, or any function of pairs
labelled     an array of effects with names: as a picture, as CSV
"""
