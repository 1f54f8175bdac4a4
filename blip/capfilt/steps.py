"""CapFilt (Li et al. 2022, section 3.3): a captioner writes texts for images, a filter removes those that do not match.

    caption   one or several texts for each image, by nucleus sampling
    score     each text of an image, from the web or synthetic, by matching (ITM) and contrast (ITC)
    merge     texts that pass the threshold, and those written by people, become annotations of the next pre-training

Captioner and filter are fine-tuned separately: a filter that shares the captioner's weights is biased towards its own
captions. The steps write shards (`data/jsonl_shards.py`), by any number of processes. Their lines have

    image, text, source (web, synthetic), round, model (of the captioner), log_prob    of `caption`
    image, text, source, round, match, itc, model (of the filter)                      of `score`
    image, problem                                                                     where an image could not be read

and in place of `image`, of an item of several pictures, `images`: its texts are written and scored with all of them.

Shapes: S pixels on each side of the square that the image encoder takes, F pictures of an item.
"""

import hashlib
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from blip.capfilt.candidates import SYNTHETIC, Candidate, Candidates, named
from blip.data.image_bytes import UnreadableImage
from blip.data.jsonl_shards import Line, write_jsonl_shards
from blip.data.pictures import eval_pixels
from blip.data.skipped import TooManySkipped
from blip.errors import InputError
from blip.hardware.precision import AUTO, PRECISIONS, choose_precision
from blip.hashing import stable_hash
from blip.inference.inputs import OneImage, Study
from blip.inference.predictor import Predictor
from blip.inference.scoring import match_groups
from blip.models.decoding import Decoding

Progress = Callable[[int], None]  # called with the number of each finished shard


