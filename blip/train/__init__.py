"""Training, for any model and data. Read `loop.py` first: the only training loop.

Imports `console`, `config`, `options`, `files`, `outputs`, `distributed`, `errors`, `command_line` and
`checkpoints.format`.

launch       the command line of the training scripts
torchrun     the same in several processes
run          a run from its start, or from a checkpoint, to its end
loop         batches, gradients, updates
last_step    what is saved on every way out of the loop
background   checkpoints that are written beside the training
random_numbers   of each process, in a checkpoint
signals      that ask a run to stop
schedule     epochs and steps; the learning rate of a step
optim freeze   the optimizer, frozen parts
parallel     DDP, compilation, recomputation of activations
folder       which files of a run's folder are its own, and what it continues
before       the files as they were before a run was resumed, should that fail
evaluated    the configuration and the folder of an evaluation without training
checkpoint state record inputs   the files of a run; what training.pt holds; fingerprints of what a run reads
log          what a run logs, to files and to the terminal
history      reads what a run has logged
report       the page of a run, made again after each evaluation
meter        means over steps and processes
"""
