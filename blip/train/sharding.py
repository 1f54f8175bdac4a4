"""Fully sharded data parallelism: each process keeps a part of every parameter, and gathers whole ones to use them.

`Sharded` stands where a model wrapped for DDP would. It applies torch's `fully_shard` from outside: the model knows
nothing of it, and names and values are those of DDP. The optimizer and the momentum twin work on the parts alone.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from blip import distributed
from blip.config import RunConfig
from blip.train.parallel import OptionError, checkpoint_activations, data_parallel, recompute_and_compile


def in_parallel(
    model: nn.Module, config: RunConfig, device: torch.device, *, twin: nn.Module | None = None
) -> nn.Module:
    """The model with recomputation and compilation applied, wrapped for several processes where there are any.

    Raises:
        OptionError: options that exclude each other.
    """
    if is_sharded(config):
        return Sharded(model, device, recompute=config.activation_checkpointing != "none")
    recompute_and_compile(model, config, device, twin=twin)
    return data_parallel(model, device, config.gradient_compression)


def is_sharded(config: RunConfig) -> bool:
    """Whether parameters are divided among the processes: in one process there is nothing to divide.

    Raises:
        OptionError: `parallel: fsdp` with an option that it excludes.
    """
    if config.parallel != "fsdp":
        return False
    reasons = {
        "compile": (config.compile, "blocks gather their parameters between the compiled parts: set compile: false"),
        "lora": (
            getattr(config, "lora", None),
            "with adapters, gradients and the optimizer are small in each process: use parallel: ddp",
        ),
        "activation_checkpointing: fairscale": (
            config.activation_checkpointing == "fairscale",
            "use activation_checkpointing: torch",
        ),
        "gradient_compression": (config.gradient_compression != "none", "set gradient_compression: none"),
    }
    for option, (given, advice) in reasons.items():
        if given:
            raise OptionError(f"parallel: fsdp cannot be combined with {option}; {advice}")
    return distributed.world_size() > 1


def about_one(config: RunConfig) -> str:
    """A line where one process would divide its weights, else ""."""
    alone = config.parallel == "fsdp" and distributed.world_size() == 1
    return "parallel: fsdp divides nothing in one process" if alone else ""


def units(model: nn.Module) -> list[nn.Module]:
    """The modules whose parameters are gathered together, each just before its use.

    Encoder and decoder share cross-attention and feed-forward networks, so that a whole layer can be none: modules are
    the parts of layers. Cross-attention to two images is used by halves and stays with the rest of the model.
    """
    found: list[nn.Module] = []
    if hasattr(model, "image_encoder"):
        found += model.get_submodule("image_encoder.blocks").children()
    for part in ("text_encoder", "text_decoder"):
        for layer in model.get_submodule(f"{part}.layers").children() if hasattr(model, part) else ():
            found += [one for one in layer.children() if not hasattr(one, "first")]
    return list(dict.fromkeys(found))


@dataclass
class _Arguments:
    """Of a forward pass. torch would move tensors to the GPU, and lengths of texts belong on the CPU."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class _Root(nn.Module):
    """The model, called with one object."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, given: _Arguments) -> Any:
        return self.model(*given.args, **given.kwargs)


class Sharded(nn.Module):
    """A model whose parameters, gradients and optimizer are divided among the processes, by rows.

    Numbers without dimensions, such as the temperature, cannot be divided: every process keeps them, and `clip`
    averages their gradients.

    Args:
        model: equal on all processes; it is changed in place, and its parameters are on `device` afterwards.
        recompute: the activations within each unit, in the backward pass.

    Raises:
        OptionError: on a CPU torch can do it since 2.8.
    """

    def __init__(self, model: nn.Module, device: torch.device, *, recompute: bool = False):
        super().__init__()
        if device.type == "cpu" and not hasattr(FSDPModule, "set_force_sum_reduction_for_comms"):
            raise OptionError(f"parallel: fsdp without GPUs needs torch 2.8, this is {torch.__version__}: use ddp")
        self.hollow = [_hollow(model, device)]  # in a list: it is no part of this module
        parts, mesh = units(model), init_device_mesh(device.type, (distributed.world_size(),))
        kept = {p for p in model.parameters() if p.ndim == 0}
        for p in kept:
            p.data = p.data.to(device)
        checkpoint_activations(parts, "torch" if recompute else "none", device, precision="")
        for part in parts:
            fully_shard(part, mesh=mesh, reshard_after_forward=True)
            if hasattr(part, "image_keys"):
                register_fsdp_forward_method(part, "image_keys")
        self.root: Any = fully_shard(_Root(model), mesh=mesh, ignored_params=kept)
        units_of_gloo: list[Any] = [self.root, *parts] if device.type == "cpu" else []
        for unit in units_of_gloo:
            unit.set_force_sum_reduction_for_comms(True)  # gloo has no averages
        self._own = {p: _own_part(p) for p in model.parameters()}
        self._divided: dict[nn.Parameter, Any] = {own: p for p, own in self._own.items() if own is not p}

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "FSDP2-wrapped module .* returned a view")  # of keys, which stay
            return self.root(_Arguments(args, kwargs))

    # ---- an update ---------------------------------------------------------------------------------------------------

    def own(self, parameter: nn.Parameter) -> nn.Parameter:
        """What this process has of a parameter of the model, as an optimizer takes it: it shares its memory."""
        return self._own[parameter]

    def clip(self, limit: float | None) -> Tensor:
        """The norm of all gradients, (), on every process. They are handed to the parts that `own` returns, and scaled
        down where the norm is above `limit`."""
        divided, kept = [], []
        for p, own in self._own.items():
            if p.grad is None:
                continue
            if own is p:
                kept.append(distributed.all_reduce(p.grad, "mean"))
                p.grad = kept[-1]
            else:
                own.grad, p.grad = p.grad.to_local(), None  # type: ignore[attr-defined]
                divided.append(own.grad)
        squares = [g.float().square().sum() for g in divided] or [torch.zeros((), device=_device_of(self))]
        total = distributed.all_reduce(torch.stack(squares).sum(), "sum")
        norm = (total + sum(g.float().square() for g in kept)).sqrt()
        if limit is not None:
            torch._foreach_mul_([*divided, *kept], (limit / (norm + 1e-6)).clamp(max=1.0))
        return norm

    def reshard(self) -> None:
        """Gives up whole parameters. Parts change only after this."""
        for module in self.root.modules():
            if hasattr(module, "reshard"):
                module.reshard()

    # ---- whole tensors -----------------------------------------------------------------------------------------------

    def divided_state(self, state: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """The `state_dict` of an optimizer over parts, its moments as tensors that are divided like the parameters."""
        return self._each_moment(state, optimizer, lambda own, like: _as_part(own, like) if own.ndim else own)

    def part_of_state(self, state: dict[str, Any], optimizer: torch.optim.Optimizer) -> dict[str, Any]:
        """What this process keeps of the state of an optimizer over whole parameters. Tensors of another
        shape than the parameter's stay as they are."""
        return self._each_moment(state, optimizer, lambda x, like: _part(x, like) if x.shape == like.shape else x)

    def _each_moment(
        self, state: dict[str, Any], optimizer: torch.optim.Optimizer, change: Callable[[Tensor, DTensor], Tensor]
    ) -> dict[str, Any]:
        """The state of an optimizer over parts with other tensors for those parameters that are divided: `change` gets
        a tensor of the state and the parameter."""
        entries = {}
        for number, own in enumerate(p for group in optimizer.param_groups for p in group["params"]):
            if (moments := state["state"].get(number)) is not None:
                like = self._divided.get(own)
                entries[number] = {name: x if like is None else change(x, like) for name, x in moments.items()}
        return {**state, "state": entries}

    @contextmanager
    def gathered(self, model: nn.Module, changed: bool = False) -> Iterator[nn.Module]:
        """A copy of the model with whole parameters, which lie in the memory of every process until this block ends.

        Every process has to call this. With `changed`, what the block writes into the copy goes back into the parts.
        """
        copy = self.hollow[0]
        pairs = list(zip(copy.parameters(), model.parameters(), strict=True))
        copy.train(model.training)
        self.reshard()
        for filled, p in pairs:
            filled.data = p.full_tensor().detach() if isinstance(p, DTensor) else p.detach().clone()
        try:
            yield copy
            for filled, p in pairs if changed else ():
                with torch.no_grad():
                    local = p.to_local() if isinstance(p, DTensor) else p
                    local.copy_(_part(filled.data, p) if isinstance(p, DTensor) else filled.data)
        finally:
            for filled, _ in pairs:
                filled.data = filled.data.new_empty(0)