@dataclass
class ShardOptions:
    """How the images are divided into shards and batches. Captions and scores depend on the first three."""

    shard_size: int = 1024  # images
    batch_size: int = 32  # images
    precision: str = "fp32"  # one of `PRECISIONS`, or auto
    num_workers: int = 2  # threads that open images
    max_skipped_fraction: float = 0.05  # of a shard's images; more unreadable ones, above ten, end the step

    def __post_init__(self) -> None:
        if min(self.shard_size, self.batch_size, self.num_workers) < 1:
            raise InputError("shard_size, batch_size and num_workers need to be 1 or more")
        if self.precision not in (*PRECISIONS, AUTO):
            raise InputError(f"precision is {self.precision!r}; it can be {', '.join(PRECISIONS)} or {AUTO}")

    def settings(self, device: torch.device) -> dict[str, Any]:
        """What captions and scores depend on, for the settings of the shards. InputError as in `choose_precision`."""
        precision = choose_precision(self.precision, device)
        return {"shard_size": self.shard_size, "batch_size": self.batch_size, "precision": precision}

    def images(self, shard: int, count: int) -> range:
        """The numbers of a shard's images, of `count` in all."""
        return range(shard * self.shard_size, min(count, (shard + 1) * self.shard_size))

    def count(self, candidates: Candidates) -> int:
        """How many shards hold all images."""
        return -(-len(candidates) // self.shard_size)


@dataclass
class CaptionOptions:
    """What is written for each image: `Decoding.num_return` texts. Samples follow from `seed` and the image's number,
    so that they are the same for any number of processes and in any batch."""

    decoding: Decoding  # nucleus sampling, or beams
    seed: int = 0
    round: int = 1  # which round of CapFilt this is
    prompt: str | None = None  # as in `Predictor.write`; it is not part of the texts


def data_fingerprint(candidates: Candidates) -> str:
    """12 hexadecimal digits from the paths of all images and their texts: shards of other data are not continued."""
    digest = hashlib.sha256(f"{len(candidates)} {candidates.texts}".encode())
    for index in range(len(candidates)):
        digest.update("\0".join(candidates.image_paths(index)).encode("utf-8", "surrogateescape"))
        for candidate in candidates[index]:
            digest.update(f"\0{candidate.text}\0{candidate.source}{candidate.round}".encode())
    return digest.hexdigest()[:12]


def _views(predictor: Predictor) -> dict[str, Any]:
    """How scans are shown, for the settings of the shards; nothing where each is shown as its file says."""
    limits = predictor.limits
    shown = {"window": limits.window, "channels": list(limits.channels)}
    return {name: value for name, value in shown.items() if value}


def caption_decoding(
    captions_per_image: int = 1,
    beams: int = 0,
    top_p: float = 0.9,
    *,
    max_new_tokens: int = 30,
    min_new_tokens: int = 0,
) -> Decoding:
    """Nucleus sampling, which the paper prefers, or with `beams` the best captions of a search with that many beams."""
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
    predictor: Predictor,
    candidates: Candidates,
    folder: Path,
    *,
    model_fingerprint: str,
    options: CaptionOptions,
    shards: ShardOptions | None = None,
    progress: Progress = lambda number: None,
    overwrite: bool = False,
) -> None:
    """Writes texts for each image of `candidates`, without repetitions and without those that the image has already.

    Args:
        predictor: the captioner; `model_fingerprint` identifies its weights in every line.
        folder: of the shards to write, or to continue.
        options: what is written.
        shards: shards, batches, precision.
        overwrite: shards of other settings are replaced.

    Raises:
        ShardError: `folder` was begun with other settings.
        TooManySkipped: more unreadable images in a shard than `ShardOptions.max_skipped_fraction`.
    """
    shards = shards or ShardOptions()
    settings: dict[str, Any] = {"step": "caption", "model": model_fingerprint, "data": data_fingerprint(candidates)}
    settings |= {"seed": options.seed, "round": options.round, "prompt": options.prompt}
    settings |= {**shards.settings(predictor.device), **vars(options.decoding), **_views(predictor)}
    prompt = predictor.info.get("prompt", "") if options.prompt is None else options.prompt
    # what every text begins with, in the spelling of the tokenizer
    beginning = predictor.tokenizer.decode(predictor.tokenizer.encode([prompt], predictor.positions)[0])

    def lines(shard: int) -> Iterator[Line]:
        for images, problems in _batches(predictor, candidates, shard, options=shards):
            yield from problems
            seeds = [stable_hash("captions", options.seed, image.number) for image in images]
            pixels = [image.pixels for image in images]
            with predictor.in_precision(shards.precision):
                written = predictor.write(
                    pixels, options.prompt, options.decoding, batch_size=shards.batch_size, seed=seeds
                )
            for image, captions in zip(images, written, strict=True):
                known = {_comparable(text.text) for text in image.texts}
                for new in captions:
                    text = new.text.removeprefix(beginning).strip()
                    if (comparable := _comparable(text)) and comparable not in known:
                        known.add(comparable)
                        line = {**named(image.paths), "text": text, "source": SYNTHETIC, "round": options.round}
                        yield line | {"model": model_fingerprint, "log_prob": round(new.log_prob, 5)}

    count = shards.count(candidates)
    for number in write_jsonl_shards(folder, settings, count, make_lines=lines, overwrite=overwrite):
        progress(number)


def _comparable(text: str) -> str:
    """A text without case and punctuation: `A dog.` repeats `a dog`."""
    return " ".join("".join(c if c.isalnum() else " " for c in text.lower()).split())


# ---- filter ----------------------------------------------------------------------------------------------------------


