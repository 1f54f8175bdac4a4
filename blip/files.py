"""Writing files so that a kill at any instant leaves the old file or the new one, never a part."""

import os
from pathlib import Path


def flush(path: Path) -> None:
    """Waits until a file's, or a folder's, contents are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
