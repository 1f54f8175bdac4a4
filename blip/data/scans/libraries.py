"""pydicom and nibabel, imported where a scan is read, and kept from printing what stands in headers.

Both warn about odd values and repeat them: names of patients would stand in logs. Their loggers and warnings are silent
while this package reads; a program that uses the libraries itself hears of them as before.
"""

import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from types import ModuleType

from blip.errors import InputError

INSTALL = "pip install 'blip[dicom]'"
OF_PYDICOM = ("pydicom", "pylibjpeg", "openjpeg", "libjpeg")
OF_LIBRARIES = re.compile(rf"({'|'.join((*OF_PYDICOM, 'nibabel'))})(\.|$)")  # modules whose warnings are silent
_reading: ContextVar[bool] = ContextVar("reading a scan", default=False)


@cache
def pydicom() -> ModuleType:
    """The module; InputError where it is not installed."""
    try:
        import pydicom
        import pydicom.encaps
        import pydicom.pixels
    except ImportError:
        raise InputError(f"a DICOM file, which pydicom reads: {INSTALL}") from None
    _silence(OF_PYDICOM)
    return pydicom


@cache
def nibabel() -> ModuleType:
    """The module; InputError where it is not installed."""
    try:
        import nibabel
    except ImportError:
        raise InputError(f"a NIfTI file, which nibabel reads: {INSTALL}") from None
    _silence(("nibabel",))
    return nibabel


@contextmanager
def quietly() -> Iterator[None]:
    """The block, in which the libraries print and log nothing."""
    if not any(one[3] == OF_LIBRARIES for one in warnings.filters):  # a program may have set its filters anew
        warnings.filterwarnings("ignore", module=OF_LIBRARIES.pattern)
    token = _reading.set(True)
    try:
        yield
    finally:
        _reading.reset(token)


def _silence(names: tuple[str, ...]) -> None:
    """Gives the loggers of libraries a filter, each its own: records of children pass by filters of their parents."""
    for name in sorted(logging.root.manager.loggerDict.keys() | set(names)):
        if name.split(".")[0] in names:
            logging.getLogger(name).addFilter(lambda record: not _reading.get())
