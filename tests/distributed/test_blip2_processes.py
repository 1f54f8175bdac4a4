"""Two processes take the same step of BLIP-2's first stage as one on the same batch."""

from pathlib import Path

from helpers.blip2_process import SIZE, process, step
from helpers.running import start_two


def test_two_processes_equal_one(tmp_path: Path) -> None:
    """With the features of all processes compared, hard negatives of all, and images of these trained."""
    everyone = start_two(process, tmp_path)
    for both in (False, True):
        alone = step(slice(SIZE), both=both)
        assert len(alone) > 50
        for one in everyone:
            assert one[both].keys() == alone.keys()
            for name, expected in alone.items():
                error = (one[both][name] - expected).norm() / (expected.norm() + 1e-3)
                assert error < 1e-3, f"{name}: {error:.1e}"
