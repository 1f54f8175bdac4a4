"""How a process joins the others: by NCCL on GPUs, without one at hand."""

from typing import Any

import pytest
import torch
import torch.distributed as dist

from blip.distributed import group
from blip.errors import InputError


@pytest.fixture
def joined(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """The calls by which process 1 of this host joins two, as on a machine with two GPUs."""
    calls: list[tuple[str, Any]] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: calls.append(("device", device)))
    monkeypatch.setattr(dist, "init_process_group", lambda backend, **given: calls.append((backend, given)))
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    monkeypatch.setattr(dist, "new_group", lambda **given: calls.append(("new group", given)))
    monkeypatch.setattr(group, "Watch", lambda: calls.append(("watch", None)))
    for name, value in (("RANK", "1"), ("LOCAL_RANK", "1"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(name, value)
    return calls


def test_on_gpus(joined: list[tuple[str, Any]]) -> None:
    device = torch.device("cuda", 1)
    assert group.start() == device
    assert joined == [
        ("device", device),
        ("nccl", {"timeout": group.STEP, "device_id": device}),
        ("new group", {"backend": "gloo", "timeout": group.LONG}),
        ("watch", None),
    ]


def test_a_process_without_a_gpu(joined: list[tuple[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(InputError, match="process 1 of this host has no GPU, there are 1: set --nproc_per_node"):
        group.start()
    assert not joined
