"""`--dry_run` of the fine-tuning tasks: everything is built, one step runs on random data, nothing is saved. Or without
running anything, for GPUs that are not here: `plan_for`.

Letters: B samples, T tokens, S pixels a side.
"""

import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from blip import distributed
from blip.checkpoints.places import is_remote
from blip.config import ConfigError
from blip.data.batches import Batch, collate
from blip.data.dialogue_samples import DialogueBatch, collate_dialogues
from blip.data.question_batches import VqaBatch, collate_vqa
from blip.data.statements import NlvrBatch, collate_nlvr
from blip.errors import BlipError, printable
from blip.hardware.as_on_gpu import META
from blip.hardware.precision import autocast, products
from blip.tasks import start
from blip.tasks.blip2_kind import Kinds, is_blip2
from blip.tasks.config import FineTuneConfig
from blip.tasks.counted import Trained, full_lengths
from blip.tasks.estimate_report import report
from blip.tasks.finetune import FineTuning
from blip.tasks.item_pictures import of_several, pictures_of_run, shape_of_images
from blip.tasks.language_tokens import LanguageTokenizer
from blip.tokenizer import BERT_SPECIAL
from blip.train.optim import build_optimizer
from blip.train.parallel import memory_mb
from blip.train.schedule import Epochs

FILES = {"train": "train_file", "val": "val_file", "test": "test_file"}


def rehearsals(kinds: type[FineTuning] | Kinds) -> dict[str, Callable[..., None]]:
    """What `launch` offers of a task: `dry_run` here, and `plan` for GPUs that are not here."""
    return {"dry_run": partial(rehearse, kinds), "plan": partial(plan_for, kinds)}


def rehearse(kinds: type[FineTuning] | Kinds, config: FineTuneConfig, device: torch.device) -> None:
    """Prints parameters, memory, FLOPs and time of a training step on this device, and the number of records of each
    part of the data.

    Raises:
        BlipError: the configuration cannot be used, or `init_from` cannot be read.
    """
    console = Console(quiet=not distributed.is_main())
    make = kinds.of(config, None)
    source = make.starts.read_source(config)
    config = make.starts.with_sizes_of(config, source)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        task = make(without_data(config, folder), source, folder, resume=None, device=device, training=False)
    task.epochs, task.pictures = Epochs(1, config.accumulation, 1), pictures_of_run(config)
    with products(device, config.precision):
        loss, seconds, flops = two_steps(task)
    console.print(parameters_of(task))
    for line in (
        f"a step of {config.batch_size} samples{of_several(task.pictures)}, {config.max_text_tokens} tokens each, "
        f"images of {config.image_size} pixels, on {device} in {config.precision}",
        f"loss: {loss:.3f}",
        f"compute: {flops / 1e9:.4g} GFLOP, {flops / config.batch_size / 1e9:.4g} a sample",
        f"time: {seconds:.2f} s, {config.batch_size / seconds:.1f} samples a second",
        f"memory: {memory_mb(device):.0f} MB at most",
        *_data(task, config),
    ):
        console.print(printable(line), soft_wrap=True, markup=False, highlight=False)


def plan_for(kinds: type[FineTuning] | Kinds, config: FineTuneConfig, gpu: str, world: int) -> None:
    """Prints what a run costs on `world` cards of a name; see `blip.tasks.estimate_report`.

    The sizes are those of `init_from`, or of the configuration where that is on another machine: nothing is downloaded.
    """
    there = config.model_copy(update={"init_from": ""}) if is_remote(config.init_from) else config
    if is_blip2(there):
        raise ConfigError("--gpu does not know BLIP-2: docs/blip2.md has its memory, and --dry_run alone measures it")
    source = start.read_source(there)
    words = source.text["vocab_size"] if source else config.vocab_size
    sized = start.with_sizes_of(config, source)
    sized = sized.model_copy(update={"init_from": "", "vision_init": "", "text_init": "", "vocab_size": words})
    make = partial(trained_on_meta, kinds.of(sized, None))
    report(make, sized.model_copy(update={"tokenizer": "train"}), gpu, world)


