"""`compile`: how many graphs the blocks of each task become, whatever its batches, and that losses stay what they are.

The compiler traces as for a GPU, and the backend that it hands its graphs to counts them and runs them as they are. A
graph more is some ten seconds of compilation on a GPU; above its limit the compiler gives up and says little.
"""

from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.fine_tuning import TASKS, configure
from torch import Tensor, nn

from blip.config import PretrainConfig, load_config
from blip.data.batches import Sample, collate
from blip.data.question_batches import VqaSample, collate_vqa
from blip.data.statements import NlvrSample, collate_nlvr
from blip.hardware.precision import autocast
from blip.tasks.pretrain import Pretraining
from blip.train.parallel import not_compiled, padded_lengths

pytestmark = pytest.mark.slow

CPU = torch.device("cpu")
PADDED = padded_lengths(48)


class Counter:
    """A backend of the compiler: the graphs that it is given, by the code that they were made of."""

    def __init__(self) -> None:
        self.graphs: list[torch.fx.GraphModule] = []

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable:
        self.graphs.append(graph)
        return graph.forward


@pytest.fixture
def counter(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter]:
    """Blocks are compiled by it, each as a whole; a limit that is reached is an error."""
    torch._dynamo.reset()
    counter, compiled = Counter(), nn.Module.compile
    own = {"backend": counter, "fullgraph": True}
    monkeypatch.setattr(nn.Module, "compile", lambda self, **options: compiled(self, **options, **own))
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True):
        yield counter
    torch._dynamo.reset()


def ids(longest: int, generator: torch.Generator) -> list[int]:
    count = int(torch.randint(12, longest + 1, (), generator=generator))
    return torch.randint(5, 100, (count,), generator=generator).tolist()


def image(*each: int) -> Tensor:
    return torch.randn(*each, 3, 32, 32)


def batch_of(task: str, number: int, count: int) -> Any:
    """A batch of another length than the one before; each fourth has texts of one length."""
    g = torch.Generator().manual_seed(number)
    longest = 17 + (7 * number) % 30
    texts = [ids(longest, g) for _ in range(count)]
    if number % 4 == 3:
        texts = [(3 * texts[0])[:24]] * count  # without padding, but for that of compiled code
    if task == "vqa":
        answers = [[ids(14, g) for _ in range(1 + (number + i) % 3)] for i in range(count)]
        return collate_vqa(
            [
                VqaSample(image(), text, a, [1.0] * len(a), i, [])
                for i, (text, a) in enumerate(zip(texts, answers, strict=True))
            ],
            pad_to=PADDED,
        )
    if task == "nlvr":
        return collate_nlvr([NlvrSample(image(2), text, i % 2, i, []) for i, text in enumerate(texts)], pad_to=PADDED)
    return collate([Sample(image(), text, 100 * number + i, i, i, []) for i, text in enumerate(texts)], pad_to=PADDED)


def steps(task: Any, name: str, counts: list[int], counter: Counter) -> list[int]:
    """Trains on batches of `counts` samples -> the number of graphs after each step. Each tenth step has the loss and
    the gradients of the same step without compilation."""
    made: list[int] = []
    for number, count in enumerate(counts):
        batch, results = batch_of(name, number, count), []
        for context in (nullcontext, not_compiled) if number % 10 == 0 else (nullcontext,):
            torch.manual_seed(number)
            if hasattr(task, "contrast"):
                task.contrast.pending.clear()
            with context():
                with autocast(CPU, task.config.precision):
                    loss = task.step(batch, number).loss
                task.model.zero_grad()
                loss.backward()
            gradients = [p.grad.flatten() for p in task.model.parameters() if p.grad is not None]
            results.append((loss.detach(), torch.cat(gradients)))
        torch.testing.assert_close(results[0], results[-1], rtol=1e-4, atol=1e-5)
        made.append(len(counter.graphs))
    return made


def sizes(depth: int) -> list[str]:
    return [
        f"vit_depth={depth}",
        f"text_layers={depth}",
        "vit_width=16",
        "text_width=16",
        "text_hidden=16",
        "dropout=0",
    ]


@pytest.mark.parametrize(("depth", "count", "recomputed"), [(12, 30, "none"), (2, 4, "torch")])
def test_pretraining_and_its_twin(
    depth: int, count: int, recomputed: str, tiny_config: Path, tmp_path: Path, counter: Counter
) -> None:
    options = ["val_file=[]", "compile=true", f"activation_checkpointing={recomputed}", *sizes(depth)]
    task = Pretraining(load_config(tiny_config, PretrainConfig, options), tmp_path, None, device=CPU)
    task.contrast.candidates(batch_of("pretrain", 0, 11))
    assert counter.graphs, "the twin is not compiled"
    made = steps(task, "pretrain", [11] * count, counter)
    assert 0 < made[-1] <= 12 and set(made) == {made[0]}, "batches of other lengths are compiled again"
    if recomputed == "none":
        smaller = steps(task, "pretrain", [11, 6, 7], counter)  # the last batch of an epoch
        assert smaller[0] == made[0] and smaller[1] == smaller[2] <= 24


@pytest.mark.parametrize("name", [name for name in TASKS if name != "dialogue"])  # whose batches have another form
def test_fine_tuning(name: str, phantoms: Path, tiny_config: Path, tmp_path: Path, counter: Counter) -> None:
    config = configure(name, phantoms, tmp_path, "compile=true", "max_positions=48", *sizes(7))
    task = TASKS[name][2](config, None, tmp_path, resume=None, device=CPU)
    made = steps(task, name, [7] * 3, counter)
    assert 0 < made[-1] <= 12 and made[-1] == made[1]
    smaller = steps(task, name, [7, 6, 5], counter)
    assert smaller[-1] <= 24


@pytest.mark.usefixtures("no_java_nor_peak")
@pytest.mark.parametrize("name", list(TASKS))
def test_evaluations_compile_nothing(
    name: str, phantoms: Path, tiny_config: Path, tmp_path: Path, counter: Counter
) -> None:
    config = configure(name, phantoms, tmp_path, "compile=true", "num_workers=0")
    task = TASKS[name][2](config, None, tmp_path, resume=None, device=CPU)
    assert task.scores("val")
    assert not counter.graphs
