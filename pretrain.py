"""Pre-trains BLIP on image-caption files.

    python pretrain.py --config configs/pretrain_demo.yaml --output_dir runs/demo
    torchrun --nproc_per_node=8 pretrain.py --config configs/pretrain.yaml --output_dir runs/base

The path of one batch, in the order of reading:

1. pretrain.py               this launcher; `python -m blip.tasks.pretrain` does the same
2. blip/tasks/pretrain.py    a run: its parts, a training step, an evaluation
3. blip/data/pairs.py        a sample: an image and one of its captions (of shards: blip/data/stream.py)
4. blip/models/pretrain.py   the three losses of a batch
5. blip/network/vit.py       the image encoder
6. blip/network/med.py       the text encoder, with and without the image, and the decoder
7. blip/models/momentum.py   contrast with the momentum twin's features and the queue
8. blip/models/matching.py   match logits of matched pairs and of hard negatives
9. blip/models/losses.py     contrast, matching, language modelling; the draw of hard negatives

Around it:

- the training loop            blip/train/loop.py
- the learning rate            blip/train/schedule.py
- checkpoints of a run         blip/train/checkpoint.py
- update of twin and queue     blip/tasks/contrast.py
- options                      blip/config.py
"""

from blip.tasks.pretrain import main

if __name__ == "__main__":
    main(__doc__)
