"""A GPU for tests on a computer without one: its tensors are fake, and whatever makes the CPU wait for it is recorded.

    with fake_cuda() as gpu:
        model.to(gpu.device)
        gpu.clear()
        model(images.pin_memory().to(gpu.device, non_blocking=True))
    assert not gpu.waits

Tensors on `gpu.device` have shapes, types and a device, and no numbers; those on the CPU are real. An operation on
tensors of both devices raises, as on a GPU. A number that is read from the GPU is `gpu.number`, and where a shape
depends on numbers, as that of `nonzero`, all of them are 1.

A backward pass cannot run: `Tensor.backward` gives a gradient to each parameter that the loss depends on.
"""

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
    unset_fake_temporarily,
)
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

import blip

PACKAGE = Path(blip.__file__).parent
TRANSFERS = PACKAGE / "hardware" / "transfers.py"  # what waits is the line that calls it

# kinds of waits for all that the device was given
NUMBER = "a number is read"
SHAPE = "a shape depends on numbers"
TO_CPU = "a copy to the CPU"
FROM_CPU = "a copy from the CPU that is not asynchronous"
INDICES = "indices on the CPU"
ALL = "torch.cuda.synchronize"
# kinds that are noted apart
EVENT = "an event is waited for"  # work given after it goes on
PAGEABLE = "an asynchronous copy from pageable memory"  # long ones wait

NO_LAUNCH = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "lift_fresh", "_reshape_alias"}


@dataclass(frozen=True)
class Wait:
    """The CPU waits for the device."""

    kind: str
    place: str  # file and line of the package, such as models/vqa.py:86; "" where none of it is involved
    given: int = field(default=0, compare=False)  # of an event: launches between its record and the wait for it

    @property
    def file(self) -> str:
        return self.place.rpartition(":")[0]


