"""The costs of a configuration: everything is built, one step runs on random data, nothing is saved.

Or without running anything, for GPUs that are not here: `plan_for`.
"""

import time
from collections.abc import Callable
from dataclasses import fields

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from blip import distributed
from blip.checkpoints.places import is_remote
from blip.config import PretrainConfig, annotation_files
from blip.data.batches import Batch
from blip.data.webdataset import is_tar_address, open_shards
from blip.errors import BlipError, printable
from blip.hardware.as_on_gpu import META
from blip.hardware.precision import autocast, products
from blip.models import momentum
from blip.models.pretrain import Output, PretrainModel
from blip.network import flops
from blip.network.embeddings import TextConfig
from blip.tasks import start
from blip.tasks.contrast import MomentumContrast
from blip.tasks.counted import Trained, full_lengths
from blip.tasks.estimate_report import report
from blip.tasks.item_pictures import of_several, pictures_of_run, shape_of_images
from blip.tasks.pretrain_data import read_part
from blip.tokenizer import Specials, load_tokenizer
from blip.train.optim import build_optimizer
from blip.train.parallel import data_parallel, measure_peak, memory_mb, recompute_and_compile


def run_once(config: PretrainConfig, device: torch.device) -> None:
    """Prints parameters, memory, FLOPs and time of a step on this device, and the number of pairs of each file."""
    console = Console(quiet=not distributed.is_main())
    model, step = random_steps(config, device)
    with products(device, config.precision):
        step()  # a warm-up
        start = time.perf_counter()
        out = step()
        seconds = time.perf_counter() - start
        peak = measure_peak(device, config.precision)

    vit, text = model.image_encoder.config, model.text_encoder.config
    parameters = flops.pretrain_parameters(vit, text, config.embed_dim)
    table = Table("part", "parameters (M)", title="the model, without its twin")
    for field in fields(parameters):
        table.add_row(field.name, f"{getattr(parameters, field.name) / 1e6:.2f}")
    table.add_row("all", f"{parameters.total / 1e6:.2f}")
    console.print(table)
    lengths = [config.max_text_tokens] * config.batch_size
    tokens, pictures = flops.image_tokens(vit), pictures_of_run(config)
    seen = flops.ImageTokens(tokens, tokens, tokens, pictures)
    cost = flops.pretrain_step(vit, text, lengths, embed_dim=config.embed_dim, queue=config.queue_size, seen=seen).total
    share = cost / seconds / peak
    for line in (
        f"a step of {config.batch_size} pairs{of_several(pictures)}, {config.max_text_tokens} tokens each, on "
        f"{device} in {config.precision}",
        f"losses: itc {float(out.itc):.3f}, itm {float(out.itm):.3f}, lm {float(out.lm):.3f}",
        f"compute: {cost / 1e9:.1f} GFLOP, {cost / config.batch_size / 1e9:.2f} a pair",
        f"time: {seconds:.2f} s, {share:.0%} of this device's matrix-product rate",
        f"memory: {memory_mb(device):.0f} MB at most",
        *_data(config),
    ):
        console.print(printable(line), soft_wrap=True, markup=False, highlight=False)


def random_steps(config: PretrainConfig, device: torch.device) -> tuple[PretrainModel, Callable[[], Output]]:
    """The model of a configuration, and a call that trains it for a step on random data and returns the losses."""
    size, specials = _words(config)
    torch.manual_seed(config.seed)
    model, twin, queue = start.build_pretrain(config, size, specials, device=device)
    recompute_and_compile(model, config, device, twin=twin)
    parallel = data_parallel(model, device, config.gradient_compression)
    decay_all = config.decay_norms_and_biases
    optimizer = build_optimizer(model, config.lr, config.weight_decay, decay_norms_and_biases=decay_all)
    count, longest = config.batch_size, config.max_text_tokens
    images = torch.randn(shape_of_images(config, pictures_of_run(config)), device=device)
    ids = torch.randint(5, max(6, size - 2), (count, longest), device=device)
    lengths, own = torch.full((count,), longest), torch.arange(count, device=device)

    def step() -> Output:
        with autocast(device, config.precision):
            image_features, text_features = twin(images, ids, lengths)
            candidates = momentum.candidates(momentum.Entries(image_features, text_features, own, own), queue)
            out = parallel(images, ids, lengths, candidates, config.alpha)
        (out.itc + out.itm + out.lm).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        momentum.update_twin(*twin.pairs_with(model), config.momentum)
        out = Output(*(part.detach() for part in (out.itc, out.itm, out.lm, out.match_logits)))
        float(out.itc)  # waits for the device
        return out

    return model, step


def _words(config: PretrainConfig) -> tuple[int, Specials]:
    """The number of tokens, and the special ones."""
    if config.tokenizer == "train":
        return config.vocab_size, Specials(0, config.vocab_size - 1, config.vocab_size - 2)
    tokenizer = load_tokenizer(config.tokenizer)
    return tokenizer.size, tokenizer.specials


def plan_for(config: PretrainConfig, gpu: str, world: int) -> None:
    """Prints what a run costs on `world` cards of a name; see `blip.tasks.estimate_report`."""
    report(trained_on_meta, config, gpu, world)


def trained_on_meta(config: PretrainConfig, lengths: Tensor | None = None) -> Trained:
    """The parts of a step on the device `meta`, without content: nothing is downloaded, and no weights are read.

    `lengths` (B,) of the texts on the CPU; by default each has `max_text_tokens`. A tokenizer of another machine is
    taken to have as many tokens as BERT's.
    """
    remote = is_remote(config.tokenizer)
    size, specials = (TextConfig().vocab_size, Specials(0, 1, 2)) if remote else _words(config)
    random = {"vision_init": "", "text_init": "", "init_from": ""}
    model, twin, queue = start.build_pretrain(config.model_copy(update=random), size, specials, device=META)
    recompute_and_compile(model, config.model_copy(update={"compile": False}), META)
    contrast = MomentumContrast(model, twin, queue, config=config, equal_captions=True, equal_images=True)
    count = config.batch_size
    lengths = full_lengths(count, config.max_text_tokens) if lengths is None else lengths
    images = torch.empty(shape_of_images(config, pictures_of_run(config)), device=META)
    ids = torch.empty(count, int(lengths.max()), dtype=torch.int64, device=META)
    numbers = torch.empty(count, dtype=torch.int64, device=META)
    batch = Batch(images, ids, lengths, numbers, numbers, [], [])

    def loss() -> Tensor:
        candidates = contrast.candidates(batch)
        out = model(batch.images, batch.ids, batch.lengths, candidates, config.alpha)
        contrast.logs(out.match_logits, config.alpha)
        return out.itc + out.itm + out.lm

    return Trained(model, [twin, queue], [images, ids, numbers], loss, contrast.after_update)


def _data(config: PretrainConfig) -> list[str]:
    """A line for each training file: its number of pairs, or what is wrong with it."""
    if not config.train_file:
        return ["data: train_file is empty; --set 'train_file=[captions.json]'"]
    lines = []
    for entry in annotation_files(config):
        path = entry if isinstance(entry, str) else entry["path"]
        try:
            count = len(open_shards([path]) if is_tar_address(path) else read_part(config, [entry], "train"))
            lines.append(f"data: {path}: {count} pairs")
        except (BlipError, OSError) as error:
            lines.append(f"data: {error}")
    return lines
