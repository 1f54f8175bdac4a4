"""Pre-trains BLIP on image-caption files.

    python pretrain.py --config configs/pretrain_demo.yaml --output_dir runs/demo
    torchrun --nproc_per_node=8 pretrain.py --config configs/pretrain.yaml --output_dir runs/base

Samples are made in blip/data/pairs.py (of shards: blip/data/stream.py), the losses in blip/models/pretrain.py; the loop
is in blip/train/loop.py. The docstring of pretrain.py lists the whole path of a batch.
"""

import itertools
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch

from blip import distributed
from blip.checkpoints import initialize
from blip.checkpoints.format import load_strict, load_weights, unique_state
from blip.config import ConfigError, PretrainConfig, annotation_files
from blip.data.batches import Batch
from blip.data.image_bytes import ImageLimits
from blip.data.loader import EvalLoader, eval_loader
from blip.data.pairs import MAX_SOURCES, CaptionEncoder, EvalPairs
from blip.data.skipped import SkipLog
from blip.data.transforms import eval_transform, unnormalise
from blip.evaluation.pretraining import evaluate_pretraining
from blip.hardware.precision import choose_precision, computing
from blip.models import losses
from blip.models.decoding import Decoding
from blip.models.generation import generate
from blip.network import flops
from blip.network.med import DecoderStep
from blip.tasks import start, tokenizers
from blip.tasks.contrast import MomentumContrast
from blip.tasks.data_options import entries, with_commits
from blip.tasks.dry_run import plan_for, run_once
from blip.tasks.image_tokens import dropped_share, sized_transform, tokens_seen
from blip.tasks.pretrain_data import open_training, read_part
from blip.tasks.samples import chosen, sample
from blip.tokenizer import Tokenizer
from blip.train.folder import open_run
from blip.train.freeze import freeze
from blip.train.history import SAMPLES, SIMILARITIES
from blip.train.launch import launch
from blip.train.log import RunLog
from blip.train.loop import Step
from blip.train.parallel import data_parallel, not_compiled, padded_lengths, recompute_and_compile
from blip.train.run import fit
from blip.train.schedule import Epochs

IN_TENSORBOARD = 4  # images with captions
STEPS_TO_LEARN = 500  # steps after the warm-up within which matching should have begun to learn
PLATEAU = (
    "ITM is at {mean:.3f}, and a model without skill is at {none:.4f}. What helps: start from released weights "
    "(init_from) or from ViT and BERT weights (vision_init, text_init), a larger global batch, a lower lr, more "
    "epochs; and captions that describe their images (blip check-data)."
)


