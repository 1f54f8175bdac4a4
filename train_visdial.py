"""Fine-tunes dialogues about images (VisDial): which of many answers is the right one?

    python train_visdial.py --config configs/visdial.yaml --output_dir runs/visdial --init_from model_base.pth
    python train_visdial.py --config configs/visdial.yaml --output_dir runs/visdial --evaluate

The network is in blip/models/dialogue.py, what the tasks share in blip/tasks/finetune.py; see docs/dialogues.md.
"""

from blip.tasks.dialogue import main

if __name__ == "__main__":
    main(__doc__)
