"""The state of random numbers, which each process of a run has of its own."""

import torch
from torch import Tensor

from blip import distributed


def random_state() -> dict[str, Tensor]:
    """The state of this process's random numbers."""
    state = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state()
    return state


def restore_random_state(states: list[dict[str, Tensor]]) -> bool:
    """Continues this process's random numbers.

    False, with nothing changed, when the checkpoint was written by another number of processes.
    """
    if len(states) != distributed.world_size():
        return False
    state = states[distributed.rank()]
    torch.set_rng_state(state["cpu"])
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])
    return True