def score(
    predictor: Predictor,
    candidates: Candidates,
    folder: Path,
    *,
    model_fingerprint: str,
    shards: ShardOptions | None = None,
    progress: Progress = lambda number: None,
    overwrite: bool = False,
) -> None:
    """Scores each text of each image: probability of a match, and cosine of the features.

    An image is encoded once, and its texts lie side by side on the query axis.

    Args:
        predictor: the filter; `model_fingerprint` identifies its weights in every line.
        folder: of the shards to write, or to continue.
        shards: shards, batches, precision.
        overwrite: shards of other settings are replaced.

    Raises:
        ShardError: `folder` was begun with other settings.
        TooManySkipped: more unreadable images in a shard than `ShardOptions.max_skipped_fraction`.
    """
    shards = shards or ShardOptions()
    settings = {"step": "score", "model": model_fingerprint, "data": data_fingerprint(candidates)}
    settings |= {**shards.settings(predictor.device), **_views(predictor)}

    def lines(shard: int) -> Iterator[Line]:
        for images, problems in _batches(predictor, candidates, shard, options=shards):
            yield from problems
            images = [image for image in images if image.texts]
            texts = [[text.text for text in image.texts] for image in images]
            with predictor.in_precision(shards.precision):
                scores = match_groups(predictor, [image.pixels for image in images], texts)
            for image, several in zip(images, scores, strict=True):
                for text, (match, cosine) in zip(image.texts, several, strict=True):
                    line = {**named(image.paths), "text": text.text, "source": text.source, "round": text.round}
                    yield line | {"match": round(match, 6), "itc": round(cosine, 6), "model": model_fingerprint}

    count = shards.count(candidates)
    for number in write_jsonl_shards(folder, settings, count, make_lines=lines, overwrite=overwrite):
        progress(number)


# ---- opening images --------------------------------------------------------------------------------------------------


@dataclass
class OpenedImage:
    """An image of the candidates, or an item of several, with its texts, or the problem that makes it unreadable."""

    number: int  # among the candidates
    paths: list[str]
    texts: list[Candidate]
    pixels: OneImage = field(default_factory=lambda: torch.empty(0))  # (3, S, S); of several a study of as many
    problem: str = ""


def _open(predictor: Predictor, candidates: Candidates, number: int) -> OpenedImage:
    paths, texts = candidates.image_paths(number), candidates[number]
    try:
        pixels = eval_pixels(paths, predictor.transform, predictor.limits)
    except UnreadableImage as error:
        return OpenedImage(number, paths, texts, problem=str(error))
    return OpenedImage(number, paths, texts, pixels if pixels.dim() == 3 else Study(pixels))


def _batches(
    predictor: Predictor, candidates: Candidates, shard: int, *, options: ShardOptions
) -> Iterator[tuple[list[OpenedImage], list[Line]]]:
    """Batches of (readable images of a shard, lines about the unreadable ones).

    The next batch is opened by other threads while one is being processed. TooManySkipped ends a shard of little but
    unreadable images before it is written.
    """
    numbers = options.images(shard, len(candidates))
    most = min(max(10, int(options.max_skipped_fraction * len(numbers))), len(numbers) - 1)
    unreadable = 0
    for batch in _opened(predictor, candidates, numbers, options=options):
        problems = []
        for image in batch:
            if image.problem:
                unreadable += 1
                if unreadable > most:
                    raise TooManySkipped(
                        f"{unreadable} of a shard's {len(numbers)} images could not be read, the last being "
                        f"{image.paths[0]} ({image.problem}). Is image_root right? `max_skipped_fraction` sets how "
                        "many are tolerated"
                    )
                problems.append({**named(image.paths), "problem": image.problem})
        yield [image for image in batch if not image.problem], problems


def _opened(
    predictor: Predictor, candidates: Candidates, numbers: range, *, options: ShardOptions
) -> Iterator[list[OpenedImage]]:
    """The images in batches, two of which are being opened at any time."""
    waiting: deque[list[Future[OpenedImage]]] = deque()
    with ThreadPoolExecutor(options.num_workers) as pool:
        for start in range(0, len(numbers), options.batch_size):
            batch = numbers[start : start + options.batch_size]
            waiting.append([pool.submit(_open, predictor, candidates, i) for i in batch])
            if len(waiting) > 1:
                yield [future.result() for future in waiting.popleft()]
        while waiting:
            yield [future.result() for future in waiting.popleft()]
