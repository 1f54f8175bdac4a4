"""Fine-tunes visual question answering, and scores answers.

    python train_vqa.py --config configs/vqa_rad.yaml --output_dir runs/vqa_rad --init_from model_base.pth
    python train_vqa.py --config configs/vqa_rad.yaml --output_dir runs/vqa_rad --evaluate

The loss is in blip/models/vqa.py, ranking of answers in blip/models/ranking.py, scores in blip/evaluation/answers.py.
"""

from blip.tasks.vqa import main

if __name__ == "__main__":
    main(__doc__)
