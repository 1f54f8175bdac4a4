"""Captioning by BLIP in a run: a step, and an evaluation that writes captions and scores them."""

import os
import re
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import torch

from blip.config import ConfigError
from blip.data.batches import Batch
from blip.data.pairs import EvalPairs, Pairs
from blip.evaluation.bootstrap import Interval, as_json, bootstrap
from blip.evaluation.captions import score_captions
from blip.evaluation.losses import LossSums, with_total
from blip.models.decoding import Decoding, Generated
from blip.models.losses import IGNORED, language_model_each
from blip.network.packing import with_first
from blip.network.pictures import States, encode
from blip.tasks.config import CaptionConfig
from blip.tasks.data_options import limits_of
from blip.tasks.pairs import PairFineTuning
from blip.tasks.run import warn
from blip.tasks.samples import chosen, of_item, sample
from blip.train.history import SAMPLES
from blip.train.loop import Step

LOGGED = {"BLEU-1": "bleu1", "BLEU-4": "bleu4", "ROUGE-L": "rouge_l", "CIDEr": "cider", "METEOR": "meteor"}


class Captioning(PairFineTuning):
    """Language modelling of captions behind a prompt."""

    task = "caption"
    main_scores = ("val_cider", "val_bleu4", "val_exact", "best")
    config: CaptionConfig
    model: Any  # a CaptionModel, or of BLIP-2

    def read_data(self) -> None:
        self.prompt_text, self.told = self.config.prompt, False
        score = self.config.best_metric.removeprefix("val_")
        if self.config.val_file and score in LOGGED.values() and find_spec("pycocoevalcap") is None:
            raise ConfigError(f"{score} needs pip install -e '.[captions]'; or set best_metric: val_exact")
        super().read_data()

    def add_parts(self) -> None:
        """The prompt's tokens: `[DEC]` and those of its text."""
        super().add_parts()
        room = self.config.max_text_tokens
        ids = self.tokenizer.encode([self.config.prompt], self.config.max_positions)[0][:-1]
        if len(ids) + 2 > room:
            raise ConfigError(f"the prompt has {len(ids)} tokens and max_text_tokens is {room}: no caption fits in")
        self.needs_positions(len(ids) + self.config.max_new_tokens, "prompt and max_new_tokens")
        self.prompt = with_first(torch.tensor([ids], device=self.device), self.tokenizer.dec_id)  # (1, T)

    def step(self, batch: Batch, step: int) -> Step:
        """A batch to its loss."""
        batch = self.prepared(batch, step)
        loss = self.parallel(batch.images, batch.ids, batch.lengths, prompt_length=self.prompt.shape[1])
        return Step(loss, {"lm": loss}, len(batch), describe=lambda: self.name(batch))

    def evaluate(self, split: str) -> dict[str, Any]:
        """Writes a caption for each image of the split and scores them; each one goes into `captions_SPLIT.json`."""
        pairs, decoding = self.held_out[split], self.config.decoding()
        dataset = EvalPairs(pairs, self.encoder(), self.eval_transform(), limits=limits_of(self.config))
        batches, losses = self.eval_batches(dataset), LossSums()
        own: list[tuple] = []  # index, caption, log-probability
        for batch in self.bars.over(batches, "captioning"):
            out = self.write_batch(batch, decoding, losses)
            for index, ids, log_prob in zip(
                batch.indices, out.ids.tolist(), out.log_probs.sum(1).tolist(), strict=True
            ):
                own.append((index, self.tokenizer.decode(ids), log_prob))
        written = self.gathered(split, own, batches)
        rows = [
            {**of_item(pairs.image_paths(i)), "caption": text, "log_prob": log_prob, "references": pairs.captions(i),
             **({"group": str(pairs.group(i))} if pairs.group(i) != pairs.image_id(i) else {})}
            for i, text, log_prob in written
        ]  # fmt: skip
        self.write(f"captions_{split}.json", rows)
        self.logged.append((SAMPLES, [
            sample(i, pairs.image_paths(i), truth=first_of(pairs, i), output=row["caption"], log_prob=row["log_prob"])
            for (i, _, _), row in zip(written, rows, strict=True) if i in chosen(len(pairs))
        ]))  # fmt: skip
        self._write_results(split, pairs, written)
        means, known = losses.means(), [one for one in written if pairs.captions(one[0])]
        if not known:  # captions of some test sets are not published
            return {f"{split}_images": len(written)}
        return with_total(means, split) | self._score(split, pairs, known)

    def _write_results(self, split: str, pairs: Pairs, written: list[tuple]) -> None:
        """`results_SPLIT.json`, in the format of COCO's and NoCaps' servers."""
        names = result_ids(pairs, [i for i, _, _ in written])
        results = [{"image_id": name, "caption": text} for name, (_, text, _) in zip(names, written, strict=True)]
        self.write(f"results_{split}.json", results)

    def write_batch(self, batch: Batch, decoding: Decoding, losses: LossSums) -> Generated:
        """Captions of a batch's images; with `val_loss` the losses of its own captions are added to `losses`."""
        states = encode(self.model.image_encoder, batch.images.to(self.device, non_blocking=True))
        if self.config.val_loss:
            self._add_losses(states, batch, losses)
        prompt, uniforms = self.prompt.expand(len(states), -1), self.config.uniforms(batch.indices)
        return self.model.write_about(states, prompt, decoding, end_id=self.tokenizer.sep_id, uniforms=uniforms)

    def _add_losses(self, states: States, batch: Batch, losses: LossSums) -> None:
        """Adds the loss of each token of the first caption of each image."""
        ids, count = batch.ids.to(self.device), self.prompt.shape[1]
        logits, targets = self.model.predictions(states, ids, batch.lengths, prompt_length=count)
        each = language_model_each(logits, targets, self.config.label_smoothing)
        losses.add("lm", each, targets != IGNORED)

    def _score(self, split: str, pairs: Pairs, written: list[tuple]) -> dict[str, Any]:
        """Metrics for the log; scores with intervals go into `scores_SPLIT.json`."""
        groups = [pairs.group(i) for i, _, _ in written]
        scores = score_captions(
            [text for _, text, _ in written],
            [pairs.captions(i) for i, _, _ in written],
            groups,
            bert_score_model=self.config.bert_score_model or None,
            seed=self.config.seed,
        )
        self._tell_absent(scores.notes)
        firsts = [first_of(pairs, i) for i, _, _ in written]
        spelt = [(" ".join(first.lower().split()), self.tokenizer.written(first)) for first in firsts]
        same = [float(text in both) for (_, text, _), both in zip(written, spelt, strict=True)]
        exact = bootstrap(same, groups, seed=self.config.seed)
        metrics: dict[str, Any] = {f"{split}_images": len(written), f"{split}_exact": exact.mean}
        metrics |= {f"{split}_{LOGGED[name]}": x.mean for name, x in scores.scores.items() if name in LOGGED}
        by_source = self._by_source(pairs, written) if "CIDEr" in scores.scores else {}
        metrics |= {f"{split}_cider_{source}": interval.mean for source, interval in by_source.items()}
        every = scores.scores | {f"CIDEr, {source}": interval for source, interval in by_source.items()}
        details = {"scores": as_json(every | {"exact": exact}), "notes": scores.notes, "words": scores.tokenizer}
        self.write(f"scores_{split}.json", {"decoding": vars(self.config.decoding()), **details})
        return metrics

    def _by_source(self, pairs: Pairs, written: list[tuple]) -> dict[str, Interval]:
        """CIDEr of the images of each source that the data name, such as the domains of NoCaps, by itself: words are
        weighted by how rare they are among the captions of these images, as NoCaps' server does it."""
        found = {}
        for source in sorted({pairs.pair_source(i) for i, _, _ in written} - {""}):
            part = [(i, text) for i, text, _ in written if pairs.pair_source(i) == source]
            references, groups = [pairs.captions(i) for i, _ in part], [pairs.group(i) for i, _ in part]
            texts, seed = [text for _, text in part], self.config.seed
            found[source] = score_captions(texts, references, groups, names=["CIDEr"], seed=seed).scores["CIDEr"]
        return found

    def _tell_absent(self, notes: dict[str, str]) -> None:
        """A line, once in a run, on METEOR where it cannot be computed; `scores_SPLIT.json` has all such notes."""
        if "METEOR" in notes and not self.told:
            warn(f"METEOR is left out ({notes['METEOR']}); the other scores are as usual")
            self.told = True

    def facts(self) -> dict[str, Any]:
        return {"prompt": self.config.prompt}


