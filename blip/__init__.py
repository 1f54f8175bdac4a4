"""BLIP for medical images: pre-training, fine-tuning, bootstrapping of captions, and a look inside the model."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from blip.explain import explain_pairs as explain_pairs
    from blip.explain import gradcam as gradcam
    from blip.inference.load import load as load
    from blip.internals import names as names
    from blip.internals import patch_from as patch_from
    from blip.internals import trace as trace
    from blip.internals import zero_head as zero_head
    from blip.lenses import attention_rollout as attention_rollout
    from blip.lenses import logit_lens as logit_lens
    from blip.lenses import patch_lens as patch_lens

__version__ = "0.1.0"

PUBLIC = {"load": "inference.load"}
PUBLIC |= dict.fromkeys(("names", "trace", "zero_head", "patch_from"), "internals")
PUBLIC |= dict.fromkeys(("logit_lens", "patch_lens", "attention_rollout"), "lenses")
PUBLIC |= dict.fromkeys(("gradcam", "explain_pairs"), "explain")


def __getattr__(name: str) -> Any:
    if name in PUBLIC:  # imported when asked for: `import blip` alone stays quick
        return getattr(import_module(f"blip.{PUBLIC[name]}"), name)
    raise AttributeError(f"module 'blip' has no attribute {name!r}")
