"""Parts of a model that are not trained."""

from collections.abc import Sequence

from torch import Tensor, nn

from blip.config import ConfigError


def freeze(model: nn.Module, parts: Sequence[str]) -> None:
    """Takes parts of the model, such as `image_encoder` or `image_encoder.blocks.0`, out of training, in place.

    Parameters that a part shares with another are frozen in both: `text_encoder` includes the decoder's word
    embeddings, cross-attention and feed-forward networks. Call this before `data_parallel` and `build_optimizer`,
    which collect the trainable parameters. A part whose parameters are all frozen, and whose inputs need no gradient,
    keeps no activations. Dropout and drop path of a frozen part stay active while the model trains: set drop_path or
    dropout to 0 for features that are equal each time.

    Raises:
        ConfigError: the model has no such part (nothing is frozen then), or nothing would be left to train.
    """
    frozen_parts = [_part(model, name) for name in parts]
    frozen = {id(p) for part in frozen_parts for p in ([part] if isinstance(part, Tensor) else part.parameters())}
    if parts and all(id(p) in frozen or not p.requires_grad for p in model.parameters()):
        raise ConfigError(f"freeze: {', '.join(parts)}: nothing would be left to train")
    for part in frozen_parts:
        part.requires_grad_(False)


def freeze_for_good(part: nn.Module, trained: Sequence[str] = ()) -> None:
    """Takes a part out of training, in place, and keeps it in evaluation mode whatever mode the model is set to.

    Without dropout and drop path it computes the same for an image each time, as a frozen tower should.

    Args:
        trained: modules in it that are trained all the same, such as the last norm; they have no modes.
    """
    part.requires_grad_(False)
    for name in trained:
        part.get_submodule(name).requires_grad_(True)
    part.eval()
    part.train = lambda mode=True: part  # type: ignore[method-assign]


def _part(model: nn.Module, name: str) -> nn.Module | Tensor:
    part: nn.Module | Tensor = model
    path = name.split(".")
    for i, step in enumerate(path):
        inside: dict[str, nn.Module | Tensor] = {}
        if isinstance(part, nn.Module):
            children = {name: child for name, child in part.named_children() if any(True for _ in child.parameters())}
            inside = {**children, **dict(part.named_parameters(recurse=False))}
        if step not in inside:
            where = ".".join(path[:i]) or "the model"
            has = f"it has {', '.join(inside)}" if inside else "it has no parts"
            raise ConfigError(f"freeze: {name}: {where} has no part {step!r}; {has}")
        part = inside[step]
    return part
