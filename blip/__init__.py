"""BLIP for medical images: pre-training, fine-tuning, bootstrapping of captions, and a look inside the model."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from blip.restore import load as load

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name == "load":  # imported when asked for: `import blip` alone stays quick
        from blip.restore import load

        return load
    raise AttributeError(f"module 'blip' has no attribute {name!r}")