def first_of(pairs: Pairs, index: int) -> str:
    """The first caption of a record; "" where none is published."""
    return next(iter(pairs.captions(index)), "")


# COCO's files of 2014 and 2017, and the ids of BLIP's annotations; in other names digits are not an image's number
NUMBERED = re.compile(r"(?:COCO_[a-z]+\d{4}_|coco_)?([0-9]+)")


def result_ids(pairs: Pairs, indices: Sequence[int]) -> list[int | str]:
    """The ids of images in a file of results: their numbers where the data set numbers them, else their names.

    Images that share a name are identified by their path.
    """
    names = [result_id(pairs.image_name(i), os.path.basename(pairs.given_path(i))) for i in indices]
    paths = [pairs.image_path(i) for i in indices]
    for finer in (pairs.given_path, pairs.image_path):  # images of two folders may have the same relative path
        images: dict[int | str, set[str]] = {}
        for name, path in zip(names, paths, strict=True):
            images.setdefault(name, set()).add(path)
        names = [finer(i) if len(images[name]) > 1 else name for i, name in zip(indices, names, strict=True)]
    return names


def result_id(name: str, file: str) -> int | str:
    """The number in COCO's names (COCO_val2014_000000391895, 000000391895, coco_391895), else the name.

    `name` is the record's id; if it is the name of the `file`, as in ROCO, its ending is left out.
    """
    name = os.path.splitext(file)[0] if name == file else name
    number = NUMBERED.fullmatch(name)
    return int(number[1]) if number else name
