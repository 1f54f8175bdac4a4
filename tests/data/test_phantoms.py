"""Phantoms: everything follows from the seed; captions, boxes and questions agree with the image."""

import json
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from blip.data.phantoms import (
    BODIES,
    BRIGHTNESSES,
    POSITIONS,
    SHAPES,
    SIDES,
    SIZES,
    draw_opposites,
    records,
    write_phantoms,
)

LESION = re.compile(
    rf"a ({'|'.join(SIZES)}) ({'|'.join(BRIGHTNESSES)}) ({'|'.join(SHAPES)}) lesion "
    rf"in the ({'|'.join(POSITIONS)}) ({'|'.join(SIDES)})"
)
OTHER_SIDE = {"left": "right", "right": "left"}
Attributes = tuple[str, ...]  # size, brightness, shape, position, side


def read(caption: str) -> tuple[str, list[Attributes]]:
    """(body, lesions) of a caption, which must hold nothing else."""
    body, rest = caption.split(" with ", 1)
    found = [LESION.fullmatch(part) for part in rest.split(" and ")]
    assert body in BODIES and all(found), caption
    return body, [match.groups() for match in found if match]


def attributes(lesion: dict) -> Attributes:
    return tuple(lesion[name] for name in ("size", "brightness", "shape", "position", "side"))


@pytest.fixture(scope="module")
def drawn() -> list[tuple[dict, np.ndarray]]:
    """200 phantoms with their pixels."""
    return [(record, np.asarray(image)) for record, image in records(200, seed=5, image_size=64)]


@pytest.fixture(scope="module")
def noisy() -> list[dict]:
    """1,000 records of which 30 % have a wrong caption."""
    return [record for record, _ in records(1000, seed=2, image_size=16, noise=0.3)]


def test_follows_from_the_seed(drawn: list) -> None:
    again = records(20, seed=5, image_size=64)
    for (record, image), (first, pixels) in zip(again, drawn, strict=False):
        assert record == first
        assert np.array_equal(image, pixels)
    other = [record for record, _ in records(20, seed=6, image_size=64)]
    assert sum(one == two for one, (two, _) in zip(other, drawn, strict=False)) < 3


def test_longer_set_begins_with_the_shorter_one(tmp_path: Path) -> None:
    short, long = (write_phantoms(tmp_path / str(n), n, seed=1, noise=0.5, image_size=24) for n in (5, 9))
    first, second = (json.loads(path.read_text()) for path in (short, long))
    assert (len(first), len(second)) == (5, 9)
    assert second[:5] == first
    for record in first:
        assert (short.parent / record["image"]).read_bytes() == (long.parent / record["image"]).read_bytes()


def test_files_are_what_training_reads(tmp_path: Path) -> None:
    path = write_phantoms(tmp_path, 3, image_size=32)
    for record in json.loads(path.read_text()):
        with Image.open(path.parent / record["image"]) as image:
            assert (image.mode, image.size) == ("L", (32, 32))


def test_caption_is_true_to_the_lesions(drawn: list) -> None:
    for record, _ in drawn:
        body, lesions = read(record["caption"])
        assert body == record["body"]
        assert lesions == [attributes(lesion) for lesion in record["lesions"]]
        places = [lesion[3:] for lesion in lesions]
        assert len(set(places)) == len(places) <= 3
        order = [(POSITIONS.index(position), SIDES.index(side)) for position, side in places]
        assert order == sorted(order)


def test_everything_that_can_be_drawn_is_drawn(drawn: list) -> None:
    seen = Counter(value for record, _ in drawn for lesion in record["lesions"] for value in attributes(lesion))
    assert set(seen) == {*SIZES, *BRIGHTNESSES, *SHAPES, *POSITIONS, *SIDES}
    assert min(seen.values()) > 50
    assert {len(record["lesions"]) for record, _ in drawn} == {1, 2, 3}
    assert {record["body"] for record, _ in drawn} == set(BODIES)


