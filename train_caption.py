"""Fine-tunes captioning, and scores captions.

    python train_caption.py --config configs/caption_coco.yaml --output_dir runs/coco --init_from model_base.pth
    python train_caption.py --config configs/caption_coco.yaml --output_dir runs/coco --evaluate

The loss is in blip/models/caption.py, what the tasks share in blip/tasks/finetune.py, generation in
blip/models/generation.py.
"""

from blip.tasks.caption import main

if __name__ == "__main__":
    main(__doc__)
