"""The maker of the processor, on which the quickest way to multiply depends."""

import functools
from contextlib import suppress
from pathlib import Path

CPU_INFO = Path("/proc/cpuinfo")


@functools.cache
def is_amd() -> bool:
    """Whether the processor is AMD's; False where the system does not tell."""
    with suppress(OSError):
        for line in CPU_INFO.read_text(errors="replace").splitlines():
            if line.startswith("vendor_id"):
                return "AuthenticAMD" in line
    return False