class Pretraining:
    """A run of pre-training: its parts, and the methods that the loop calls; see `blip.train.run.Task`."""

    main_scores = ("val_i2t_r1", "val_t2i_r1", "val_itm_matched", "val_itm_unmatched")

    def __init__(self, config: PretrainConfig, output: Path, resume: Path | None, *, device: torch.device):
        self.config, self.output, self.device = config, output, device
        choose_precision(config.precision, device)  # an error before data are read
        world = distributed.world_size()
        self.data = open_training(config, annotation_files(config), output)
        self.tokenizer = tokenizers.choose_tokenizer(config, self.data.captions(), output, resume=resume)
        self.epochs = Epochs(self.data.steps, config.accumulation, config.epochs, max_steps=config.max_steps)
        self.val_data = validation_pairs(config, self.tokenizer)
        val = self.val_data
        self.val = None if val is None else validation_loader(val, config, self.tokenizer, device=device)
        self.skipped = SkipLog(output / "skipped.jsonl", len(self.data), config.max_skipped_fraction, world=world)

        torch.manual_seed(config.seed)  # equal starting weights on every process
        self.model, twin, queue = start.build_pretrain(
            config, self.tokenizer.size, self.tokenizer.specials, device=device, fresh=resume is None
        )
        equal = config.equal_captions == "positives"
        self.contrast = MomentumContrast(
            self.model, twin, queue, config=config, equal_captions=equal, equal_images=equal
        )
        torch.manual_seed(config.seed + 1 + distributed.rank())  # dropout and negatives differ between processes
        freeze(self.model, config.freeze)
        recompute_and_compile(self.model, config, device, twin=twin)
        self.parallel = data_parallel(self.model, device, config.gradient_compression)
        self.itm_mean: torch.Tensor | None = None  # running mean of the ITM loss
        self.warned = False
        self.seen: Counter[str] = Counter()  # pairs of each source that this process was trained on
        self.pending: list[tuple[torch.Tensor, list[str]]] = []  # ITM losses and sources since the last update

    def batches(self, start_step: int) -> Iterator[Batch]:
        """Training batches without end, from the first one of optimizer step `start_step` (counted from 0)."""
        config = self.config
        pad_to = padded_lengths(config.max_positions) if config.compile else ()
        start = self.epochs.position(start_step)
        pin = self.device.type == "cuda"
        return self.skipped.noted(
            self.data.batches(self.tokenizer, sized_transform(config), start, pad_to=pad_to, pin=pin)
        )

    def step(self, batch: Batch, step: int) -> Step:
        """A batch to its losses. Changes no weights; `contrast` keeps what the update needs."""
        config = self.config
        batch = batch.to(self.device, non_blocking=True)
        alpha = self.contrast.alpha(step, self.epochs.steps)
        self.model.image_encoder.patch_dropout.share = dropped_share(config, step, self.epochs)
        candidates = self.contrast.candidates(batch)
        out = self.parallel(batch.images, batch.ids, batch.lengths, candidates, alpha)

        self.pending.append((out.itm.detach(), batch.sources))
        logs = {"itc": out.itc, "itm": out.itm, "lm": out.lm, **self.contrast.logs(out.match_logits, alpha)}
        seen = tokens_seen(self.model.image_encoder, self.contrast.twin.image_encoder, batch.images)
        if config.image_sizes or config.patch_dropout:
            logs["image_tokens"] = float(seen.kept)
        cost = flops.pretrain_step(
            self.model.image_encoder.config, self.model.text_encoder.config, batch.lengths.tolist(),
            longest=batch.ids.shape[1], embed_dim=config.embed_dim, queue=config.queue_size,
            seen=seen,
        )  # fmt: skip
        loss = out.itc + out.itm + out.lm
        return Step(loss, logs, len(batch), flops=cost.total, describe=lambda: self._name(batch))

    def after_update(self, step: int) -> None:
        """Follows each optimizer step: the temperature, the twin and the queue; what is known of the step's pairs."""
        self.contrast.after_update()
        for recent, sources in self.pending:
            self.itm_mean = recent if self.itm_mean is None else self.itm_mean.lerp(recent, 0.02)
            for source in filter(None, sources):
                known = source in self.seen or len(self.seen) < MAX_SOURCES
                self.seen[source if known else "other"] += 1
        self.pending.clear()

    def at_step_end(self, step: int, log: RunLog) -> dict | None:
        """An evaluation after each `eval_every_epochs` epochs and at the end, with the pairs seen until then of each
        source that the data name; advice when matching learns nothing."""
        if step % self.config.log_every_steps == 0:
            self.warn_of_plateau(step, log)
        done = self.epochs.evaluation_due(step, self.config.eval_every_epochs)
        if done is None:
            return None
        seen = {f"pairs_{source}": count for source, count in sorted(self.all_seen().items())}
        if self.val is None:
            return {"epoch": done, **seen} if seen else None
        with computing(self.device, self.config.precision), not_compiled():
            batches = log.bars.over(self.val, "evaluating", len(self.val))
            found = evaluate_pretraining(self.model, batches, self.device, val_loss=self.config.val_loss)
            distributed.from_main(lambda: self.write_samples(step, log))
        log.add(SIMILARITIES, [found.similarities])
        return {"epoch": done, **found.metrics, "val_unreadable": len(self.val.skipped), **seen}

    def all_seen(self) -> Counter[str]:
        """Pairs of each source, over all processes."""
        return sum(distributed.gather_objects(self.seen), Counter())

    def write_samples(self, step: int, log: RunLog) -> None:
        """The same validation images each time with their generated captions, to the log; four to TensorBoard."""
        assert self.val_data is not None
        pairs = self.val_data.pairs
        found = [one for i in sorted(chosen(len(pairs))) if (one := self.val_data[i]).image is not None]
        if not found:
            return
        images = torch.stack([one.image for one in found if one.image is not None]).to(self.device)
        texts = self._captions(images)
        rows = [
            sample(one.index, pairs.image_path(one.index), truth=pairs.captions(one.index)[0], output=text)
            for one, text in zip(found, texts, strict=True)
        ]
        log.add(SAMPLES, rows)
        if self.config.tensorboard:
            for number, text in enumerate(texts[:IN_TENSORBOARD]):
                log.sample(step, number, unnormalise(images[number]), text=text)

    @torch.no_grad()
    def _captions(self, images: torch.Tensor) -> list[str]:
        """A caption of each image, of the likeliest token at each step."""
        training = self.model.training
        self.model.eval()
        decoder = self.model.text_decoder
        step = DecoderStep(decoder, decoder.image_keys(self.model.image_encoder(images)))
        first = torch.full((len(images), 1), self.tokenizer.dec_id, device=self.device)
        decoding = Decoding(max_new_tokens=self.config.max_text_tokens - 1)
        ids = generate(step, first, decoding, end_id=self.tokenizer.sep_id, pad_id=self.tokenizer.pad_id).ids
        self.model.train(training)
        return [self.tokenizer.decode(text) for text in ids.tolist()]

    def warn_of_plateau(self, step: int, log: RunLog) -> None:
        """Logs advice, once, when the ITM loss is still that of a model without skill."""
        total = self.epochs.total_steps
        warmup = min(self.config.warmup_steps, total // 2)
        late = step >= warmup + min(STEPS_TO_LEARN, (total - warmup) // 2)
        if self.warned or not late or self.itm_mean is None:
            return
        mean = float(self.itm_mean)
        if abs(mean - losses.ITM_NO_SKILL) < 0.02:
            self.warned = True
            log.message(PLATEAU.format(mean=mean, none=losses.ITM_NO_SKILL), style="yellow")

    def describe(self) -> tuple[str, dict]:
        """A line about data and model for the log, and the content of `model.json`."""
        parameters = sum(p.numel() for p in self.model.parameters()) / 1e6
        cut, limit = self.truncated(), self.config.max_text_tokens
        line = (
            f"{len(self.data)} pairs, {cut:.1%} of captions cut at {limit} tokens, {parameters:.1f} M parameters on "
            f"{self.device} in {self.config.precision}, ITM without skill is {losses.ITM_NO_SKILL:.4f}"
        )
        return line, start.describe_pretraining(self.config, self.model)

    def weights(self) -> dict[str, torch.Tensor]:
        """What a checkpoint's `model.safetensors` holds."""
        return unique_state(self.model)

    def state(self) -> dict:
        """What a checkpoint holds beside weights and optimizer."""
        progress: dict = {} if self.itm_mean is None else {"itm_mean": self.itm_mean}
        progress["seen"] = dict(self.all_seen())
        return {**self.contrast.state(), "progress": progress}

    def load(self, folder: Path, training: dict) -> None:
        """Continues from a checkpoint of this run."""
        tensors, info = distributed.tensors_from_main(lambda: load_weights(folder))
        heads = self.model.image_encoder.config.heads, self.model.text_encoder.config.heads
        initialize.check_heads(info, *heads, path=str(folder))
        load_strict(self.model, tensors, str(folder))
        self.contrast.load(folder, training)
        if "itm_mean" in training["progress"]:
            self.itm_mean = training["progress"]["itm_mean"].to(self.device)
        if distributed.is_main():  # the counts of all processes; the others start at 0
            self.seen.update(training["progress"].get("seen", {}))

    def truncated(self, sample: int = 2000) -> float:
        """Share of captions, of the first `sample`, that are cut at `max_text_tokens`."""
        captions = list(itertools.islice(self.data.captions(), sample))
        if not captions:
            return 0.0
        return sum(n > self.config.max_text_tokens for n in self.tokenizer.count(captions)) / len(captions)

    def _name(self, batch: Batch) -> str:
        return ", ".join(self.data.name(i) for i in batch.indices[:16])


def validation_pairs(config: PretrainConfig, tokenizer: Tokenizer) -> EvalPairs | None:
    """The pairs of the validation files, or None where there are none."""
    if not config.val_file:
        return None
    pairs = read_part(config, entries(config.val_file), "val")
    encode = CaptionEncoder(tokenizer, config.max_text_tokens, text_cleaning=config.text_cleaning)
    return EvalPairs(pairs, encode, eval_transform(config.image_size), limits=ImageLimits.of_mb(config.max_image_mb))


def validation_loader(
    data: EvalPairs, config: PretrainConfig, tokenizer: Tokenizer, *, device: torch.device
) -> EvalLoader:
    """Batches of this process's part of the validation pairs."""
    return eval_loader(
        data,
        config.batch_size,
        rank=distributed.rank(),
        world=distributed.world_size(),
        num_workers=config.num_workers,
        pad_id=tokenizer.pad_id,
        pin_memory=device.type == "cuda",
    )


def run(config: PretrainConfig, output: Path, resume: str, *, device: torch.device, **options: bool) -> bool:
    """Trains, from the start or from a checkpoint, and writes the result to `output`. False when a signal ended it.

    `options`: `allow_changed` and `overwrite`, as in `open_run`.
    """
    if not config.train_file:
        raise ConfigError("train_file is empty; --set 'train_file=[captions.json]'")
    config = with_commits(config)
    with open_run(config, output, resume, **options) as folder:
        config = start.pin(config, folder.checkpoint)
        task = Pretraining(config, output, folder.checkpoint, device=device)
        return fit(task, config, folder)


def main(help: str | None = None) -> None:
    """The command line of the task; `help` is shown with `--help`."""
    launch(run, PretrainConfig, default_output="runs/pretrain", dry_run=run_once, plan=plan_for, help=help or __doc__)


if __name__ == "__main__":
    main()
