"""Retrieval by BLIP in a run: a step, and an evaluation that ranks and scores."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from blip import distributed
from blip.data.batches import Batch, padded
from blip.data.gallery import ImagesByNumber, unreadable
from blip.data.pairs import CaptionEncoder, caption_id
from blip.evaluation.bootstrap import Interval, as_json, bootstrap
from blip.evaluation.retrieval import Retrieval, Texts, evaluate_retrieval
from blip.models import momentum
from blip.models.momentum import Queue, Twin
from blip.tasks.config import RetrievalConfig
from blip.tasks.contrast import MomentumContrast
from blip.tasks.data_options import limits_of
from blip.tasks.pairs import PairFineTuning
from blip.tasks.records import NothingToScore
from blip.tasks.samples import chosen, sample
from blip.train.history import SAMPLES, SIMILARITIES
from blip.train.loop import Step
from blip.train.sharding import is_sharded


@dataclass
class Gallery:
    """The different images of a split that can be read, and their texts; each side is ranked for the other."""

    images: list[list[str]]  # of each, the paths of its pictures; in most sets one
    records: list[int]  # of each image: its first record
    groups: list[int]  # of each image: its article or patient, else itself
    texts: Texts
    lines: list[str]  # the texts themselves
    unreadable: int  # images that are left out, with the texts that describe no other


class Retrieving(PairFineTuning):
    """Contrast and matching; pairs that share an image are positives of one another."""

    task = "retrieval"
    main_scores = ("val_itm_r_mean", "val_itm_i2t_r1", "val_itm_t2i_r1", "best")
    config: RetrievalConfig
    model: Any  # a RetrievalModel, or of BLIP-2

    def add_parts(self) -> None:
        """The momentum twin and the queue."""
        super().add_parts()
        self.galleries: dict[str, Gallery] = {}  # by split
        config = self.config
        if "temperature" in self.missing or "temperature" in config.model_fields_set or not config.init_from:
            with torch.no_grad():
                self.model.temperature.fill_(config.temperature)
        self.equal_captions = config.equal_captions == "positives"
        twin = Twin(self.model)
        if not is_sharded(config):
            twin.to(self.device)
        queue = Queue(config.queue_size, config.embed_dim).to(self.device)
        self.contrast = MomentumContrast(
            self.model, twin, queue, config=config, equal_captions=self.equal_captions, equal_images=True
        )
        self.contrast.shard(self.device)

    def step(self, batch: Batch, step: int) -> Step:
        """A batch to its losses. Changes no weights; `contrast` keeps what the update needs."""
        config = self.config
        batch = self.prepared(batch, step)
        alpha = self.contrast.alpha(step, self.epochs.steps)
        candidates = self.contrast.candidates(batch)
        others = None
        if config.negative_all_rank and distributed.world_size() > 1:
            own = batch.caption_ids, batch.image_ids
            captions, images = distributed.all_gather(torch.stack(own, dim=1)).unbind(dim=1)
            others = momentum.same_pairs(own, (captions, images), by_caption=self.equal_captions, by_image=True)
        out = self.parallel(batch.images, batch.ids, batch.lengths, candidates, alpha, others=others)
        logs = {"itc": out.itc, "itm": out.itm, **self.contrast.logs(out.match_logits, alpha)}
        return Step(out.itc + out.itm, logs, len(batch), describe=lambda: self.name(batch))

    def after_update(self, step: int) -> None:
        self.contrast.after_update()

    def state(self) -> dict:
        return {**super().state(), **self.contrast.state()}

    def load(self, folder: Path, training: dict) -> None:
        super().load(folder, training)
        self.contrast.load(folder, training)

    def evaluate(self, split: str) -> dict[str, Any]:
        """Retrieval in both directions over the whole split; the ranked lists go into `retrieval_SPLIT.json`."""
        if split not in self.galleries:  # images are opened for this once in a run, not in each evaluation
            self.galleries[split] = self._gallery(split)
        gallery = self.galleries[split]
        limits = limits_of(self.config)
        pixels = ImagesByNumber(
            gallery.images, self.eval_transform(), self.config.num_workers,
            pin_memory=self.device.type == "cuda", limits=limits,
        )  # fmt: skip
        count, texts = len(gallery.images), gallery.texts
        found = evaluate_retrieval(
            self.model,
            lambda numbers: self.bars.over(pixels(numbers), "ranking", len(numbers)),
            count,
            texts=texts,
            device=self.device,
            k=self.config.k_test,
            batch_size=self.config.batch_size,
            losses=self.config.val_loss,
        )
        self.logged += [(SIMILARITIES, [found.similarities]), (SAMPLES, samples(gallery, found))]
        lost = {
            note for part in distributed.gather_objects(pixels.skipped) for note in part
        }  # after the gallery was made
        images = [paths[0] if len(paths) == 1 else paths for paths in gallery.images]
        details: dict[str, Any] = {"images": images, "texts": gallery.lines}
        details["owners"] = [list(images) for images in texts.images]  # of each text: the numbers of its images
        details["intervals"] = as_json(intervals(found, texts, gallery.groups, seed=self.config.seed))
        self.write(f"retrieval_{split}.json", {**found.as_json(), **details, "k": self.config.k_test})
        return {f"{split}_{name}": value for name, value in found.metrics.items()} | {
            f"{split}_unreadable": gallery.unreadable + len({number for number, _, _ in lost})
        }

    def _gallery(self, split: str) -> Gallery:
        """The different images of a split, and the texts with the images that each describes.

        With `equal_captions: positives` a caption that several images share is one text that describes them all.
        """
        pairs = self.held_out[split]
        first: dict[int, int] = {}  # image id -> its first record
        for i in range(len(pairs)):
            first.setdefault(pairs.image_id(i), i)
        limits = limits_of(self.config)
        notes = unreadable([pairs.image_paths(i) for i in first.values()], self.config.num_workers, limits=limits)
        self.write_unreadable(split, [path for _, path, _ in notes])
        if len(notes) == len(first):
            raise NothingToScore(f"no image of {', '.join(self.files(split))} could be read, such as {notes[0][1]}")
        broken = {number for number, _, _ in notes}
        kept = [i for number, i in enumerate(first.values()) if number not in broken]
        numbers = {pairs.image_id(i): number for number, i in enumerate(kept)}
        lines: list[str] = []
        owners: list[list[int]] = []
        places: dict[int, int] = {}  # caption id -> text
        for i in range(len(pairs)):
            number = numbers.get(pairs.image_id(i), -1)
            for caption in pairs.captions(i) if number >= 0 else ():
                place = places.get(caption_id(caption), -1) if self.equal_captions else -1
                if place < 0:
                    places[caption_id(caption)] = len(lines)
                    lines.append(caption)
                    owners.append([number])
                else:
                    owners[place].append(number)
        encode = CaptionEncoder(self.tokenizer, self.config.max_text_tokens, text_cleaning=self.config.text_cleaning)
        ids, lengths = padded([encode(line) for line in lines], self.tokenizer.pad_id)
        images, groups = [pairs.image_paths(i) for i in kept], [pairs.group(i) for i in kept]
        return Gallery(images, kept, groups, Texts(ids, lengths, owners), lines, len(notes))


def samples(gallery: Gallery, found: Retrieval) -> list[dict[str, Any]]:
    """Lines of `samples.jsonl`: an image's first own text, the text that is ranked first, and the rank of the best own
    one, counted from 1."""
    own: dict[int, str] = {}
    for line, images in zip(gallery.lines, gallery.texts.images, strict=True):
        for image in images:
            own.setdefault(image, line)
    return [
        sample(
            gallery.records[image],
            gallery.images[image],
            truth=own[image],
            output=gallery.lines[int(found.image_to_text.candidates[image, 0])],
            rank=int(found.text_ranks[image]) + 1,
        )
        for image in sorted(chosen(len(gallery.images)))
        if image in own
    ]


def intervals(found: Retrieval, texts: Texts, groups: Sequence[Hashable], *, seed: int) -> dict[str, Interval]:
    """Bootstrap intervals of R@1, R@5 and R@10 after matching, in both directions; `groups` (I,) are drawn whole.

    The results of texts of one image depend on each other: a text belongs to the group of its (first) image.
    """
    of_image: dict[int, set[int]] = {}
    for text, owners in enumerate(texts.images):
        for image in owners:
            of_image.setdefault(image, set()).add(text)
    of_text = {text: set(owners) for text, owners in enumerate(texts.images)}
    groups_of_texts = [groups[owners[0]] if owners else None for owners in texts.images]
    directions = {
        "i2t": (found.image_to_text.candidates, of_image, groups),
        "t2i": (found.text_to_image.candidates, of_text, groups_of_texts),
    }
    result = {}
    for way, (candidates, answers, drawn) in directions.items():
        asked = [query for query in range(len(candidates)) if answers.get(query)]
        lists = [candidates[query].tolist() for query in asked]
        for k in (1, 5, 10):
            hits = [float(bool(answers[q] & set(row[:k]))) for q, row in zip(asked, lists, strict=True)]
            result[f"itm_{way}_r{k}"] = bootstrap(hits, [drawn[q] for q in asked], seed=seed)
    return result
