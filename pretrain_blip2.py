"""Trains BLIP-2: the first stage, or the second one where the configuration names a language model.

    python pretrain_blip2.py --config configs/blip2_stage1.yaml --output_dir runs/q1 --set train_file=[captions.json]
    python pretrain_blip2.py --config configs/blip2_stage2_opt.yaml --output_dir runs/q2 --init_from runs/q1

The path of one batch, in the order of reading:

1. blip/tasks/blip2.py            a run of the first stage: its parts, a training step, an evaluation
2. blip/models/blip2.py           the three losses of a batch
3. blip/network/qformer.py        the Q-Former: queries, texts, and both
4. blip/tasks/blip2_language.py   a run of the second stage
5. blip/models/blip2_language.py  what the queries have read, before the words of a frozen language model

`docs/blip2.md` explains the stages and what they cost.
"""

from blip.tasks.blip2 import main

if __name__ == "__main__":
    main(__doc__)