def trained_on_meta(make: type[FineTuning], config: FineTuneConfig) -> Trained:
    """The parts of a step of a task on the device `meta`, without content."""
    with tempfile.TemporaryDirectory() as name:
        # negatives of other processes are as many as those of this one
        plain = config.model_copy(update={"compile": False, "negative_all_rank": False})
        task = make(without_data(plain, Path(name)), None, Path(name), resume=None, device=META, training=False)
    task.epochs, task.pictures = Epochs(1, config.accumulation, 1), pictures_of_run(config)
    batch = RANDOM[task.collate_fn](task)
    contrast = getattr(task, "contrast", None)
    beside = [contrast.twin, contrast.queue] if contrast else []
    tensors = [x for x in vars(batch).values() if isinstance(x, Tensor)]
    return Trained(task.model, beside, tensors, lambda: task.step(batch, 0).loss, lambda: task.after_update(1))


def without_data(config: Any, folder: Path) -> Any:
    """The configuration without files; a tokenizer that would be trained has as many tokens, without meaning."""
    values: dict[str, Any] = {**{key: [] for key in FILES.values()}, "parallel": "ddp"}
    values |= {"inference": "generate", "split_shares": None} if hasattr(config, "inference") else {}
    if config.tokenizer == "train" or not (config.tokenizer or config.init_from):
        words = [*BERT_SPECIAL, *(f"w{number}" for number in range(config.vocab_size - len(BERT_SPECIAL) - 2))]
        (folder / "vocab.txt").write_text("\n".join(words) + "\n", encoding="utf-8")
        values["tokenizer"] = str(folder / "vocab.txt")
    return config.model_copy(update=values)


def two_steps(task: Any) -> tuple[float, float, float]:
    """(loss, seconds, FLOPs of forward and backward) of a step; the first one, in which FLOPs are counted, warms up."""
    config = task.config
    optimizer = build_optimizer(
        task.model,
        config.lr,
        config.weight_decay,
        decay_norms_and_biases=config.decay_norms_and_biases,
        layer_decay=config.layer_decay,
        betas=config.adam_betas,
    )
    batch = RANDOM[task.collate_fn](task)
    counter = FlopCounterMode(display=False, custom_mapping=_attention_on_cpu())

    def step() -> float:
        with autocast(task.device, config.precision):
            out = task.step(batch, 0)
        out.loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        task.after_update(1)
        return float(out.loss.detach())  # waits for the device

    with counter:
        step()
    begin = time.perf_counter()
    loss = step()
    return loss, time.perf_counter() - begin, float(counter.get_total_flops())


def _attention_on_cpu() -> dict[Any, Any]:
    """FLOPs of attention on the CPU, by the shapes of its arguments, which the counter does not know by itself."""
    known = {
        "": lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
        "_backward": lambda gradient, q, k, v, *_, **__: sdpa_backward_flop_count(gradient, q, k, v),
    }
    names = {f"_scaled_dot_product_flash_attention_for_cpu{end}": flops for end, flops in known.items()}
    return {getattr(torch.ops.aten, name): flops for name, flops in names.items() if hasattr(torch.ops.aten, name)}


# ---- random batches --------------------------------------------------------------------------------------------------


def _texts(task: FineTuning, tokens: int) -> tuple[Tensor, Tensor]:
    """Ids (B, T) and lengths (B,) of texts of so many tokens."""
    count = task.config.batch_size
    ids = torch.randint(5, max(6, task.tokenizer.size - 2), (count, tokens), device=task.device)
    if isinstance(task.tokenizer, LanguageTokenizer):
        ids[:, 0] = 0  # every token counts, see `LanguageEncoder`
    return ids, full_lengths(count, tokens)


def _images(task: FineTuning, *each: int) -> Tensor:
    """(B, *each, 3, S, S); without `each` of as many pictures as the items of the task have."""
    (pictures,) = each or (task.pictures,)
    return torch.randn(shape_of_images(task.config, pictures), device=task.device)