class FakeCuda(TorchDispatchMode):
    """Runs operations on the fake device or on the CPU; notes waits and launches."""

    device = torch.device("cuda", 0)

    def __init__(self) -> None:
        super().__init__()
        self.clear()
        self.number = 0  # every number that is read from the device
        self._pinned: dict[int, Tensor] = {}  # by place in memory; kept, so that no place is used twice
        self._arriving: dict[int, Tensor] = {}  # on the CPU, by copies from the device that nothing has waited for

    def clear(self) -> None:
        """Forgets what was noted."""
        self.waits: list[Wait] = []
        self.events: list[Wait] = []
        self.pageable: list[Wait] = []
        self.launches: Counter[str] = Counter()  # operations that give the device work, by name

    def note(self, kind: str, given: int = 0) -> None:
        """A wait, with the innermost line of the package."""
        {EVENT: self.events, PAGEABLE: self.pageable}.get(kind, self.waits).append(Wait(kind, _place(), given))

    def is_pinned(self, x: Tensor) -> bool:
        """Whether a CPU tensor lies in page-locked memory."""
        return _where(x) in self._pinned

    def arrived(self, places: set[int] | None = None) -> None:
        """Copies from the device to these places in memory, or to all, have ended."""
        for place in list(self._arriving) if places is None else places:
            self._arriving.pop(place, None)

    def check_arrived(self, x: Tensor) -> None:
        """AssertionError where a CPU tensor is read although its copy from the device may not have ended."""
        if self._arriving and _where(x) in self._arriving:
            raise AssertionError(f"{_place()} reads a tensor whose copy from the device may not have ended")

    # ---- an operation ------------------------------------------------------------------------------------------------

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        tensors = [x for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)]
        target = torch.device(kwargs["device"]).type if kwargs.get("device") is not None else None
        if name == "_to_copy" and target:
            return self._to(func, args[0], kwargs, target)
        if name == "copy_" and _on_device(args[0]) != _on_device(args[1]):
            return self._copy(func, args, kwargs)
        if target != "cuda" and not any(map(_on_device, tensors)):
            return self._on_cpu(func, name, args, kwargs)
        generator = kwargs.get("generator")
        if generator is not None and generator.device.type == "cpu":
            raise RuntimeError(f"{_place()}: {name} on the device needs a generator of the device")
        return self._on_gpu(func, name, args, kwargs)

    def _on_cpu(self, func: Any, name: str, args: Any, kwargs: Any) -> Any:
        tree_map(lambda x: self.check_arrived(x) if isinstance(x, Tensor) else None, (args, kwargs))
        if name == "is_pinned":
            return self.is_pinned(args[0])
        with unset_fake_temporarily():
            if name in ("pin_memory", "_pin_memory"):
                return self._pin(args[0].clone())
            out = func(*args, **{**kwargs, **({"pin_memory": False} if "pin_memory" in kwargs else {})})
            return self._pin(out) if kwargs.get("pin_memory") else out

    def _on_gpu(self, func: Any, name: str, args: Any, kwargs: Any) -> Any:
        if name == "_local_scalar_dense":
            self.note(NUMBER)
            dtype = args[0].dtype
            kind = bool if dtype == torch.bool else float if dtype.is_floating_point else int
            return kind(self.number)
        if name == "equal":
            self.note(NUMBER)
            return False
        if func.namespace == "aten" and not (func.is_view or name in NO_LAUNCH):
            self.launches[name] += 1
        if name.lstrip("_").startswith("index") and isinstance(args[1], list | tuple):  # `index`, `index_put`
            indices = [x for x in args[1] if x is not None]
            if any(not _on_device(x) for x in indices):
                self.note(INDICES)
            if any(x.dtype in (torch.bool, torch.uint8) for x in indices):
                return self._by_mask(func, name, args, kwargs)
        try:
            return func(*args, **kwargs)
        except DynamicOutputShapeException:
            self.note(SHAPE)
            return self._of_ones(func, args, kwargs)

    def _by_mask(self, func: Any, name: str, args: Any, kwargs: Any) -> Any:
        fills = "put" in name and args[2].numel() == 1  # by `masked_fill`, which needs no places
        if not fills:
            self.note(SHAPE)
        return args[0] if name.endswith("_") else self._of_ones(func, args, kwargs)

    def _of_ones(self, func: Any, args: Any, kwargs: Any) -> Any:
        """The result of an operation on ones, on the device."""
        with unset_fake_temporarily():
            args, kwargs = tree_map(_ones, (args, {k: v for k, v in kwargs.items() if k != "device"}))
            out = func(*args, **kwargs)
        return tree_map(lambda x: torch.empty(x.shape, dtype=x.dtype, device=self.device), out)

    # ---- copies ------------------------------------------------------------------------------------------------------

    def _to(self, func: Any, x: Tensor, kwargs: Any, target: str) -> Any:
        if _on_device(x) and target == "cpu":
            with unset_fake_temporarily():
                out = torch.full(x.shape, self.number, dtype=kwargs.get("dtype") or x.dtype)
            if kwargs.get("non_blocking"):
                self._arriving[_where(out)] = self._pin(out)
            else:
                self.note(TO_CPU)
            self.launches["_to_copy"] += 1
            return out
        if target == "cpu":
            return self._on_cpu(func, "_to_copy", (x,), kwargs)
        if not _on_device(x):
            self._sent(x, kwargs.get("non_blocking", False))
        self.launches["_to_copy"] += 1
        return func(x, **kwargs)

    def _copy(self, func: Any, args: Any, kwargs: Any) -> Any:
        """`copy_` from one device to the other."""
        target, source = args[:2]
        non_blocking = args[2] if len(args) > 2 else kwargs.get("non_blocking", False)
        self.launches["copy_"] += 1
        if _on_device(target):
            self._sent(source, non_blocking)
            return func(*args, **kwargs)
        with unset_fake_temporarily():
            target.fill_(self.number)
        if non_blocking and self.is_pinned(target):
            self._arriving[_where(target)] = target
        else:
            self.note(TO_CPU)
        return target

    def _sent(self, x: Tensor, non_blocking: bool) -> None:
        self.check_arrived(x)
        if not non_blocking:
            self.note(FROM_CPU)
        elif not self.is_pinned(x):
            self.note(PAGEABLE)

    def _pin(self, x: Tensor) -> Tensor:
        self._pinned[_where(x)] = x
        return x


