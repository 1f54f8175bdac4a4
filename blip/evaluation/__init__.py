"""Scores with intervals. Read `bootstrap.py` first.

Imports `models`, `network`, `distributed`, `tokenizer`, `files` and `errors`.

answers      scores of answers, as in medical VQA and as in VQA v2
captions caption_words bert_score   scores of captions; splitting captions into words; BERTScore
retrieval retrieval_set   retrieval of a whole set, re-ranked by matching; what it takes and returns, and contrast
dialogues    scores of ranked answers in dialogues
losses retrieval_losses   validation losses; those of retrieval
clinical     agreement of reports by the labels of a program such as CheXbert
ranking      recall at k and median rank
pretraining  the evaluation between epochs of pre-training
bootstrap quantiles   intervals by image, article or patient; quantiles that they need
"""
