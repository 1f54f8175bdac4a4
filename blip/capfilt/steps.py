"""CapFilt (Li et al. 2022, section 3.3): a captioner writes texts for images, a filter removes those that do not match.

    caption   a text or several for each image, by nucleus sampling
    score     every text of an image, those of the web too, by matching (ITM) and contrast (ITC)
    merge     what passes the threshold, and what people wrote, into the annotations of the next pre-training

Captioner and filter are fine-tuned apart: a filter that shares the captioner's weights likes what it would have
written itself. Steps write shards (`data/shards.py`), by any number of processes; lines have

    image, text, source (web, synthetic), round, model (of the captioner), log_prob    of `caption`
    image, text, source, round, match, itc, model (of the filter)                      of `score`
    image, problem                                                                     where an image could not be read

Shapes: B images, K texts of one image.
"""

import hashlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from blip.capfilt.candidates import SYNTHETIC, Candidate, Candidates
from blip.data.images import UnreadableImage, open_image
from blip.data.jsonl_shards import Line, write_shards
from blip.data.skipped import TooManySkipped
from blip.errors import InputError
from blip.hashing import stable_hash
from blip.inference.predictor import Predictor
from blip.inference.scoring import match_groups
from blip.models.decoding import Decoding

Progress = Callable[[int], None]  # is told of each finished shard


@dataclass
class Work:
    """How the work is cut and done. Captions and scores depend on the first three."""

    shard_size: int = 1024  # images
    batch_size: int = 32  # images
    precision: str = "fp32"  # or bf16
    workers: int = 2  # threads that open images
    max_skipped_fraction: float = 0.05  # of a shard's images; more unreadable ones, above ten, end the work

    def __post_init__(self) -> None:
        if min(self.shard_size, self.batch_size, self.workers) < 1:
            raise InputError("shard_size, batch_size and workers need to be 1 or more")
        if self.precision not in ("fp32", "bf16"):
            raise InputError(f"precision is {self.precision!r}; it can be fp32 or bf16")

    def settings(self) -> dict[str, Any]:
        return {"shard_size": self.shard_size, "batch_size": self.batch_size, "precision": self.precision}

    def autocast(self, device: torch.device) -> torch.autocast:
        return torch.autocast(device.type, torch.bfloat16, enabled=self.precision == "bf16")


def data_fingerprint(candidates: Candidates) -> str:
    """12 hexadecimal digits that follow from images and texts: shards of other data are not continued."""
    digest = hashlib.sha256(f"{len(candidates)} {candidates.texts}".encode())
    for index in range(len(candidates)):
        digest.update(candidates.image_path(index).encode("utf-8", "surrogateescape"))
        for candidate in candidates[index]:
            digest.update(f"\0{candidate.text}\0{candidate.source}{candidate.round}".encode())
    return digest.hexdigest()[:12]


def decoding(
    captions_per_image: int = 1, beams: int = 0, top_p: float = 0.9, max_new_tokens: int = 30, min_new_tokens: int = 0
) -> Decoding:
    """How captions are written: nucleus sampling, which the paper prefers, or the best of as many `beams`."""
    return Decoding(
        beams=beams or 1,
        sample=not beams,
        top_p=1.0 if beams else top_p,
        num_return=captions_per_image,
        max_new_tokens=max_new_tokens,
        min_new_tokens=min_new_tokens,
    )


# ---- captioner -------------------------------------------------------------------------------------------------------