@contextmanager
def fake_cuda() -> Iterator[FakeCuda]:
    """Within this block there is a fake GPU; the test is skipped where torch cannot do without a real one."""
    if not (hasattr(torch._C, "_ensureCUDADeviceGuardSet") or torch.cuda.is_available()):
        pytest.skip("this torch asks the driver for the device of each tensor that is indexed: it is too old")
    gpu = FakeCuda()

    class Event:
        """In place of `torch.cuda.Event`."""

        def __init__(self, *_: object, **__: object):
            self.places: set[int] = set()
            self.launched = 0

        def record(self, *_: object) -> None:
            self.places, self.launched = set(gpu._arriving), gpu.launches.total()

        def synchronize(self) -> None:
            gpu.note(EVENT, gpu.launches.total() - self.launched)
            gpu.arrived(self.places)

        def query(self) -> bool:
            return False

    def synchronize(*_: object) -> None:
        gpu.note(ALL)
        gpu.arrived()

    on_cpu = Tensor.tolist

    def tolist(x: Tensor) -> Any:
        gpu.check_arrived(x)
        return on_cpu(x.to("cpu") if _on_device(x) else x)

    replaced: list[tuple[Any, str, Any]] = [
        (torch.cuda.amp.common, "amp_definitely_not_available", lambda: False),
        (torch.cuda, "is_bf16_supported", lambda *_, **__: True),
        (torch.cuda, "Event", Event),
        (torch.cuda, "synchronize", synchronize),
        (torch.accelerator, "is_available", lambda: True),  # what loaders ask before they pin
        (torch.accelerator, "current_accelerator", lambda *_, **__: torch.device("cuda")),
        (Tensor, "tolist", tolist),
        (FakeTensor, "tolist", tolist),
        (Tensor, "backward", _give_gradients),
        (nn.Module, "to", _module_to),
    ]
    with ExitStack() as stack:
        for target, attribute, new in replaced:
            stack.enter_context(patch.object(target, attribute, new))
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        stack.enter_context(gpu)
        yield gpu


# ---- parts -----------------------------------------------------------------------------------------------------------


def _on_device(x: Tensor) -> bool:
    return isinstance(x, FakeTensor) and x.device.type == "cuda"


def _where(x: Tensor) -> int:
    """The place in memory of what a CPU tensor, or a view of it, refers to; -1 on the device."""
    return -1 if isinstance(x, FakeTensor) else x.untyped_storage().data_ptr()


def _ones(x: Any) -> Any:
    return torch.ones(x.shape, dtype=x.dtype) if isinstance(x, Tensor) else x


def _place() -> str:
    frame = sys._getframe(1)
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(PACKAGE) and path != TRANSFERS:
            return f"{path.relative_to(PACKAGE)}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return ""


MODULE_TO = nn.Module.to


def _module_to(module: nn.Module, *args: Any, **kwargs: Any) -> nn.Module:
    """In place of `nn.Module.to`, which cannot replace a parameter that two modules share by a fake one."""
    target = torch.device(kwargs.get("device") or args[0])
    if target.type != "cuda":
        return MODULE_TO(module, *args, **kwargs)
    new: dict[int, Tensor] = {}
    for part in module.modules():
        for own in (part._parameters, part._buffers):
            for name, x in own.items():
                if x is not None and not _on_device(x):
                    moved = torch.empty(x.shape, dtype=x.dtype, device=target)
                    if isinstance(x, nn.Parameter):
                        moved = nn.Parameter(moved, x.requires_grad)
                    own[name] = new.setdefault(id(x), moved)
    return module


def _give_gradients(loss: Tensor, *_: object, **__: object) -> None:
    """In place of `Tensor.backward`."""
    waiting, seen = [loss.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        waiting += [following for following, _ in node.next_functions]
        if hasattr(node, "variable"):
            node.variable.grad = torch.empty_like(node.variable)
