"""What the main process reads, such as a checkpoint, on all processes: the file is read once."""

import copy
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from blip.distributed.failures import from_main
from blip.distributed.group import is_main, world_size

SMALL = 1 << 16  # bytes of tensors that travel with the rest
T = TypeVar("T")


@dataclass
class _Place:
    """Stands for a tensor that travels by itself."""

    shape: torch.Size
    dtype: torch.dtype


def tensors_from_main(call: Callable[[], T]) -> T:
    """What `call` returns in the main process, which alone runs it, on every process.

    It is made of dictionaries, lists, tuples, tensors on the CPU and objects that can be pickled. Between GPUs large
    tensors travel by NCCL; they are on the CPU at the end too, so that all processes compute the same from them.

    Raises:
        OtherProcessError: on the other processes, where it failed in the main one.
    """
    if world_size() == 1:
        return call()
    found: list[Any] = []

    def outline() -> Any:
        found.append(call())
        return _replaced(found[0], _as_place)

    outlined = from_main(outline)
    device = torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else torch.device("cpu")
    if is_main():
        for tensor in _large(found[0]):
            _broadcast(tensor.contiguous().to(device))
        return found[0]
    received = iter([_received(place, device) for place in _places(outlined)])
    return _replaced(outlined, lambda part: next(received) if isinstance(part, _Place) else part)


def _received(place: _Place, device: torch.device) -> Tensor:
    tensor = torch.empty(place.shape, dtype=place.dtype, device=device)
    _broadcast(tensor)
    return tensor.cpu()


def _broadcast(tensor: Tensor) -> None:
    dist.broadcast(tensor.view(-1).view(torch.uint8), src=0)  # as bytes, since gloo lacks some types


def _as_place(part: Any) -> Any:
    return _Place(part.shape, part.dtype) if isinstance(part, Tensor) and part.nbytes > SMALL else part


def _replaced(value: Any, replace: Callable[[Any], Any]) -> Any:
    """The same dictionaries, lists and tuples with other leaves."""
    if isinstance(value, dict):
        new = copy.copy(value)  # of the same type and attributes
        for key, part in value.items():
            new[key] = _replaced(part, replace)
        return new
    if isinstance(value, list | tuple):
        return type(value)(_replaced(part, replace) for part in value)
    return replace(value)


def _leaves(value: Any) -> Iterator[Any]:
    """In the order of `_replaced`."""
    if isinstance(value, dict | list | tuple):
        for part in value.values() if isinstance(value, dict) else value:
            yield from _leaves(part)
    else:
        yield value


def _large(value: Any) -> Iterable[Tensor]:
    return (part for part in _leaves(value) if isinstance(part, Tensor) and part.nbytes > SMALL)


def _places(value: Any) -> Iterable[_Place]:
    return (part for part in _leaves(value) if isinstance(part, _Place))
