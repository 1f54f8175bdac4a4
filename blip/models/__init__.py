"""One file per task: a batch in, losses or predictions out.

Imports `network`, `distributed`, `tokenizer` and `errors`. Read `pretrain.py` first, then `losses.py`.

pretrain retrieval caption vqa nlvr dialogue   the models of the tasks; none imports another
blip2        the model of BLIP-2's first stage
blip2_language    its queries before a frozen language model, the second stage
language_models   causal and encoder-decoder models of transformers behind one interface
language_steps    their steps of generation, each with its own way to keep the past
language_tokens   texts to their ids and back: padding, prompts, the end token
losses       contrast, matching and language modelling as functions of tensors
momentum     features, the momentum twin and queue, and the contrast with them
matching     hard negatives, match logits and the loss of both
decoding     options of generation, penalties, and the draw of a token
generation   beam search and sampling
answer_tree  a list of answers as a tree of tokens, and its layout in memory
ranking      scoring a list of answers at once
scorers      what evaluation needs of a model, in one form for BLIP and BLIP-2
factory      what each task is
"""
