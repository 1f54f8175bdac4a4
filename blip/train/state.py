"""The content of `training.pt`, checked before torch or a task uses it: names, types, shapes and finite numbers."""

import re
from pathlib import Path
from typing import Annotated, Any, NotRequired

import torch
from pydantic import ConfigDict, Field
from torch import Tensor
from typing_extensions import TypedDict  # pydantic needs this one before Python 3.12

from blip.checkpoints.format import CheckpointError, check_numbers, load_pickled
from blip.files import ReadError, checked_as

TRAINING = "training.pt"
FOLDER = re.compile(r"step-(\d{8})")  # of a checkpoint, with its number of steps
MAX_STEP = 10**8 - 1  # the largest that the name of a folder holds
MAX_COUNT = (1 << 63) - 1  # torch divides by no larger number
MOMENTS = ("exp_avg", "exp_avg_sq")  # of AdamW, for each parameter, beside its "step"
_LENIENT = ConfigDict(strict=True, extra="allow", arbitrary_types_allowed=True)


class _Optimizer(TypedDict):
    __pydantic_config__ = ConfigDict(strict=True, extra="ignore", arbitrary_types_allowed=True)  # type: ignore[misc]

    state: dict[int, dict[str, Tensor]]
    param_groups: list[dict[str, Any]]


class _Means(TypedDict):
    """Of `train.meter.Meter`."""

    __pydantic_config__ = _LENIENT  # type: ignore[misc]

    sums: dict[str, Tensor]
    counts: dict[str, Annotated[int, Field(gt=0, le=MAX_COUNT)]]


class _Loop(TypedDict):
    __pydantic_config__ = _LENIENT  # type: ignore[misc]

    meters: NotRequired[list[_Means]]
    epoch_meters: NotRequired[list[_Means]]


class _Progress(TypedDict):
    __pydantic_config__ = _LENIENT  # type: ignore[misc]

    itm_mean: NotRequired[Tensor]
    best: NotRequired[Tensor]
    seen: NotRequired[dict[str, Annotated[int, Field(ge=0, le=MAX_COUNT)]]]


class _Training(TypedDict):
    """What `Checkpointer.save` writes; tasks add entries of their own."""

    __pydantic_config__ = _LENIENT  # type: ignore[misc]

    step: Annotated[int, Field(ge=0, le=MAX_STEP)]
    random: list[dict[str, Tensor]]
    optimizer: NotRequired[_Optimizer]
    loop: NotRequired[_Loop]
    progress: NotRequired[_Progress]
    twin: NotRequired[dict[str, Tensor]]
    queue: NotRequired[dict[str, Tensor]]
    adapter: NotRequired[dict[str, Tensor]]


class State(dict[str, Any]):
    """A dictionary of a file; an entry that it lacks is a CheckpointError that names the file."""

    def __init__(self, content: dict[str, Any], path: Path):
        super().__init__(content)
        self.path = path

    def __missing__(self, key: str) -> Any:
        raise CheckpointError(f"{self.path} is incomplete: it has no {key!r}; continue from another checkpoint")


