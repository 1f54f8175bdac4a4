"""RandAugment on batches: each operation as PIL does it, the draws of the same distribution, the same in any batch."""

from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image
from test_training_images import encoded, picture

from blip.data.augment import augmented, prepared
from blip.data.batches import Sample, collate
from blip.data.randaugment import GEOMETRIC, OPERATIONS, RandAugment
from blip.data.training_images import FastImages
from blip.data.transforms import train_transform

# in levels of 256: of pictures of two levels most, whose means of two pixels often are whole numbers, which rounding in
# float32 or float64 puts just below or above; and the share of pixels that may differ by more than one, at the border
EXACT = {"identity", "autocontrast", "equalize", "brightness", "sharpness", "translate_x", "translate_y"}
NEARLY_EQUAL, BORDER = 0.3, 0.001


def tensor(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def images(side: int) -> list[Image.Image]:
    noise = np.random.default_rng(0)
    dull = Image.fromarray((60 + noise.integers(0, 90, (side, side, 3))).astype(np.uint8))
    two = Image.fromarray(np.repeat(noise.integers(0, 2, (side, side, 1)) * 200 + 7, 3, axis=2).astype(np.uint8))
    return [picture(side, side), dull, two, Image.new("RGB", (side, side), (3, 200, 90))]


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("magnitude", [0, 3, 5, 10])
@pytest.mark.parametrize("side", [7, 96])
def test_each_operation_is_that_of_pil(operation: str, magnitude: int, side: int) -> None:
    ones, number = images(side), OPERATIONS.index(operation)
    for backwards in (False, True) if operation in GEOMETRIC else (False,):
        sign = -1 if backwards else 1
        ours = augmented(torch.stack([tensor(one) for one in ones]), [(sign * number,)] * len(ones), magnitude)
        assert ours.dtype == torch.uint8
        for one, changed in zip(ones, ours, strict=True):
            expected = tensor(RandAugment(2, magnitude).changed(one, operation, backwards=backwards))
            difference = (changed.int() - expected.int()).abs().float()
            if operation in EXACT:
                assert not difference.any(), f"{operation} differs by {difference.max()}"
            else:
                assert difference.mean() < NEARLY_EQUAL and (difference > 1).float().mean() < BORDER


def test_many_operations_in_a_row_and_in_any_batch() -> None:
    ones = [tensor(one) for one in images(48)] * 10
    generator, augment = np.random.default_rng(3), RandAugment(3, 7)
    drawn = [augment.draw(generator) for _ in ones]
    whole = augmented(torch.stack(ones), drawn, 7)
    for row in (0, 7, 23, 39):
        assert torch.equal(augmented(ones[row][None], [drawn[row]], 7)[0], whole[row]), "alone as among others"
    some = [39, 3, 12]
    part = augmented(torch.stack([ones[row] for row in some]), [drawn[row] for row in some], 7)
    assert torch.equal(part, whole[some])
    for row, one in enumerate(ones):
        expected = tensor(augment.apply_drawn(Image.fromarray(one.permute(1, 2, 0).numpy()), drawn[row]))
        assert (whole[row].int() - expected.int()).abs().float().mean() < 1.5  # autocontrast multiplies a difference


def test_operations_are_drawn_as_often_as_in_the_other_pipeline(monkeypatch: pytest.MonkeyPatch) -> None:
    count, seen = 6000, Counter[str]()
    augment, generator, image = RandAugment(2, 5), np.random.default_rng(0), Image.new("RGB", (8, 8))

    def note(_: RandAugment, one: Image.Image, name: str, *, backwards: bool) -> Image.Image:
        seen[name, backwards] += 1
        return one

    monkeypatch.setattr(RandAugment, "changed", note)
    torch.manual_seed(0)
    for _ in range(count):
        augment(image)
    drawn = Counter[str]()
    for _ in range(count):
        drawn.update((OPERATIONS[abs(n)], n < 0) for n in augment.draw(generator))
    del drawn["identity", False], seen["identity", False]  # an operation that is not applied counts as this one
    assert drawn.keys() == seen.keys() and len(seen) == 14
    for key in seen:
        assert abs(drawn[key] - seen[key]) < 5 * np.sqrt(2 * seen[key])


def test_both_pipelines_have_the_same_moments() -> None:
    """Mean and deviation of each channel, and of neighbours' differences, over many draws of one photograph."""
    image, count, side = picture(180, 140), 1200, 32
    data, transform = encoded(image, "PNG"), train_transform(side)
    torch.manual_seed(0)
    whole = torch.stack([transform(image) for _ in range(count)])
    read = FastImages(side, augment_here=False)
    samples = []
    for n in range(count):
        pixels = read.read(data, 0, 0, n)
        samples.append(Sample(pixels.image, [1], 0, 0, n, [], operations=pixels.operations))
    fast = next(prepared(iter([collate(samples)]), torch.device("cpu"), 5)).images
    for measure in (
        lambda x: x.mean(dim=(2, 3)), lambda x: x.std(dim=(2, 3)), lambda x: x.diff(dim=3).abs().mean(dim=(2, 3)),
        lambda x: x.diff(dim=2).abs().mean(dim=(2, 3)), lambda x: x[:, :, :4, :4].mean(dim=(2, 3)),
    ):  # fmt: skip
        one, other = measure(whole), measure(fast)
        error = (one.var(dim=0) / count + other.var(dim=0) / count).sqrt()
        assert ((one.mean(dim=0) - other.mean(dim=0)).abs() < 4.5 * error).all()
        assert ((one.std(dim=0) / other.std(dim=0)).log().abs() < 0.15).all()


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_augmentation_in_the_reader_and_on_the_device_agree(mode: str) -> None:
    """What a CPU run does in its workers and a GPU run on the device is the same, but for rounding."""
    data = encoded(picture(150, 120).convert(mode))
    here, there = FastImages(40), FastImages(40, augment_here=False)
    differences = []
    for n in range(60):
        done, waiting = here.read(data, 1, 0, n), there.read(data, 1, 0, n)
        assert done.operations == () and len(waiting.operations) == 2
        changed = augmented(waiting.image[None], [waiting.operations], 5)[0]
        differences.append((changed.int() - done.image.int()).abs().float().mean().item())
    assert max(differences) < 1.5 and np.median(differences) < 0.01
