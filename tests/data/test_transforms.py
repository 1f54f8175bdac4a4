"""Every kind of image file becomes RGB; every broken one is named."""

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from blip.data import grey_levels, transforms
from blip.data.images import ImageLimits, UnreadableImage, open_image, to_rgb
from blip.data.transforms import RandAugment, eval_transform, train_transform

RAMP = np.linspace(0, 255, 64 * 48).reshape(48, 64)


def _encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.mark.parametrize(
    "route",
    ["1", "L", "LA", "P", "LA PA", "RGB", "RGBA", "CMYK", "RGB YCbCr", "RGB HSV", "I", "F", "LA La", "RGBA RGBa"],
)
def test_every_mode_becomes_rgb(route: str) -> None:
    image = Image.fromarray(RAMP.astype(np.uint8))
    for mode in route.split():
        image = image.convert(mode)
    assert image.mode == route.split()[-1]
    rgb = to_rgb(image)
    assert (rgb.mode, rgb.size) == ("RGB", (64, 48))
    values = np.asarray(rgb)[..., 1].astype(float)
    assert values[:5].mean() < 60 < 190 < values[-5:].mean()


@pytest.mark.parametrize(
    ("dtype", "top"), [(np.uint16, 4095), (np.uint16, 65535), (np.int32, 200_000), (np.float32, 0.01)]
)
def test_deep_images_are_windowed_not_clipped(dtype: type, top: float) -> None:
    image = Image.fromarray((RAMP / 255 * top).astype(dtype))
    kind = "TIFF" if dtype in (np.float32, np.int32) else "PNG"
    values = np.asarray(open_image(_encoded(image, kind)))[..., 0].astype(float)
    assert np.abs(values - RAMP).max() < 6  # half a per cent at either end is cut, the rest is linear


def test_window_ignores_outliers_and_survives_odd_content() -> None:
    values = RAMP.copy()
    values[0, :2] = 1e9
    assert np.abs(grey_levels.window(values)[1:] - RAMP[1:]).max() < 6
    assert grey_levels.window(np.full((4, 4), 7.0)).max() == 0
    few = np.zeros((100, 100))
    few[0, 0] = 3
    assert grey_levels.window(few)[0, 0] == 255
    holes = RAMP.copy()
    holes[0, 0], holes[0, 1] = np.nan, np.inf
    assert grey_levels.window(holes)[0, :2].tolist() == [0, 255]
    assert grey_levels.window(np.full((2, 2), np.nan)).max() == 0


def test_transparency_lies_on_white() -> None:
    image = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    image.putpixel((0, 0), (10, 20, 30, 255))
    assert to_rgb(image).getpixel((0, 0)) == (10, 20, 30)
    assert to_rgb(image).getpixel((5, 5)) == (255, 255, 255)
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([10, 20, 30, 1, 2, 3])
    palette.putpixel((0, 0), 0)
    assert open_image(_encoded(palette)).getpixel((5, 5)) == (1, 2, 3)
    assert open_image(_encoded(palette, transparency=1)).getpixel((5, 5)) == (255, 255, 255)
    assert open_image(_encoded(palette, transparency=1)).getpixel((0, 0)) == (10, 20, 30)
    # an alpha channel of nothing but zeros is broken: the picture counts
    assert to_rgb(Image.new("RGBA", (8, 8), (9, 9, 9, 0))).getpixel((0, 0)) == (9, 9, 9)


def test_exif_rotation() -> None:
    image = Image.new("RGB", (40, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    assert open_image(_encoded(image, "JPEG", exif=exif)).size == (20, 40)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "no such file"),
        (b"", "empty"),
        (b"not an image at all", "not an image"),
        (_encoded(Image.fromarray(RAMP.astype(np.uint8)), "JPEG")[:300], "(?i)truncated"),
        (_encoded(Image.effect_noise((64, 64), 50), "JPEG")[:2000], "(?i)truncated"),
        (_encoded(Image.effect_noise((64, 64), 50))[:2000], "(?i)truncated"),
    ],
)
def test_broken_files_are_named(tmp_path: Path, content: bytes | None, reason: str) -> None:
    path = tmp_path / "image.png"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UnreadableImage, match=reason) as caught:
        open_image(path)
    assert caught.value.path == str(path)


def test_sizes_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(UnreadableImage, match="0 x 5"):
        open_image(Image.new("L", (0, 5)))
    limits = ImageLimits(max_pixels=100)
    with pytest.raises(UnreadableImage, match="11 x 10 pixels, more than 100"):
        open_image(_encoded(Image.new("L", (11, 10))), limits)
    assert open_image(_encoded(Image.new("L", (10, 10))), limits).size == (10, 10)
    with pytest.raises(UnreadableImage, match="is a folder"):
        open_image(tmp_path)


