"""Starting weights of the Q-Former: those of BERT, or of a text encoder of ours."""

from pathlib import Path

import torch
from torch import Tensor, nn

from blip.checkpoints import convert, places
from blip.checkpoints.format import INFO, CheckpointError, load_weights, unique_state

WORDS = ("qformer.embeddings.words.weight", "qformer.head.bias")  # of which a vocabulary may have some more


@torch.no_grad()
def init_qformer(model: nn.Module, source: str) -> None:
    """Words, positions, self-attention, feed-forward networks and head of `model.qformer` from a text encoder.

    The feed-forward networks of the queries start as copies of the texts'. Cross-attention, queries and the words that
    the source lacks ([DEC]) keep their random start.

    Args:
        source: BERT as in `convert.read_bert`, or a checkpoint of this package, whose text encoder is taken.

    Raises:
        CheckpointError: its sizes are other than the Q-Former's.
    """
    expected, found = unique_state(model), _weights(source)
    depth = len({name.split(".")[2] for name in found if ".layers." in name})
    own = sum(1 for _ in model.get_submodule("qformer.layers").children())
    if depth != own:
        raise CheckpointError(f"text_init: {source} has {depth} layers, the Q-Former {own}: set text_layers")
    for name, tensor in found.items():
        for place in {name, name.replace(".feed_forward.", ".query_feed_forward.")} & expected.keys():
            target, given = expected[place], tensor
            if place in WORDS and abs(len(target) - len(given)) <= 2:
                shared = min(len(target), len(given))
                target, given = target[:shared], given[:shared]
            if target.shape != given.shape:
                raise CheckpointError(
                    f"text_init: {source}: {place} is {tuple(given.shape)}, the Q-Former needs {tuple(target.shape)}; "
                    "text_width, text_hidden, max_positions and the tokenizer must be those of the source"
                )
            target.copy_(given)


def _weights(source: str) -> dict[str, Tensor]:
    """Tensors of a text encoder and the head of its words, as `qformer.*`."""
    path = places.local(source) if not source.startswith("hub:") else Path(source)
    if (path / INFO).is_file():
        tensors, info = load_weights(path)
        if not info.get("text_encoder"):
            raise CheckpointError(f"text_init: {source} is a checkpoint of {info['task']}, which has no text encoder")
    else:
        tensors = convert.read_bert(source)
    found = {}
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".")
        if (part == "text_encoder" and ".cross_attention." not in name) or name.startswith("text_decoder.head."):
            found[f"qformer.{rest}"] = tensor
    return found
