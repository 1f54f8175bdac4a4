"""The pipeline `fast`: crops of torchvision's distribution, the pixels of whole images, upright, of any format."""

import io
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from blip.data import crops
from blip.data.augment import normalised, prepared
from blip.data.batches import Sample, collate
from blip.data.crops import Crop, open_crop
from blip.data.image_bytes import ImageLimits, UnreadableImage
from blip.data.images import open_image
from blip.data.training_images import FastImages, resized
from blip.data.transforms import STD, eval_transform

SIDE = 32


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """Shapes of several sizes, as photographs have them: more at low frequencies."""
    noise = np.random.default_rng(seed)
    total = np.zeros((height, width, 3))
    for cell, weight in ((64, 0.45), (16, 0.3), (4, 0.2)):
        small = noise.integers(0, 255, (max(2, height // cell), max(2, width // cell), 3), dtype=np.uint8)
        total += weight * np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC))
    return Image.fromarray(total.clip(0, 255).astype(np.uint8))


def encoded(image: Image.Image, kind: str = "JPEG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **({"quality": 95} if kind in ("JPEG", "MPO") else {}), **options)
    return file.getvalue()


def drawn(seed: int, scale: tuple[float, float] | None = (0.2, 1.0)) -> Crop:
    return Crop.draw(scale, np.random.default_rng(seed))


# ---- the crop --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(640, 480), (100, 100), (300, 40), (30, 400)])
@pytest.mark.parametrize("scale", [(0.2, 1.0), (0.5, 1.0), (0.05, 0.1)])
def test_crops_have_the_distribution_of_torchvision(size: tuple[int, int], scale: tuple[float, float]) -> None:
    count, (width, height) = 1500, size
    torch.manual_seed(0)
    theirs = v2.RandomResizedCrop(8, scale=scale)
    image, tops = torch.empty(3, height, width), []
    for _ in range(count):
        box = theirs.make_params([image])
        tops.append([box["left"], box["top"], box["left"] + box["width"], box["top"] + box["height"]])
    ours = np.array([drawn(seed, scale).box(size) for seed in range(count)], float)
    expected = np.array(tops, float)
    assert (ours[:, :2] >= 0).all() and (ours[:, 2:] <= size).all() and (ours[:, :2] < ours[:, 2:]).all()
    for measure in (
        lambda box: box[:, 0], lambda box: box[:, 1], lambda box: box[:, 2] - box[:, 0],
        lambda box: box[:, 3] - box[:, 1], lambda box: (box[:, 2] - box[:, 0]) * (box[:, 3] - box[:, 1]),
    ):  # fmt: skip
        one, other = np.sort(measure(ours)), np.sort(measure(expected))
        both = np.concatenate([one, other])
        shares = [np.searchsorted(x, both, side="right") / count for x in (one, other)]
        assert np.abs(shares[0] - shares[1]).max() < 1.95 * math.sqrt(2 / count)  # Kolmogorov and Smirnov, 0.001


def test_without_a_scale_the_whole_image_is_taken() -> None:
    assert drawn(0, None).box((7, 5)) == (0, 0, 7, 5)


# ---- pixels ----------------------------------------------------------------------------------------------------------


def of_whole_image(data: bytes, crop: Crop, side: int = SIDE) -> np.ndarray:
    """The crop as the pipeline `pil` makes it: the whole image, cut, resized."""
    image = open_image(data)
    return np.asarray(image.crop(crop.box(image.size)).resize((side, side), Image.Resampling.BICUBIC)).astype(float)


def by_pil(image: Image.Image, box: tuple[float, float, float, float], side: int) -> torch.Tensor:
    """The twin of `resized`, which also takes boxes with parts of pixels."""
    small = np.array(image.resize((side, side), Image.Resampling.BICUBIC, box=box))
    return torch.from_numpy(small[None] if small.ndim == 2 else small.transpose(2, 0, 1))


def as_rgb(pixels: torch.Tensor) -> np.ndarray:
    """(1 or 3, S, S) -> (S, S, 3)."""
    return pixels.expand(3, -1, -1).permute(1, 2, 0).numpy().astype(float)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "MPO", "WEBP"])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK", "P", "RGBA", "1", "I;16"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_crop_of_any_image_is_that_of_the_whole_one(kind: str, mode: str, orientation: int) -> None:
    image = picture(301, 203)
    image = Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 9) if mode == "I;16" else image
    image = image if mode == "I;16" else image.convert(mode)
    exif = Image.Exif()
    exif[0x0112] = orientation
    try:
        data = encoded(image, kind, exif=exif, **({"lossless": True} if kind == "WEBP" else {}))
    except (OSError, ValueError, KeyError):
        pytest.skip(f"{kind} does not hold {mode}")
    for seed in range(4):
        crop = drawn(seed)
        ours = by_pil(*open_crop(data, crop, SIDE), SIDE)
        assert ours.shape[1:] == (SIDE, SIDE)
        difference = np.abs(as_rgb(ours) - of_whole_image(data, crop))
        if kind in ("JPEG", "MPO") and mode != "CMYK":
            assert difference.mean() < (6 if mode == "1" else 1.5), seed  # 1: nothing but dots
            assert difference[1:-1, 1:-1].max() < (30 if mode == "1" else 9), seed
        else:  # equal, but for the outermost pixels, to which those beside the crop contribute
            assert difference[2:-2, 2:-2].max() <= 1, seed