def caption(
    m: Predictor,
    candidates: Candidates,
    folder: Path,
    model: str,
    how: Decoding,
    seed: int = 0,
    round_: int = 1,
    prompt: str | None = None,
    work: Work | None = None,
    progress: Progress = lambda number: None,
) -> None:
    """Writes texts for every image of `candidates`; `how.num_return` an image, without repetitions.

    Samples follow from `seed` and the shard, so that they are the same whatever the number of processes.

    Args:
        m: the captioner; `model` is its fingerprint.
        how: nucleus sampling, or beams.
        round_: which round of CapFilt this is.
        prompt: as in `Predictor.write`; it is no part of the texts.
        work: shards, batches, precision.

    Raises:
        ShardError: `folder` was begun with other settings.
    """
    work = work or Work()
    blocks = -(-len(candidates) // work.shard_size)
    settings: dict[str, Any] = {"step": "caption", "model": model, "data": data_fingerprint(candidates), "seed": seed}
    given = m.info.get("prompt", "") if prompt is None else prompt
    begin = m.tokenizer.decode(m.tokenizer.encode([given], m.positions)[0])  # as it will be written
    settings |= {"round": round_, "prompt": prompt, **work.settings(), **vars(how)}

    def lines(block: int) -> Iterator[Line]:
        problems = _Problems(candidates, block, work)
        for number, batch in enumerate(_batches(m, candidates, block, work)):
            yield from problems.of(batch)
            readable = [one for one in batch if not one.problem]
            own_seed = stable_hash(seed, block, number) if how.sample else None
            with work.autocast(m.device):
                written = m.write(
                    [one.pixels for one in readable], prompt, how, batch_size=work.batch_size, seed=own_seed
                )
            for one, several in zip(readable, written, strict=True):
                known = {_plain(candidate.text) for candidate in one.texts}
                for new in several:
                    text = new.text.removeprefix(begin).strip()
                    if (plain := _plain(text)) and plain not in known:
                        known.add(plain)
                        about = {"image": one.path, "text": text, "source": SYNTHETIC, "round": round_}
                        yield about | {"model": model, "log_prob": round(new.log_prob, 5)}

    for number in write_shards(folder, settings, blocks, lines):
        progress(number)


def _plain(text: str) -> str:
    """A text as it is compared: `A dog.` repeats `a dog`."""
    return " ".join("".join(c if c.isalnum() else " " for c in text.lower()).split())


# ---- filter ----------------------------------------------------------------------------------------------------------


def score(
    m: Predictor,
    candidates: Candidates,
    folder: Path,
    model: str,
    work: Work | None = None,
    progress: Progress = lambda number: None,
) -> None:
    """Scores every text of every image: probability of a match, and cosine of the features.

    An image is encoded once, and its texts lie side by side on the query axis.

    Args:
        m: the filter; `model` is its fingerprint.
        work: shards, batches, precision.

    Raises:
        ShardError: `folder` was begun with other settings.
    """
    work = work or Work()
    blocks = -(-len(candidates) // work.shard_size)
    settings = {"step": "score", "model": model, "data": data_fingerprint(candidates), **work.settings()}

    def lines(block: int) -> Iterator[Line]:
        problems = _Problems(candidates, block, work)
        for batch in _batches(m, candidates, block, work):
            yield from problems.of(batch)
            told = [one for one in batch if one.texts and not one.problem]
            texts = [[text.text for text in one.texts] for one in told]
            with work.autocast(m.device):
                found = match_groups(m, [one.pixels for one in told], texts)
            for one, scores in zip(told, found, strict=True):
                for text, (match, cosine) in zip(one.texts, scores, strict=True):
                    about = {"image": one.path, "text": text.text, "source": text.source, "round": text.round}
                    yield about | {"match": round(match, 6), "itc": round(cosine, 6), "model": model}

    for number in write_shards(folder, settings, blocks, lines):
        progress(number)


@dataclass
class Opened:
    """An image of the data with its texts, or what is wrong with it."""

    path: str
    texts: list[Candidate]
    pixels: Tensor = field(default_factory=lambda: torch.empty(0))  # (3, S, S)
    problem: str = ""


def _open(m: Predictor, path: str, texts: list[Candidate]) -> Opened:
    try:
        return Opened(path, texts, m.transform(open_image(path)))
    except UnreadableImage as error:
        return Opened(path, texts, problem=str(error))


def _batches(m: Predictor, candidates: Candidates, block: int, how: Work) -> Iterator[list[Opened]]:
    """The images of a block in batches; the next one is opened by other threads while a batch is worked on."""
    end = min(len(candidates), (block + 1) * how.shard_size)
    waiting: deque[list[Future[Opened]]] = deque()
    with ThreadPoolExecutor(how.workers) as pool:
        for start in range(block * how.shard_size, end, how.batch_size):
            numbers = range(start, min(end, start + how.batch_size))
            waiting.append([pool.submit(_open, m, candidates.image_path(i), candidates[i]) for i in numbers])
            if len(waiting) > 1:
                yield [future.result() for future in waiting.popleft()]
        while waiting:
            yield [future.result() for future in waiting.popleft()]


class _Problems:
    """Lines on the unreadable images of a block; TooManySkipped before a shard of little else counts as written."""

    def __init__(self, candidates: Candidates, block: int, work: Work):
        self.images = min(work.shard_size, len(candidates) - block * work.shard_size)
        self.most = min(max(10, int(work.max_skipped_fraction * self.images)), self.images - 1)
        self.count = 0

    def of(self, batch: list[Opened]) -> Iterator[Line]:
        for one in batch:
            if one.problem:
                self.count += 1
                if self.count > self.most:
                    raise TooManySkipped(
                        f"{self.count} of a shard's {self.images} images could not be read, the last being {one.path} "
                        f"({one.problem}). Is image_root right? `max_skipped_fraction` says how many are tolerated"
                    )
                yield {"image": one.path, "problem": one.problem}
