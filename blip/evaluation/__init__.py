"""Scores with intervals. Imports `models`, `network` and `distributed`. Read `bootstrap.py` first.

answers      scores of answers, as in medical VQA and as in VQA v2
captions caption_words bert_score   scores of captions; how captions are split into words; BERTScore
retrieval ranking   retrieval of a whole set, re-ranked by matching; recall at k and median rank
pretraining  what pre-training evaluates between epochs
bootstrap    intervals by image, article or patient
"""
