"""One file a task: a batch in, losses or predictions out. Imports `network`, `distributed` and `tokenizer`.

Read `pretrain.py` first, then `losses.py`.

pretrain retrieval caption vqa nlvr   the models of the tasks; none imports another
losses       contrast, matching and language modelling as functions of tensors
momentum     features, the momentum twin and queue, and the contrast with them
matching     match logits, with hard negatives
decoding     how to generate, and what was generated
generation   beam search and sampling
ranking      scoring a list of answers at once
factory      what each task is
"""