def test_evaluation_transform() -> None:
    image = Image.new("RGB", (30, 50), (255, 0, 128))
    pixels = eval_transform(16)(image)
    assert type(pixels) is torch.Tensor
    assert pixels.shape == (3, 16, 16)
    assert pixels.dtype == torch.float32
    expected = (torch.tensor([1.0, 0.0, 128 / 255]) - torch.tensor(transforms.MEAN)) / torch.tensor(transforms.STD)
    assert torch.allclose(pixels[:, 8, 8], expected, atol=1e-5)
    # nothing is cropped: the corners of the image are the corners of the result
    ramp = Image.fromarray(RAMP.astype(np.uint8)).convert("RGB")
    reference = np.asarray(ramp.resize((16, 16), Image.Resampling.BICUBIC))
    ours = eval_transform(16)(ramp).permute(1, 2, 0).numpy() * transforms.STD + transforms.MEAN
    assert np.abs(ours * 255 - reference).max() < 0.01


def test_training_transform_is_random_and_repeats_with_the_seed() -> None:
    image = Image.effect_noise((64, 48), 60).convert("RGB")
    transform = train_transform(24, horizontal_flip=True)

    def draw(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return transform(image)

    assert draw(0).shape == (3, 24, 24)
    assert all(torch.equal(draw(seed), draw(seed)) for seed in range(8))
    assert len({draw(seed).sum().item() for seed in range(8)}) == 8


def test_without_augmentation_training_sees_what_evaluation_sees() -> None:
    image = Image.effect_noise((64, 48), 60).convert("RGB")
    plain = train_transform(24, crop_scale=None, randaugment=None)
    assert torch.equal(plain(image), eval_transform(24)(image))


def test_left_stays_left_by_default() -> None:
    image = Image.new("RGB", (32, 32))
    image.paste((255, 255, 255), (0, 0, 16, 32))
    transform = train_transform(32)
    both = 0
    for _ in range(30):
        for row in transform(image)[0]:  # grey areas, where a shear left nothing, may lie on either side
            white, black = (row > 1).nonzero(), (row < -1).nonzero()
            if len(white) and len(black):
                both += 1
                assert white.max() < black.min()
    assert both > 100


def test_operations_of_randaugment() -> None:
    image = Image.effect_noise((64, 48), 60).point(lambda value: 60 + value // 2).convert("RGB")  # of low contrast
    augment = RandAugment(2, 10)
    for operation in RandAugment.OPERATIONS:
        changed = augment.apply_one(image, operation)
        assert (changed.mode, changed.size) == ("RGB", image.size)
        assert (changed.tobytes() == image.tobytes()) == (operation == "identity")
    assert augment.apply_one(image, "equalize").tobytes() == ImageOps.equalize(image).tobytes()
    # ten pixels to one side, grey where nothing is left
    moved = np.asarray(augment.apply_one(image, "translate_x"))
    assert (moved[:, :10] == 128).all() or (moved[:, -10:] == 128).all()
    with pytest.raises(ValueError, match="randaugment"):
        RandAugment(2, 11)


def published_source(operation: str, level: float, size: tuple[int, int]) -> np.ndarray:
    """Where each pixel of the published result comes from: (height, width, 2) of x and y.

    The published matrices map source to result, with coordinates that count from the centre of the top-left pixel:
    shears are [1 s 0; 0 1 0] and [1 0 0; s 1 0], a rotation is about (width / 2, height / 2).
    """
    width, height = size
    if operation == "rotate":
        angle = np.radians(30 * level)
        turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
        centre = np.array([width / 2, height / 2])
    else:
        slope = 0.3 * level
        turn = np.array([[1, slope], [0, 1]] if operation == "shear_x" else [[1, 0], [slope, 1]])
        centre = np.zeros(2)
    result = np.stack(np.meshgrid(np.arange(width), np.arange(height)), axis=-1)  # x and y of each pixel
    return (result - centre) @ np.linalg.inv(turn).T + centre


@pytest.mark.parametrize("operation", ["shear_x", "shear_y", "rotate"])
@pytest.mark.parametrize("size", [(224, 224), (97, 160)])
@pytest.mark.parametrize("magnitude", [5, 10])
def test_geometry_of_randaugment_is_the_published_one(operation: str, size: tuple[int, int], magnitude: int) -> None:
    """Red holds each pixel's x, green its y, so that the result shows where its pixels come from."""
    width, height = size
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    image = Image.fromarray(np.stack([x, y, np.zeros_like(x)], axis=-1).astype(np.uint8))
    sources = [published_source(operation, sign * magnitude / 10, size) for sign in (1, -1)]
    seen = set()
    for _ in range(8):
        moved = np.asarray(RandAugment(2, magnitude).apply_one(image, operation)).astype(float)[..., :2]
        errors = []
        for source in sources:
            limit = np.array([width, height]) - 2
            inside = ((source >= 1) & (source <= limit)).all(axis=-1)
            assert inside.mean() > 0.5
            errors.append(np.abs(moved - source)[inside].max())
        assert min(errors) < 1.01  # values are whole numbers
        seen.add(int(np.argmin(errors)))
    assert seen == {0, 1}, "both directions occur"
