"""What a predictor takes for one image: an array or bytes are one image, read by the rules of files."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import blip
from blip.data.arrays import array_image
from blip.data.images import open_image
from blip.errors import InputError
from blip.inference.inputs import as_list
from blip.inference.predictor import Predictor
from blip.inference.results import Answer

GREY = np.arange(600, dtype=np.uint8).reshape(20, 30)
COLOUR = np.dstack([GREY, GREY[::-1], GREY[:, ::-1]])


@pytest.fixture(scope="module")
def predictor(tiny_checkpoint: Path) -> Predictor:
    return blip.load(tiny_checkpoint, device="cpu")


def bytes_of(image: Image.Image, form: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form)
    return buffer.getvalue()


ONE = {
    "grey": (GREY, Image.fromarray(GREY)),
    "grey with a channel": (GREY[:, :, None], Image.fromarray(GREY)),
    "colour": (COLOUR, Image.fromarray(COLOUR)),
    "alpha": (np.dstack([COLOUR, GREY]), Image.fromarray(np.dstack([COLOUR, GREY]))),
    "16 bits": (GREY.astype(np.uint16) * 256, Image.fromarray(GREY.astype(np.uint16) * 256)),
    "Hounsfield units": (GREY.astype(np.float32) * 10 - 1000, Image.fromarray(GREY.astype(np.float32) * 10 - 1000)),
    "shares": (GREY / 255, Image.fromarray(GREY)),
    "half precision": ((GREY / 255).astype(np.float16), Image.fromarray(GREY)),
    "black and white": (GREY > 99, Image.fromarray((GREY > 99).astype(np.uint8) * 255)),
    "another order of axes": (np.asfortranarray(COLOUR), Image.fromarray(COLOUR)),
    "colours as shares": (COLOUR / 255, Image.fromarray(COLOUR)),
    "bytes": (bytes_of(Image.fromarray(COLOUR)), Image.fromarray(COLOUR)),
    "a buffer": (bytearray(bytes_of(Image.fromarray(GREY))), Image.fromarray(GREY)),
}


@pytest.mark.parametrize("given, same", ONE.values(), ids=ONE)
def test_it_is_one_image_with_the_pixels_that_a_file_has(given: object, same: Image.Image) -> None:
    (image,) = as_list(given)  # type: ignore[arg-type]
    assert np.array_equal(np.asarray(open_image(image)), np.asarray(open_image(same)))


def test_an_open_file_is_one_image(tmp_path: Path) -> None:
    Image.fromarray(COLOUR).save(tmp_path / "a.png")
    with open(tmp_path / "a.png", "rb") as file:
        (image,) = as_list(file)  # type: ignore[arg-type]
        assert np.array_equal(np.asarray(open_image(image)), COLOUR)


def test_16_bits_in_colour_keep_the_ratio_of_their_colours() -> None:
    image = np.asarray(array_image(COLOUR.astype(np.uint16) * 200))
    assert image.shape == COLOUR.shape and image.dtype == np.uint8
    assert np.abs(image.astype(int) - COLOUR.astype(int)).max() <= 3  # the ends of the window are percentiles


def test_arrays_of_four_axes_and_lists_are_several() -> None:
    assert [image.size for image in as_list(np.stack([COLOUR, COLOUR, COLOUR]))] == [(30, 20)] * 3
    assert len(as_list([GREY, COLOUR, "a.png", bytes_of(Image.fromarray(GREY))])) == 4


def test_tensors_are_ready_input(predictor: Predictor) -> None:
    ready = predictor.transform(Image.fromarray(COLOUR))
    assert [one.shape for one in as_list(ready)] == [ready.shape]
    assert len(as_list(torch.stack([ready, ready]))) == 2
    assert predictor.caption(ready) == predictor.caption([ready])


@pytest.mark.parametrize(
    "wrong",
    [
        np.zeros((3, 20, 30)), np.zeros(5), np.zeros((2, 3, 20, 30, 3)), np.zeros((2, 20, 30, 7)), np.zeros((0, 9)),
        np.zeros((4, 4), np.complex64), torch.zeros(20, 30), torch.zeros(20, 30, 3), [np.zeros((9, 20, 30))],
    ],
    ids=lambda wrong: f"{type(wrong).__name__} {getattr(wrong, 'shape', '')}",
)  # fmt: skip
def test_other_shapes_are_told(wrong: object) -> None:
    with pytest.raises(InputError, match=r"shape|is no image"):
        as_list(wrong)  # type: ignore[arg-type]


def test_arrays_of_texts_stay_texts() -> None:
    assert as_list(np.array(["left lung", "normal"])) == ["left lung", "normal"]  # type: ignore[arg-type]


def test_every_verb_of_a_predictor_takes_an_array_for_one_image(predictor: Predictor) -> None:
    picture = Image.fromarray(COLOUR)
    assert predictor.caption(COLOUR) == predictor.caption(picture)
    texts = ["small left effusion", "normal"]
    assert torch.equal(predictor.encode_image(COLOUR), predictor.encode_image(picture))
    assert torch.equal(predictor.match_probability(COLOUR, texts), predictor.match_probability(picture, texts))
    assert len(blip.explain_pairs(predictor, COLOUR, texts)) == 2
    assert torch.equal(blip.patch_lens(predictor, COLOUR, texts), blip.patch_lens(predictor, [picture], texts))


# ---- answers ---------------------------------------------------------------------------------------------------------


def test_an_answer_prints_its_best_five() -> None:
    answer = Answer("axial", 0.5, [("axial", 0.5), *((f"<b>{i}", 0.1 - i / 100) for i in range(8))])
    lines = str(answer).splitlines()
    assert len(lines) == 5 and lines[0] == "axial  0.5000" and lines[4].startswith("<b>3")
    assert answer.text == "axial" and "8 others" in repr(answer) and "<b>" not in repr(answer)
    page = answer._repr_html_()
    assert page.count("<tr>") == 6 and "&lt;b&gt;0" in page and "<b>" not in page


def test_a_generated_answer_prints_itself() -> None:
    assert str(Answer("left\x1b[2J lung", 0.25, [])) == "left\\x1b[2J lung  0.2500"
