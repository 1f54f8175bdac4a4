"""The queue against a plain list, the twin's update against a loop, and which pairs are positives."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from blip.models import losses
from blip.models.momentum import (
    NO_ID,
    TEMPERATURE_RANGE,
    Entries,
    Queue,
    candidates,
    contrast_with_candidates,
    update_twin,
)

E = 6


def features(count: int) -> Tensor:
    return F.normalize(torch.randn(count, E), dim=1)


@pytest.mark.parametrize(
    ("size", "batches"),
    [(8, [4, 4, 4]), (8, [3, 3, 3, 3]), (5, [7]), (5, [2, 12, 1]), (7, [7, 7]), (1, [3, 2])],
    ids=["divides", "wraps", "larger", "larger-between", "equal", "one-entry"],
)
def test_queue_holds_the_last_entries(size: int, batches: list[int]) -> None:
    queue, pushed = Queue(size, E), []
    for count in batches:
        images, texts = features(count), features(count)
        ids = torch.arange(len(pushed), len(pushed) + count)
        queue.push(Entries(images, texts, ids, ids + 100))
        pushed += list(zip(images, texts, ids.tolist(), strict=True))
    held = {id_: column for column, id_ in enumerate(queue.caption_ids.tolist()) if id_ != NO_ID}
    assert set(held) == set(range(len(pushed))[-size:])
    for image, text, id_ in pushed[-size:]:
        assert_close(queue.images[:, held[id_]], image)
        assert_close(queue.texts[:, held[id_]], text)
        assert queue.image_ids[held[id_]] == id_ + 100


def test_queue_overwrites_the_oldest_first() -> None:
    queue = Queue(5, E)
    queue.push(Entries(features(4), features(4), torch.arange(4), torch.arange(4)))
    queue.push(Entries(features(2), features(2), torch.tensor([4, 5]), torch.tensor([4, 5])))
    assert queue.caption_ids.tolist() == [5, 1, 2, 3, 4]
    assert queue.pointer.item() == 1


def test_empty_queue_takes_any_batch() -> None:
    queue = Queue(0, E)
    queue.push(Entries(features(3), features(3), torch.arange(3), torch.arange(3)))
    others = candidates(Entries(features(3), features(3), torch.arange(3), torch.arange(3)), queue)
    assert others.images.shape == (E, 3)


def test_queue_starts_with_unit_vectors_of_nobody() -> None:
    queue = Queue(10, E)
    assert_close(queue.images.norm(dim=0), torch.ones(10))
    assert_close(queue.texts.norm(dim=0), torch.ones(10))
    assert (queue.caption_ids == NO_ID).all() and (queue.image_ids == NO_ID).all()


def test_update_twin_equals_a_loop() -> None:
    model, twin = nn.Linear(4, 3), nn.Linear(4, 3)
    expected = []
    for mine, theirs in zip(twin.parameters(), model.parameters(), strict=True):
        expected.append(mine.detach() * 0.9 + theirs.detach() * 0.1)
    before = [p.detach().clone() for p in model.parameters()]
    update_twin(twin.parameters(), model.parameters(), 0.9)
    for parameter, value in zip(twin.parameters(), expected, strict=True):
        assert_close(parameter.detach(), value)
    assert all(torch.equal(p, old) for p, old in zip(model.parameters(), before, strict=True))


def filled_queue() -> Queue:
    queue = Queue(4, E)
    queue.push(Entries(features(3), features(3), torch.tensor([7, 1, 8]), torch.tensor([20, 21, 0])))
    return queue


def test_candidates_are_the_batch_then_the_queue() -> None:
    queue, images, texts = filled_queue(), features(2), features(2)
    others = candidates(Entries(images, texts, torch.tensor([1, 2]), torch.tensor([10, 11])), queue)
    assert_close(others.images, torch.cat([images.T, queue.images], dim=1))
    assert_close(others.texts, torch.cat([texts.T, queue.texts], dim=1))


def test_equal_captions_or_images_are_positives() -> None:
    queue = filled_queue()
    caption_ids, image_ids = torch.tensor([1, 2, 1]), torch.tensor([0, 11, 12])
    all_captions = [*caption_ids.tolist(), *queue.caption_ids.tolist()]
    all_images = [*image_ids.tolist(), *queue.image_ids.tolist()]
    others = candidates(Entries(features(3), features(3), caption_ids, image_ids), queue)
    for i in range(3):
        for j in range(7):
            same = all_captions[j] == caption_ids[i].item() or all_images[j] == image_ids[i].item()
            assert others.positives[i, j].item() == same, (i, j)
    assert others.positives.sum(dim=1).tolist() == [4, 1, 3]


def test_unfilled_entries_are_positives_of_nobody() -> None:
    ids = torch.tensor([NO_ID, 3])  # even a pair without an id equals itself alone
    others = candidates(Entries(features(2), features(2), ids, ids), Queue(4, E))
    assert others.positives[:, :2].tolist() == [[True, False], [False, True]]
    assert not others.positives[1, 2:].any()


def test_published_positives_are_the_pair_itself() -> None:
    same = torch.zeros(3, dtype=torch.long)
    others = candidates(
        Entries(features(3), features(3), same, same), filled_queue(), equal_captions=False, equal_images=False
    )
    assert torch.equal(others.positives, torch.eye(3, 7, dtype=torch.bool))


def itc(temperature: Tensor, texts_match: bool) -> Tensor:
    """The ITC loss of four pairs whose texts equal their images, or the image of another pair."""
    images = F.normalize(torch.randn(4, E, generator=torch.Generator().manual_seed(3)), dim=1)
    texts = images if texts_match else images.roll(1, dims=0)
    batch = Entries(images, texts, torch.arange(4), torch.arange(4))
    others = candidates(batch, Queue(0, E))
    return contrast_with_candidates(images, texts, others, temperature=temperature, alpha=0.0)[0]


@pytest.mark.parametrize("bound", [*TEMPERATURE_RANGE, 0.07])
def test_the_temperature_has_its_gradient_also_at_a_bound(bound: float) -> None:
    """As in the published loss, which divides by the parameter itself."""
    temperature = nn.Parameter(torch.tensor(bound))
    loss = itc(temperature, texts_match=False)
    loss.backward()
    plain = nn.Parameter(torch.tensor(bound))
    images = F.normalize(torch.randn(4, E, generator=torch.Generator().manual_seed(3)), dim=1)
    texts, eye = images.roll(1, dims=0), torch.eye(4, dtype=torch.bool)
    both = [losses.contrast(a @ b.T / plain, a @ b.T, eye, alpha=0.0) for a, b in ((images, texts), (texts, images))]
    published = (both[0] + both[1]) / 2
    published.backward()
    assert torch.equal(loss, published)
    assert temperature.grad is not None and plain.grad is not None and plain.grad != 0
    assert_close(temperature.grad, plain.grad)


@pytest.mark.parametrize(("start", "texts_match"), [(0.001, False), (0.5, True)])
def test_a_temperature_at_a_bound_can_leave_it(start: float, texts_match: bool) -> None:
    """Wrong texts make a higher temperature better, right ones a lower one."""
    temperature = nn.Parameter(torch.tensor(start))
    optimizer = torch.optim.AdamW([temperature], lr=1e-2, weight_decay=0)
    itc(temperature, texts_match).backward()
    optimizer.step()
    assert TEMPERATURE_RANGE[0] < temperature.item() < TEMPERATURE_RANGE[1]


@pytest.mark.parametrize(("outside", "used"), [(0.0001, 0.001), (3.0, 0.5)])
def test_a_temperature_outside_its_bounds_counts_as_the_bound(outside: float, used: float) -> None:
    found = itc(torch.tensor(outside), texts_match=True)
    assert torch.equal(found, itc(torch.tensor(used), texts_match=True))