def read_training(path: Path) -> State:
    """The training state of a file that `Checkpointer.save` wrote. No code in it is run.

    Raises:
        CheckpointError: it is damaged, holds something else, or is of another step than its folder, by whose name
            checkpoints are ordered. A folder of any other name may be of every step.
    """
    content = load_pickled(path, or_else="")
    try:
        checked_as(content, _Training, path)
    except ReadError as error:
        raise CheckpointError(f"{path} is damaged: {error.problem}") from error
    named = FOLDER.fullmatch(path.parent.resolve().name)
    if named and content["step"] != int(named[1]):
        raise CheckpointError(
            f"{path} is damaged, or of another checkpoint: it is of step {content['step']}, its folder of step "
            f"{int(named[1])}; continue from another checkpoint"
        )
    for states in content["random"]:
        _check_random(states, path)
    for part in ("twin", "adapter"):
        check_numbers(content.get(part, {}), f"{path}: {part}")
    _check_queue(content.get("queue"), path)
    progress, loop = content.get("progress", {}), content.get("loop", {})
    meters = [*loop.get("meters", []), *loop.get("epoch_meters", [])]
    numbers = {name: progress[name] for name in ("itm_mean", "best") if name in progress}
    for name, tensor in [*numbers.items(), *(one for meter in meters for one in meter["sums"].items())]:
        if tensor.numel() != 1 or not tensor.is_floating_point():
            raise CheckpointError(f"{path} is damaged: {name} is no single number")
    if any(meter["sums"].keys() != meter["counts"].keys() for meter in meters):
        raise CheckpointError(f"{path} is damaged: the means of its log have no counts")
    nested = {key: State(content[key], path) for key in ("optimizer", "loop", "progress") if key in content}
    return State({**content, **nested}, path)


def _check_random(states: dict[str, Tensor], path: Path) -> None:
    """CheckpointError unless torch can take up these states of random numbers."""
    try:
        torch.Generator().set_state(states["cpu"])
    except (KeyError, TypeError, RuntimeError) as error:
        raise CheckpointError(f"{path} is damaged: its state of random numbers is none") from error
    cuda = states.get("cuda")
    if cuda is not None and (cuda.dtype != torch.uint8 or cuda.dim() != 1 or not cuda.numel()):
        raise CheckpointError(f"{path} is damaged: its state of the GPU's random numbers is none")


def _check_queue(queue: dict[str, Tensor] | None, path: Path) -> None:
    if queue is None:
        return
    check_numbers({f"queue.{name}": tensor for name, tensor in queue.items()}, path)
    images, pointer = queue.get("images"), queue.get("pointer")
    size = images.shape[-1] if images is not None and images.dim() == 2 else 0
    if pointer is None or pointer.numel() != 1 or not 0 <= int(pointer) < max(size, 1):
        raise CheckpointError(f"{path} is damaged: the pointer of its queue is no entry")


def check_optimizer(state: dict[str, Any], optimizer: torch.optim.Optimizer, path: str | Path) -> dict[str, Any]:
    """The state of a file's optimizer for one over the same parameters: its moments, and the options of `optimizer`.

    torch itself compares nothing: moments of another shape end the process at the next step.

    Args:
        state: the entry "optimizer" of `read_training`.
        path: names the file in errors.

    Raises:
        CheckpointError: the state is of other parameters, or damaged.
    """
    own = optimizer.state_dict()["param_groups"]
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    numbers = [number for group in own for number in group["params"]]
    stored = [group.get("params") for group in state["param_groups"]]
    if stored != [group["params"] for group in own]:
        raise CheckpointError(f"{path} is damaged, or of another model: its groups of parameters are not the model's")
    moments = state["state"]
    if not moments or not moments.keys() <= set(numbers):  # parameters that no loss depends on have none
        raise CheckpointError(f"{path} is damaged: the optimizer's moments are missing, or are of other parameters")
    for number, parameter in zip(numbers, parameters, strict=True):
        for name in ("step", *MOMENTS) if number in moments else ():
            tensor = moments[number].get(name)
            shape = parameter.shape if name in MOMENTS else torch.Size()
            if tensor is None or tensor.shape != shape:
                found = "missing" if tensor is None else f"of shape {tuple(tensor.shape)}"
                raise CheckpointError(
                    f"{path} is damaged: the optimizer's {name} of parameter {number} is {found}, not {tuple(shape)}"
                )
            check_numbers({f"the optimizer's {name} of parameter {number}": tensor}, path)
            if name != "exp_avg" and bool((tensor < 0).any()):
                raise CheckpointError(f"{path} is damaged: the optimizer's {name} of parameter {number} is negative")
    kept = {number: {name: entry[name] for name in ("step", *MOMENTS)} for number, entry in moments.items()}
    return {"state": kept, "param_groups": own}
