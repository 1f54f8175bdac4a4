"""Where the tests find what is not part of the project, and what they share."""

import os
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent


def _folder(variable: str, default: str) -> Path:
    path = Path(os.environ.get(variable) or ROOT / ".." / "shared" / default).resolve()
    if not path.is_dir():
        pytest.skip(f"{path} is absent; set {variable} to the folder to run this test")
    return path


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """Numbers computed by the published code; not part of the project."""
    return _folder("BLIP_GOLDEN", "golden")


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Real images, captions and questions; not part of the project."""
    return _folder("BLIP_DATA", "data")


@pytest.fixture(autouse=True)
def _same_seed() -> None:
    torch.manual_seed(0)
