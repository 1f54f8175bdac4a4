"""The setting of torch's allocator is in the environment before a device is used, unless the user has one."""

import os

import pytest
import torch

from blip import distributed
from blip.hardware.allocator import NAMES, SETTING, avoid_gaps


@pytest.fixture(autouse=True)
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.setenv(name, "")  # so that it is as before after the test
        monkeypatch.delenv(name)


@pytest.mark.parametrize(("version", "name"), [("2.14.1+cu130", NAMES[0]), ("2.10.0", NAMES[0]), ("2.7.1", NAMES[1])])
def test_segments_are_extended(version: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "__version__", version)
    avoid_gaps()
    assert [os.environ.get(each) for each in NAMES] == [SETTING if each == name else None for each in NAMES]


@pytest.mark.parametrize("name", NAMES)
def test_a_setting_of_the_user_stays(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "max_split_size_mb:64")
    distributed.start("cpu")
    assert [os.environ[each] for each in NAMES if each in os.environ] == ["max_split_size_mb:64"]


def test_it_is_set_before_a_device_is_chosen() -> None:
    distributed.start("cpu")
    assert any(os.environ.get(name) == SETTING for name in NAMES)
