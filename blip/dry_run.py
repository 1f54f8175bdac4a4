"""What a configuration would cost: everything is built, one step runs on made-up data, nothing is kept."""

import time
from dataclasses import fields

import torch
from rich.console import Console
from rich.table import Table

from blip import build, distributed, flops, momentum
from blip.config import PretrainConfig
from blip.data.pairs import read_pairs
from blip.models.pretrain import Specials
from blip.tokenizer import load_tokenizer
from blip.train.optim import build_optimizer
from blip.train.parallel import autocast, checkpoint_activations, compile_blocks, data_parallel, measure_peak, memory_mb


def run_once(config: PretrainConfig, device: torch.device) -> None:
    """Prints parameters, memory, FLOPs and time of one step on this device, and the data that a run would read."""
    console = Console(quiet=not distributed.is_main())
    if config.tokenizer == "train":
        size, specials = config.vocab_size, Specials(0, config.vocab_size - 1, config.vocab_size - 2)
    else:
        tokenizer = load_tokenizer(config.tokenizer)
        size, specials = tokenizer.size, Specials(tokenizer.pad_id, tokenizer.enc_id, tokenizer.dec_id)
    torch.manual_seed(config.seed)
    model, twin, queue = (part.to(device) for part in build.build_pretrain(config, size, specials))
    checkpoint_activations(build.blocks(model), config.activation_checkpointing, device, config.precision)
    if config.compile:
        compile_blocks(build.blocks(model), config.activation_checkpointing)
    parallel = data_parallel(model, device)
    optimizer = build_optimizer(model, config.lr, config.weight_decay, config.decay_norms_and_biases)

    batch, longest = config.batch_size, config.max_text_tokens
    images = torch.randn(batch, 3, config.image_size, config.image_size, device=device)
    ids = torch.randint(5, max(6, size - 2), (batch, longest), device=device)
    lengths = torch.full((batch,), longest)
    own = torch.arange(batch, device=device)
    seconds = []
    for _ in range(2):  # the first one also warms up
        start = time.perf_counter()
        with autocast(device, config.precision):
            features = twin(images, ids, lengths, not config.compile)
            candidates = momentum.candidates(*features, own, own, queue, config.equal_captions)
            out = parallel(images, ids, lengths, candidates, config.alpha, packed=not config.compile)
        (out.itc + out.itm + out.lm).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        momentum.update_twin(*twin.pairs_with(model), config.momentum)
        seconds.append(time.perf_counter() - start + float(out.itc.detach()) * 0)  # reading a loss waits for the device

    sizes = model.image_encoder.config, model.text_encoder.config
    cost = flops.pretrain_step(*sizes, lengths.tolist(), longest, config.embed_dim, config.queue_size)
    parameters = flops.pretrain_parameters(*sizes, config.embed_dim)
    table = Table("part", "parameters (M)", title=f"one step of {batch} pairs, {longest} tokens each, on {device}, {config.precision}")
    for field in fields(parameters):
        table.add_row(field.name, f"{getattr(parameters, field.name) / 1e6:.2f}")
    table.add_row("all (the twin comes on top)", f"{parameters.total / 1e6:.2f}")
    console.print(table)
    rate = cost.total / seconds[-1]
    console.print(
        f"losses: itc {float(out.itc.detach()):.3f}, itm {float(out.itm.detach()):.3f}, lm {float(out.lm.detach()):.3f}\n"
        f"compute: {cost.total / 1e9:.1f} GFLOP a step, {cost.total / batch / 1e9:.2f} a pair; {seconds[-1]:.2f} s a step here, "
        f"{rate / measure_peak(device, config.precision):.0%} of this device's matrix-product rate\n"
        f"memory: {memory_mb(device):.0f} MB at most"
    )
    for entry in build.annotation_files(config):
        path = entry if isinstance(entry, str) else entry["path"]
        try:
            console.print(f"data: {path}: {len(read_pairs([entry], config.image_root))} pairs", soft_wrap=True, markup=False)
        except (ValueError, OSError) as error:
            console.print(f"data: {path}: {error}", soft_wrap=True, markup=False)
    if not config.train_file:
        console.print("data: train_file is empty; --set train_file=[captions.json]")
