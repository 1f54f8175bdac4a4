"""Readers of data sets in the files in which they are published. Imports `data.formats`. Read `layout.py` first.

layout       which files a set's folder has, and the reader of each set
captions     sets of images and captions
nocaps       NoCaps, whose images are of three domains
questions    sets of images, questions and answers
statements   sets of two images and a statement
photographs  files of COCO and of Karpathy's splits
studies      what sets of radiology reports share
mimic_cxr iu_xray   two of them
dialogues    sets of images and dialogues
visdial      VisDial, whose texts are in lists and relevances in a file of their own
vqa_med      VQA-Med 2019, lines of text
videos       MSR-VTT and MSVD: captions of videos and questions about them
vqa_v2       VQA v2, whose answers are in a file of their own
"""