def clip(model: nn.Module, limit: float | None) -> Tensor:
    """The norm of all gradients of a model, sharded or not, which are scaled down where it is above `limit`."""
    if isinstance(model, Sharded):
        return model.clip(limit)
    if limit is None:
        return nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    return nn.utils.clip_grad_norm_(model.parameters(), limit)


@contextmanager
def gathered(parallel: nn.Module, model: nn.Module, changed: bool = False) -> Iterator[nn.Module]:
    """The model itself, or a whole copy of one that is sharded; see `Sharded.gathered`."""
    if isinstance(parallel, Sharded):
        with parallel.gathered(model, changed) as copy:
            yield copy
    else:
        yield model


@contextmanager
def with_whole_model(task: Any) -> Iterator[None]:
    """Within this block `task.model` computes without `task.parallel`, as an evaluation does. Every process has to call
    this, and may then do what others do not."""
    kept = task.model
    with gathered(task.parallel, kept) as task.model:
        try:
            yield
        finally:
            task.model = kept


def whole(state: Any) -> Any:
    """A dictionary, of dictionaries or not, with the tensors that are divided among the processes as whole ones on the
    CPU, of which every process but the main one gets none of the numbers; everything else stays as it is. Every process
    has to call this."""
    if isinstance(state, dict):
        return {key: whole(value) for key, value in state.items()}
    if not isinstance(state, DTensor):
        return state
    full = state.full_tensor().detach()  # one after another: the device holds one of them
    return full.cpu() if distributed.is_main() else full.new_empty(0, device="cpu")


