"""Whole sets of questions: answer lists, splits that keep images together, images in two sets, majority answers."""

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from functools import cached_property

import numpy as np

from blip.data.image_bytes import UnreadableImage, is_reference, read_image
from blip.data.questions import Questions
from blip.data.sets.questions import Question
from blip.errors import InputError
from blip.files import ReadError, read_json, read_text
from blip.hashing import stable_hash


def read_answers(path: str) -> list[str]:
    """The different answers of a file: a JSON list of texts, or a text file of one a line.

    Raises:
        InputError: the file cannot be read, or is of another form.
    """
    try:
        answers = read_json(path, list[str]) if path.endswith(".json") else read_text(path).splitlines()
    except ReadError as error:
        raise InputError(
            f"answer_file {path}: expected a JSON list of texts, or a text file of one a line ({error.problem})"
        ) from error
    return list(dict.fromkeys(answer.strip() for answer in answers if answer.strip()))


def answer_list(questions: Questions, min_count: int = 1) -> list[str]:
    """The different answers of a training set, most frequent first, equally frequent ones in alphabetical order.

    Lower-cased and with single blanks, as the tokenizer reads them. Each question counts an answer once.
    """
    counts: Counter[str] = Counter()
    for index in range(len(questions)):
        counts.update({" ".join(answer.lower().split()) for answer in questions[index].answers})
    return sorted((text for text, count in counts.items() if count >= min_count), key=lambda x: (-counts[x], x))


def split_by_image(questions: Questions, shares: Sequence[float], seed: int = 0) -> list[Questions]:
    """One part per share, as views: no image is in two of them, nor a patient or article where the set names them.

    Args:
        shares: of the questions, such as (0.8, 0.1, 0.1); their sum is 1.
        seed: of the split. Except near the limits of the shares, an image's part depends only on it and the image's
            name.
    """
    # no comparison with NaN is true
    if not shares or not (all(share >= 0 for share in shares) and abs(sum(shares) - 1) <= 1e-6):
        raise InputError(f"shares are {list(shares)}; they are 0 or more and sum to 1, such as [0.8, 0.1, 0.1]")
    groups: dict[str, list[int]] = {}
    contents = _contents(questions)
    for index in range(len(questions)):
        groups.setdefault(contents.get(questions.image_number(index)) or questions.group(index), []).append(index)
    order = sorted(groups, key=lambda group: stable_hash("split", seed, group))
    # a group belongs to the part in which its middle question falls
    ends = np.cumsum([len(groups[group]) for group in order])
    middles = (ends - np.asarray([len(groups[group]) for group in order]) / 2) / max(len(questions), 1)
    parts: list[list[int]] = [[] for _ in shares]
    for group, part in zip(order, np.searchsorted(np.cumsum(shares)[:-1], middles, side="right"), strict=True):
        parts[part] += groups[group]
    return [questions.view(sorted(part)) for part in parts]


def shared_images(train: Questions, test: Questions, by_content: bool = False) -> int:
    """How many images of `test` are also in `train`: compared by path, by an id that the set gives, by their bytes
    where they have one name in two folders or lie inside parquet files.

    `by_content` compares the bytes of all images, which also finds copies under other names.
    """
    in_train = set().union(*_identities(train, by_content).values())
    shared = {image for image, names in _identities(test, by_content).items() if names & in_train}
    return len(shared | _copies(train, test))


def _identities(questions: Questions, by_content: bool) -> dict[int, set[str]]:
    """Image number -> everything that identifies the image: its path, its id, the hash of its bytes."""
    contents = _contents(questions, by_content)
    identities: dict[int, set[str]] = {}
    for index in range(len(questions)):
        image = questions.image_number(index)
        if image not in identities:
            question = questions[index]
            identities[image] = {contents[image]} if image in contents else set()
            if not is_reference(question.image):
                identities[image].add(f"path {question.image}")
                if not question.image.endswith(question.image_id):  # else it is the name of the file in its folder
                    identities[image].add(f"id {question.image_id}")
    return identities


def _copies(train: Questions, test: Questions) -> set[int]:
    """The numbers of test images that have the name and the bytes of a training image in another folder.

    Only files of equal name and size are read.
    """
    trained, tested = _files(train), _files(test)
    known = set(trained.values())
    elsewhere = {image: path for image, path in tested.items() if path not in known}
    names = {os.path.basename(path) for path in known} & {os.path.basename(path) for path in elsewhere.values()}
    ours, theirs = _by_size(trained, names), _by_size(elsewhere, names)
    copies: set[int] = set()
    for key in ours.keys() & theirs.keys():
        hashes = {_hash(path) for path in ours[key].values()} - {""}
        copies |= {image for image, path in theirs[key].items() if _hash(path) in hashes}
    return copies


def _files(questions: Questions) -> dict[int, str]:
    """Image number -> path, of images that are files."""
    paths = {questions.image_number(index): questions.image_path(index) for index in range(len(questions))}
    return {image: path for image, path in paths.items() if not is_reference(path)}


def _by_size(files: dict[int, str], names: set[str]) -> dict[tuple[str, int], dict[int, str]]:
    """The files of these names: (name, bytes) -> image number -> path."""
    found: dict[tuple[str, int], dict[int, str]] = {}
    for image, path in files.items():
        if (name := os.path.basename(path)) in names and os.path.isfile(path):
            found.setdefault((name, os.path.getsize(path)), {})[image] = path
    return found


def _hash(path: str) -> str:
    """Of a file's bytes; "" where it cannot be read."""
    try:
        return "bytes " + hashlib.blake2b(read_image(path), digest_size=16).hexdigest()
    except UnreadableImage:
        return ""


def _contents(questions: Questions, all_images: bool = False) -> dict[int, str]:
    """Image number -> hash of its bytes, for images in parquet and arrow files, which have no name, or for all images.

    Unreadable images are left out.
    """
    hashes: dict[int, str] = {}
    seen = set()
    for index in range(len(questions)):
        image, path = questions.image_number(index), questions.image_path(index)
        if image not in seen and (all_images or is_reference(path)):
            seen.add(image)
            if content := _hash(path):
                hashes[image] = content
    return hashes


class TrainedOn:
    """The training questions as evaluations compare with them; what takes long is computed once in a run."""

    def __init__(self, train: Questions):
        self.train = train
        self._shared: dict[str, int] = {}  # by split

    def shared_images(self, split: str, test: Questions) -> int:
        """`shared_images` of the questions of a split, which stay the same."""
        if split not in self._shared:
            self._shared[split] = shared_images(self.train, test)
        return self._shared[split]

    def majority_answers(self, questions: Sequence[Question]) -> list[str]:
        """Without images: the most frequent training answer to the same question, else of all questions."""
        overall = self._majority.get(None, "")
        return [self._majority.get(question.question, overall) for question in questions]

    @cached_property
    def _majority(self) -> dict[str | None, str]:
        """The most frequent answer to each training question; to all of them under None."""
        counts: dict[str | None, Counter[str]] = {None: Counter()}
        for index in range(len(self.train)):
            question = self.train[index]
            for key in (question.question, None):
                counts.setdefault(key, Counter()).update(question.answers)
        return {key: count.most_common(1)[0][0] for key, count in counts.items() if count}
