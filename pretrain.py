"""Pre-trains BLIP on image-caption files.

    python pretrain.py --config configs/pretrain_demo.yaml --output_dir runs/demo
    torchrun --nproc_per_node=8 pretrain.py --config configs/pretrain.yaml --output_dir runs/base

The batch is made in blip/data/pairs.py (of shards: stream.py), the losses in blip/models/pretrain.py, the loop
runs in blip/train/loop.py.
"""

from blip.tasks.pretrain import main

if __name__ == "__main__":
    main(__doc__)
