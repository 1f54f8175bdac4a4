"""How much work a device is handed at once, by type of device: the one place where a CPU and a GPU differ in this.

A CPU is fastest where intermediate results fit into its caches, a GPU where few, large operations keep it busy and
where it is not waited for. The numbers change speed and memory, results by rounding alone.
"""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Profile:
    """Amounts of work for one type of device."""

    images_at_once: int  # of verbs, unless another number is given [images]
    tokens_at_once: int  # of the texts that are matched with one image [tokens]
    texts_at_once: int  # that are encoded alone, without an image [texts]
    nodes_at_once: int  # of trees of answers that are read in one pass; limits memory [nodes]
    logits_at_once: int  # nodes whose logits over the vocabulary exist at a time [nodes]
    rows_at_once: int  # queries whose similarities to all candidates exist at a time [queries]
    steps_between_checks: int  # tokens generated between two checks whether all texts have ended [tokens]
    see_states: bool  # a few tokens attend to an image's states instead of keys, see `keys_or_states`


PROFILES = {
    # 2,048 tokens: efficient matrix products whose results still fit into the caches. Logits of 256 nodes with BERT's
    # words are 31 MB. A check costs nothing where results need no transfer.
    "cpu": Profile(
        images_at_once=32,
        tokens_at_once=2048,
        texts_at_once=256,
        nodes_at_once=2048,
        logits_at_once=256,
        rows_at_once=512,
        steps_between_checks=1,
        see_states=True,
    ),
    # 32,768 tokens: 1,086 launches instead of 8,700 for 1,500 texts of an image. Logits of 4,096 nodes are 0.5 GB. Keys
    # of an image take one large product; attending to states takes several small ones. 512 queries, so that processes
    # have about equal shares; with 25,000 candidates they already are 13 million numbers to sort.
    "cuda": Profile(
        images_at_once=128,
        tokens_at_once=32768,
        texts_at_once=2048,
        nodes_at_once=16384,
        logits_at_once=4096,
        rows_at_once=512,
        steps_between_checks=6,
        see_states=False,
    ),
}


def profile_of(device: torch.device) -> Profile:
    """The profile of a device; a type without one of its own is treated as a GPU."""
    return PROFILES.get(device.type, PROFILES["cuda"])