@pytest.mark.parametrize(("size", "fraction"), [((900, 700), 8), ((203, 150), 4), ((111, 75), 2), ((60, 50), 1)])
def test_a_jpeg_is_decoded_at_the_fraction_that_the_crop_needs(
    size: tuple[int, int], fraction: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    monkeypatch.setattr(crops, "upright", lambda image: seen.append(image.size) or image)
    data = encoded(picture(*size))
    open_crop(data, Crop((0.99, 1.0), np.full((10, 4), 0.5)), SIDE)
    assert seen == [tuple(-(-side // fraction) for side in size)]


def test_large_photographs_differ_little() -> None:
    """At 1/2, 1/4 and 1/8, as pictures of cameras are decoded: over 42 dB, without a shift."""
    data = encoded(picture(1000, 800))
    for scale in ((0.05, 0.1), (0.2, 0.4), (0.9, 1.0)):
        for seed in range(3):
            crop = drawn(seed, scale)
            ours, expected = as_rgb(by_pil(*open_crop(data, crop, 64), 64)), of_whole_image(data, crop, 64)
            error = ((ours - expected) ** 2).mean()
            assert 10 * math.log10(255**2 / error) > 42
            assert abs((ours - expected).mean()) < 0.2
            moved = ((ours[:, 1:] - expected[:, :-1]) ** 2).mean()
            assert error < moved / 20


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("size", [(301, 203), (40, 50), (1, 1), (700, 3)])
def test_resizing_is_that_of_pil_on_whole_pixels(mode: str, size: tuple[int, int]) -> None:
    image, draw = picture(*size).convert(mode), np.random.default_rng(0)
    for _ in range(8):
        left, top = (draw.uniform(0, 0.7 * length) for length in size)
        right, bottom = (draw.uniform(low, length) for low, length in zip((left, top), size, strict=True))
        box = round(left), round(top), max(round(right), round(left) + 1), max(round(bottom), round(top) + 1)
        ours = resized(image, (left, top, right, bottom), SIDE)
        expected = by_pil(image.crop(box), (0, 0, box[2] - box[0], box[3] - box[1]), SIDE)
        assert ours.shape == expected.shape and ours.dtype == torch.uint8 and ours.is_contiguous()
        difference = (ours.int() - expected.int()).abs()
        assert difference.max() <= 2 and difference.float().mean() < 0.1


@pytest.mark.parametrize("orientation", range(1, 9))
def test_edges_move_by_half_a_pixel_of_the_result_at_most(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(picture(903, 701), exif=exif)
    for seed in range(20):
        image, box = open_crop(data, drawn(seed), SIDE)
        whole = [round(place) for place in box]
        assert min(whole) >= 0 and whole[2] <= image.width and whole[3] <= image.height
        assert (
            image.size == (903, 701)[:: 1 if orientation < 5 else -1] or min(box[2] - box[0], box[3] - box[1]) >= SIDE
        )


def test_limits_and_damage_are_those_of_whole_images(tmp_path: Path) -> None:
    data = encoded(picture(400, 300))
    for broken in (data[: len(data) // 2], data[:-300], b"", b"no image"):
        with pytest.raises(UnreadableImage) as whole:
            open_image(broken)
        with pytest.raises(UnreadableImage, match=re.escape(whole.value.reason[:15])):
            open_crop(broken, Crop((0.2, 0.3), np.zeros((10, 4))), SIDE)  # of the part that is whole
    with pytest.raises(UnreadableImage, match="400 x 300 pixels, more than 1,000"):
        open_crop(data, drawn(0), SIDE, ImageLimits(max_pixels=1000))
    with pytest.raises(UnreadableImage, match="no such file"):
        open_crop(tmp_path / "none.jpg", drawn(0), SIDE)


# ---- samples ---------------------------------------------------------------------------------------------------------


def test_pixels_depend_on_seed_epoch_and_number_alone() -> None:
    data = encoded(picture(200, 150))
    images = FastImages(SIDE, horizontal_flip=True)
    torch.manual_seed(1)
    first = images.read(data, 5, 2, 7).image
    state = torch.get_rng_state()
    assert torch.equal(images.read(data, 5, 2, 7).image, first)
    assert torch.equal(torch.get_rng_state(), state), "nothing is drawn from torch's generator"
    others = [images.read(data, *key).image for key in ((5, 2, 8), (5, 3, 7), (6, 2, 7), (5, 2, 7, 1))]
    assert all(not torch.equal(other, first) for other in others)
    assert first.dtype == torch.uint8 and first.shape == (3, SIDE, SIDE) and first.is_contiguous()


def test_flips_are_half_of_all() -> None:
    image = Image.new("RGB", (SIDE, SIDE))
    image.paste((255, 255, 255), (0, 0, SIDE // 2, SIDE))
    images = FastImages(SIDE, None, None, horizontal_flip=True)
    left = [bool(images.read(image, 0, 0, n).image[0, 0, 0]) for n in range(400)]
    assert 150 < sum(left) < 250
    straight = FastImages(SIDE, None, None)
    assert all(straight.read(image, 0, 0, n).image[0, 0, 0] for n in range(50)), "left stays left by default"


def test_without_augmentation_training_sees_what_evaluation_sees() -> None:
    image = picture(64, 48)
    pixels = FastImages(24, None, None).read(image, 0, 0, 0)
    batch = collate([Sample(pixels.image, [1], 0, 0, 0, [], operations=pixels.operations)])
    ready = next(prepared(iter([batch]), torch.device("cpu"), 5))
    difference = (ready.images[0] - eval_transform(24)(image)).abs()  # torch and PIL round differently
    assert difference.max() <= 2.01 / 255 / min(STD) and difference.mean() < 0.1 / 255 / min(STD)
    assert torch.equal(normalised(pixels.image[None]), ready.images)
    assert next(prepared(iter([ready]), torch.device("cpu"), 5)).images is ready.images, "done once"


def test_grey_images_are_equal_in_all_channels() -> None:
    pixels = FastImages(SIDE, randaugment=None).read(encoded(picture(99, 80).convert("L")), 0, 0, 0).image
    assert torch.equal(pixels[0], pixels[1]) and torch.equal(pixels[0], pixels[2])
    with pytest.raises(ValueError, match="crop_scale is"):
        FastImages(8, (0.0, 1.0))
    with pytest.raises(ValueError, match="image_size is 0"):
        FastImages(0)
    with pytest.raises(ValueError, match="randaugment"):
        FastImages(8, randaugment=(2, 11))
