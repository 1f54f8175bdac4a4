"""Fine-tunes image-text retrieval, and scores it.

    python train_retrieval.py --config configs/retrieval_roco.yaml --output_dir runs/roco --init_from model_base.pth
    python train_retrieval.py --config configs/retrieval_roco.yaml --output_dir runs/roco --evaluate

The losses are in blip/models/retrieval.py, twin and queue in blip/tasks/contrast.py, re-ranking in
blip/evaluation/retrieval.py.
"""

from blip.tasks.retrieval import main

if __name__ == "__main__":
    main(__doc__)