def is_divided(tensor: Tensor) -> bool:
    return isinstance(tensor, DTensor)


def local(tensor: Tensor) -> Tensor:
    """What this process has of a tensor, in the same memory."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


# ---- parts -----------------------------------------------------------------------------------------------------------


def _hollow(model: nn.Module, device: torch.device) -> nn.Module:
    """A copy of a model with parameters that hold nothing; shared ones are shared."""
    empty = {id(p): nn.Parameter(torch.empty(0, dtype=p.dtype, device=device), False) for p in model.parameters()}
    return deepcopy(model, empty)


def _own_part(p: nn.Parameter) -> nn.Parameter:
    return nn.Parameter(p.to_local().detach(), p.requires_grad) if isinstance(p, DTensor) else p


def _part(full: Tensor, like: DTensor) -> Tensor:
    """The rows of a whole tensor that this process keeps, as `fully_shard` divides them."""
    chunks = full.chunk(like.device_mesh.size(), dim=0)
    rank = like.device_mesh.get_local_rank()
    return (chunks[rank] if rank < len(chunks) else full[:0]).clone()


def _as_part(own: Tensor, like: DTensor) -> DTensor:
    return DTensor.from_local(own, like.device_mesh, like.placements, shape=like.shape, stride=like.stride())


def _device_of(module: nn.Module) -> torch.device:
    return next(module.parameters()).device