def _of_pairs(task: FineTuning) -> Batch:
    ids, lengths = _texts(task, task.config.max_text_tokens)
    numbers = torch.arange(len(ids), device=task.device)
    return Batch(_images(task), ids, lengths, numbers, numbers, list(range(len(ids))), [])


def _of_questions(task: FineTuning) -> VqaBatch:
    ids, lengths = _texts(task, task.config.max_text_tokens)
    most = task.most_tokens() if hasattr(task, "most_tokens") else task.config.max_answer_tokens
    answer_ids, answer_lengths = _texts(task, most)
    numbers = torch.arange(len(ids), device=task.device)
    weights = torch.ones(len(ids), device=task.device)
    return VqaBatch(
        _images(task), ids, lengths, answer_ids, answer_lengths, numbers, weights, list(range(len(ids))), []
    )


def _of_statements(task: FineTuning) -> NlvrBatch:
    ids, lengths = _texts(task, task.config.max_text_tokens)
    return NlvrBatch(
        _images(task, 2), ids, lengths, torch.arange(len(ids), device=task.device) % 2, list(range(len(ids))), []
    )


def _of_dialogues(task: FineTuning) -> DialogueBatch:
    captions, caption_lengths = _texts(task, task.config.max_caption_tokens)
    texts, lengths = _texts(task, task.config.max_text_tokens)
    ids, lengths = texts.repeat_interleave(2, dim=0), lengths.repeat_interleave(2)
    return DialogueBatch(_images(task), captions, caption_lengths, ids, lengths, list(range(len(captions))), [])


# by what puts a task's samples side by side
RANDOM: dict[Callable[..., Any], Callable[[FineTuning], Any]] = {
    collate: _of_pairs,
    collate_vqa: _of_questions,
    collate_nlvr: _of_statements,
    collate_dialogues: _of_dialogues,
}

# ---- what is printed -------------------------------------------------------------------------------------------------


def parameters_of(task: Any) -> Table:
    """Parameters of each part in millions, and the memory of its weights; what several parts share counts in the
    first."""
    table = Table("part", "parameters (M)", "trained (M)", "weights (MB)", title=f"the model of {task.task}")
    seen: set[int] = set()
    totals = [0, 0, 0]
    parts: list[tuple[str, Any]] = [*task.model.named_children(), *task.model.named_parameters(recurse=False)]
    for name, part in parts:
        each: list[nn.Parameter] = list(part.parameters()) if isinstance(part, nn.Module) else [part]
        new = [one for one in each if id(one) not in seen]
        seen |= {id(one) for one in new}
        counts = [sum(p.numel() for p in new), sum(p.numel() for p in new if p.requires_grad)]
        counts.append(sum(p.numel() * p.element_size() for p in new))
        totals = [a + b for a, b in zip(totals, counts, strict=True)]
        table.add_row(name, *(f"{count / 1e6:.2f}" for count in counts[:2]), f"{counts[2] / 1e6:.0f}")
    table.add_row("all", *(f"{count / 1e6:.2f}" for count in totals[:2]), f"{totals[2] / 1e6:.0f}")
    return table


def _data(task: Any, config: FineTuneConfig) -> list[str]:
    """A line for each part of the data: its number of records, or what is wrong with it."""
    if not config.train_file:
        return ["data: train_file is empty; --set 'train_file=[FILE]'"]
    lines = []
    for part, key in FILES.items():
        if not getattr(config, key):
            continue
        others: dict[str, Any] = {name: [] for name in FILES.values() if name != key}
        task.config = config.model_copy(update={**others, **({"inference": "generate"} if part != "train" else {})})
        try:
            task.read_data()
            count = task.records()[0] if part == "train" else len(task.held_out[part])
            lines.append(f"data: {key}: {count} records")
        except (BlipError, OSError) as error:
            lines.append(f"data: {key}: {error}")
    return lines
