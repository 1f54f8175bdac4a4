"""Readers of published data sets, in the files they are distributed in. Imports `data.formats`. Read `layout.py` first.

layout       where a set's files lie in its folder, and which reader takes them
captions     sets of images and captions
questions    sets of images, questions and answers
statements   sets of two images and a statement
vqa_v2       VQA v2, whose answers lie in a file of their own
"""