def grey_of(pixels: np.ndarray, box: list[int], lesion: dict) -> float:
    """The lesion's grey, read in the middle of its box or, for a ring, in its band at the middle of the left edge."""
    left, top, right, bottom = box
    x, y = (left + right) // 2, (top + bottom) // 2
    if lesion["shape"] != "ring":
        return float(pixels[y - 1 : y + 1, x - 1 : x + 1].mean())
    band = pixels[y - 1 : y + 1, left : left + max(2, (right - left) // 4)].mean(axis=0)
    return float(band.max() if lesion["brightness"] == "bright" else band.min())


def as_bright_as_said(pixels: np.ndarray, box: list[int], lesion: dict) -> bool:
    """Organs lie between the two: 80 to 160, the skull and the spine about 200."""
    grey = grey_of(pixels, box, lesion)
    return grey > 190 if lesion["brightness"] == "bright" else grey < 60


def test_boxes_hold_bright_or_dark_pixels(drawn: list) -> None:
    for record, pixels in drawn:
        for lesion in record["lesions"]:
            left, top, right, bottom = lesion["box"]
            assert 0 <= left < right <= 64 and 0 <= top < bottom <= 64
            assert as_bright_as_said(pixels, lesion["box"], lesion), (record["image"], lesion)


def test_boxes_lie_where_the_caption_says_and_have_its_size(drawn: list) -> None:
    for record, _ in drawn:
        for lesion in record["lesions"]:
            left, top, right, bottom = lesion["box"]
            assert lesion["side"] == ("left" if (left + right) / 2 < 32 else "right")
            assert lesion["position"] == POSITIONS[int((top + bottom) / 2 / 64 * 3)]
            assert (right - left > 11) == (lesion["size"] == "large")


def test_flip_makes_captions_wrong(drawn: list) -> None:
    symmetric = 0
    for record, pixels in drawn:
        _, lesions = read(record["caption"])
        mirrored = {(*lesion[:4], OTHER_SIDE[lesion[4]]) for lesion in lesions}
        symmetric += mirrored == set(lesions)
        for lesion in record["lesions"]:  # the picture really shows it on the other side
            left, top, right, bottom = lesion["box"]
            flipped = [64 - right, top, 64 - left, bottom]
            if lesion["shape"] != "ring":
                assert as_bright_as_said(pixels[:, ::-1], flipped, lesion)
    assert symmetric <= 2


def test_noise_share_and_kinds(noisy: list) -> None:
    kinds = Counter(record["noise"] for record in noisy)
    assert set(kinds) == {"none", "other", "attribute"}
    assert 250 < 1000 - kinds["none"] < 350  # four standard deviations are 58
    assert abs(kinds["other"] - kinds["attribute"]) < 70
    assert all("noise" not in record for record, _ in records(3))
    assert all(record["noise"] != "none" for record, _ in records(20, image_size=16, noise=1.0))


def test_wrong_captions_are_wrong_and_the_truth_is_kept(noisy: list) -> None:
    for record in noisy:
        truth = read(record["true_caption"])
        assert truth[1] == [attributes(lesion) for lesion in record["lesions"]]
        assert (record["caption"] == record["true_caption"]) == (record["noise"] == "none")
        said = read(record["caption"])
        assert (set(said[1]) != set(truth[1]) or said[0] != truth[0]) == (record["noise"] != "none")


def test_another_caption_that_happens_to_be_true_is_drawn_again() -> None:
    """One lesion: 288 captions are possible, so that the truth comes up several times in these draws."""
    for record, _ in records(2400, seed=3, image_size=16, max_lesions=1, noise=1.0):
        assert record["caption"] != record["true_caption"]


def test_attribute_noise_changes_one_word(noisy: list) -> None:
    changed = Counter()
    for record in noisy:
        if record["noise"] == "attribute":
            (body, said), (true_body, truth) = read(record["caption"]), read(record["true_caption"])
            assert body == true_body and len(said) == len(truth)
            different = set(said) ^ set(truth)
            assert len(different) == 2
            one, two = different
            fields = [i for i in range(5) if one[i] != two[i]]
            assert len(fields) == 1
            changed[fields[0]] += 1
            assert len({lesion[3:] for lesion in said}) == len(said), "two lesions in one place"
    assert set(changed) == set(range(5))


def test_noise_leaves_images_and_questions_alone() -> None:
    for (clean, image), (noisy, noisy_image) in zip(records(30, 4, 24), records(30, 4, 24, noise=0.5), strict=True):
        assert np.array_equal(image, noisy_image)
        assert (clean["caption"], clean["questions"]) == (noisy["true_caption"], noisy["questions"])


def answers(record: dict) -> Iterator[tuple[str, str]]:
    """The right answer to every question that can be asked, from the lesions alone."""
    lesions = record["lesions"]
    yield "what part of the body is shown?", record["body"]
    yield "how many lesions are there?", str(len(lesions))
    for side in SIDES:
        yield f"is there a lesion on the {side}?", "yes" if any(lesion["side"] == side for lesion in lesions) else "no"
    for lesion in lesions:
        place = f"the {lesion['position']} {lesion['side']}"
        yield f"what shape is the lesion in {place}?", lesion["shape"]
        yield f"what size is the lesion in {place}?", lesion["size"]
        yield f"is the lesion in {place} bright?", "yes" if lesion["brightness"] == "bright" else "no"
    if len(lesions) == 1:
        yield "where is the lesion?", f"{lesions[0]['position']} {lesions[0]['side']}"


def test_questions_have_the_right_answer(drawn: list) -> None:
    for record, _ in drawn:
        asked = [(q["question"], q["answer"]) for q in record["questions"]]
        assert sorted(asked) == sorted(answers(record))
        assert len({question for question, _ in asked}) == len(asked)
        for question in record["questions"]:
            assert (question["answer_type"] == "closed") == (question["answer"] in ("yes", "no"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": 0}, "at least one"),
        ({"image_size": 8}, "16 pixels"),
        ({"max_lesions": 7}, "places"),
        ({"noise": -1}, "share"),
    ],
)
def test_refuses_what_cannot_be_drawn(options: dict, message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        write_phantoms(tmp_path / "no", **{"count": 1, **options})
    assert not (tmp_path / "no").exists()


def test_opposites_differ_in_the_side_alone() -> None:
    for seed in range(20):
        (left, left_image), (right, right_image) = draw_opposites(np.random.default_rng(seed), image_size=48)
        assert left.caption().replace("left", "right") == right.caption() != left.caption()
        differs = np.asarray(left_image) != np.asarray(right_image)
        for (phantom,) in (left.lesions, right.lesions):
            x0, y0, x1, y1 = phantom.box
            differs[y0 - 1 : y1 + 1, x0 - 1 : x1 + 1] = False
        assert not differs.any()
