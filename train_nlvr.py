"""Fine-tunes NLVR2: is a statement true of two images?

    python train_nlvr.py --config configs/nlvr2.yaml --output_dir runs/nlvr2 --init_from model_base.pth
    python train_nlvr.py --config configs/nlvr2.yaml --output_dir runs/nlvr2 --evaluate

The network is in blip/models/nlvr.py, what the tasks share in blip/tasks/finetune.py.
"""

from blip.tasks.nlvr import main

if __name__ == "__main__":
    main(__doc__)
