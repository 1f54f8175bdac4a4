"""Using a model: images and strings in, texts and scores out. Read `predictor.py` first.

Imports `models`, `network`, `checkpoints`, `tokenizer` and, of `data`, images, transforms and batches.

load         `blip.load`: from a checkpoint of any format to a predictor
predictor    captions, answers, features and match probabilities of images
scoring      the probability of a given text
files        the same over files and folders, to a table or JSON
"""
