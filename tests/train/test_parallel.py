"""What is applied to a model from outside keeps its gradients and names, or is refused with a reason."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from blip.config import PretrainConfig, RunConfig, load_config
from blip.hardware.precision import autocast
from blip.tasks.pretrain import Pretraining
from blip.train import parallel
from blip.train.parallel import OptionError, blocks, checkpoint_activations, recompute_and_compile

CPU = torch.device("cpu")


def one_step(config_path: Path, output: Path, *options: str) -> tuple[list[float], dict[str, Tensor], list[str]]:
    """Losses, gradients by name and state-dict names of the first step of a run, dropout on."""
    config = load_config(config_path, PretrainConfig, ["val_file=[]", "dropout=0.1", *options])
    output.mkdir(exist_ok=True)
    task = Pretraining(config, output, None, device=CPU)
    with autocast(CPU, config.precision):
        out = task.step(next(task.batches(0)), 0)
    out.loss.backward()
    gradients = {name: parameter.grad for name, parameter in task.model.named_parameters()}
    return [float(out.logs[name].detach()) for name in ("itc", "itm", "lm")], gradients, list(task.model.state_dict())


def assert_equal_steps(one: tuple, other: tuple, rtol: float, atol: float) -> None:
    assert one[0] == pytest.approx(other[0], rel=rtol)
    assert one[1].keys() == other[1].keys()
    for name, gradient in one[1].items():
        torch.testing.assert_close(gradient, other[1][name], rtol=rtol, atol=atol, msg=lambda m, n=name: f"{n}: {m}")
    assert one[2] == other[2]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_recomputed_activations_give_equal_gradients(precision: str, tiny_config: Path, tmp_path: Path) -> None:
    kept = one_step(tiny_config, tmp_path, f"precision={precision}")
    recomputed = one_step(tiny_config, tmp_path, f"precision={precision}", "activation_checkpointing=torch")
    assert_equal_steps(kept, recomputed, rtol=1e-6, atol=1e-7)


def test_every_block_is_recomputed(tiny_config: Path, tmp_path: Path) -> None:
    config = load_config(tiny_config, PretrainConfig, ["val_file=[]", "activation_checkpointing=torch"])
    task = Pretraining(config, tmp_path, None, device=CPU)
    norms = {name: module for name, module in task.model.named_modules() if isinstance(module, nn.LayerNorm)}
    calls = dict.fromkeys(norms, 0)

    def count(name: str) -> Callable:
        def hook(*_: object) -> None:
            calls[name] += 1

        return hook

    for name, norm in norms.items():
        norm.register_forward_hook(count(name))
    out = task.step(next(task.batches(0)), 0)
    forward = dict(calls)
    out.loss.backward()
    # the last operation of a text layer is not: nothing behind it is kept
    inside = [name for name in calls if ("blocks." in name or "layers." in name) and "feed_forward" not in name]
    outside = [name for name in calls if "blocks." not in name and "layers." not in name]
    assert len(inside) > 8
    assert {name: calls[name] for name in inside} == {name: 2 * forward[name] for name in inside}
    assert all(calls[name] == forward[name] for name in outside)


def refused(blocks: list[nn.Module], precision: str = "fp32") -> str:
    """The message with which fairscale is refused."""
    with pytest.raises(OptionError) as caught:
        checkpoint_activations(blocks, "fairscale", CPU, precision=precision)
    return str(caught.value)


def test_fairscale_is_refused_where_it_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = [nn.Linear(2, 2)]
    assert "autocast" in refused(blocks, "bf16")
    config = RunConfig(compile=True, activation_checkpointing="fairscale", precision="fp32")
    with pytest.raises(OptionError, match=r"compiled graphs; use activation_checkpointing: torch"):
        recompute_and_compile(nn.Module(), config, CPU)
    monkeypatch.setitem(sys.modules, "fairscale.nn.checkpoint", None)
    assert "fairscale is not installed: pip install -e '.[fairscale]'" in refused(blocks)
    monkeypatch.setattr(parallel, "world_size", lambda: 2)
    assert "several processes" in refused(blocks)
    for message in (refused(blocks), refused(blocks, "bf16")):
        assert "use activation_checkpointing: torch" in message


def test_fairscale_where_it_is_right(tiny_config: Path, tmp_path: Path) -> None:
    pytest.importorskip("fairscale")
    kept = one_step(tiny_config, tmp_path)
    assert_equal_steps(kept, one_step(tiny_config, tmp_path, "activation_checkpointing=fairscale"), 1e-6, 1e-7)


@pytest.mark.slow
def test_blocks_compile_whole_and_give_equal_gradients(
    tiny_config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Traced as for compilation, with recomputed activations, but without making machine code, which takes longer."""
    compiled = nn.Module.compile
    own = {"backend": "aot_eager", "fullgraph": True}
    monkeypatch.setattr(nn.Module, "compile", lambda self, **options: compiled(self, **options, **own))
    options = "dropout=0", "vit_depth=1", "text_layers=1"
    both = one_step(tiny_config, tmp_path, *options, "compile=true", "activation_checkpointing=torch")
    assert_equal_steps(one_step(tiny_config, tmp_path, *options), both, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_compiled_equals_eager(tiny_config: Path, tmp_path: Path) -> None:
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        pytest.skip("no C++ compiler")
    options = "dropout=0", "text_layers=1"
    eager = one_step(tiny_config, tmp_path, *options)
    assert_equal_steps(eager, one_step(tiny_config, tmp_path, *options, "compile=true"), rtol=1e-4, atol=1e-5)


def test_blocks_are_all_that_repeats(tiny_config: Path, tmp_path: Path) -> None:
    config = load_config(tiny_config, PretrainConfig, ["val_file=[]"])
    model = Pretraining(config, tmp_path, None, device=CPU).model
    assert len(blocks(model)) == config.vit_depth + 2 * config.text_layers
