"""Training, for any model and data. Read `loop.py` first: the only training loop.

Imports `config`, `files`, `distributed`, `errors`, `command_line` and `checkpoints.format`.

launch       the command line of the training scripts
run          a run from its start, or from a checkpoint, to its end
loop         batches, gradients, updates, signals
schedule     epochs and steps; the learning rate of a step
optim freeze   the optimizer, frozen parts
parallel     DDP, compilation, recomputation of activations
checkpoint log state   the files of a run; what training.pt holds
"""
