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
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blip.data.candidates import SYNTHETIC, Candidate, Candidates
from blip.data.loader import stable_hash
from blip.data.shards import Line, write_shards
from blip.data.transforms import UnreadableImage, open_image
from blip.decoding import Decoding
from blip.predictor import Predictor
from blip.scoring import match_groups

Progress = Callable[[int], None]  # is told of each finished shard


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
    shard_size: int = 1024,
    batch_size: int = 32,
    progress: Progress = lambda number: None,
) -> None:
    """Writes texts for every image of `candidates`; `how.num_return` an image, without repetitions.

    Samples follow from `seed` and the shard, so that they are the same whatever the number of processes.

    Args:
        m: the captioner; `model` is its fingerprint.
        how: nucleus sampling, or beams.
        round_: which round of CapFilt this is.
        prompt: as in `Predictor.write`.
        shard_size: images a shard.

    Raises:
        ShardError: `folder` was begun with other settings.
    """
    blocks = -(-len(candidates) // shard_size)
    settings: dict[str, Any] = {"step": "caption", "model": model, "data": data_fingerprint(candidates), "seed": seed}
    settings |= {"round": round_, "prompt": prompt, "shard_size": shard_size, "batch_size": batch_size, **vars(how)}

    def lines(block: int) -> Iterator[Line]:
        for number, batch in enumerate(_batches(candidates, block, shard_size, batch_size)):
            yield from _problems(batch)
            readable = [one for one in batch if not one.problem]
            own_seed = stable_hash(seed, block, number) if how.sample else None
            written = m.write([one.image for one in readable], prompt, how, batch_size, own_seed)
            for one, several in zip(readable, written, strict=True):
                known = {_plain(candidate.text) for candidate in one.texts}
                for new in several:
                    if (plain := _plain(new.text)) and plain not in known:
                        known.add(plain)
                        about = {"image": one.path, "text": new.text, "source": SYNTHETIC, "round": round_}
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
    shard_size: int = 1024,
    batch_size: int = 32,
    progress: Progress = lambda number: None,
) -> None:
    """Scores every text of every image: probability of a match, and cosine of the features.

    An image is encoded once, and its texts lie side by side on the query axis.

    Args:
        m: the filter; `model` is its fingerprint.
        shard_size: images a shard.

    Raises:
        ShardError: `folder` was begun with other settings.
    """
    blocks = -(-len(candidates) // shard_size)
    settings = {"step": "score", "model": model, "data": data_fingerprint(candidates), "shard_size": shard_size}

    def lines(block: int) -> Iterator[Line]:
        for batch in _batches(candidates, block, shard_size, batch_size):
            yield from _problems(batch)
            told = [one for one in batch if one.texts and not one.problem]
            found = match_groups(m, [one.image for one in told], [[text.text for text in one.texts] for one in told])
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
    image: Any = None
    problem: str = ""


def _batches(candidates: Candidates, block: int, shard_size: int, batch_size: int) -> Iterator[list[Opened]]:
    """The images of a block in batches."""
    end = min(len(candidates), (block + 1) * shard_size)
    for start in range(block * shard_size, end, batch_size):
        batch = []
        for index in range(start, min(end, start + batch_size)):
            one = Opened(candidates.image_path(index), candidates[index])
            try:
                one.image = open_image(one.path)
            except UnreadableImage as error:
                one.problem = str(error)
            batch.append(one)
        yield batch


def _problems(batch: list[Opened]) -> Iterator[Line]:
    for one in batch:
        if one.problem:
            yield {"image": one.path, "problem": one.problem}
